//! The layout of the output: which weights each shard holds, the shards' headers, and the index. A pure
//! function of the weights and the shard size.
//!
//! A shard is a safetensors file: the length of its header (u64, little-endian), the header in JSON, and the
//! tensors without gaps. Wider types come first, so that every tensor begins at a multiple of its element
//! size.

use std::ops::Range;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::granularity::Granularity;
use super::output_weight::OutputWeight;

/// Byte ranges of a weight and its scales in the shard's file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placement {
    pub(super) weight: Range<u64>,
    /// Empty for a weight that is not quantised.
    pub(super) scales: Range<u64>,
}

/// A safetensors file of the output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ShardFile {
    /// Name of the file.
    pub(super) file: String,
    /// The first bytes of the file: the header and its length.
    pub(super) header: Vec<u8>,
    /// Length of the file in bytes.
    pub(super) len: u64,
    /// Indices of the shard's weights in ascending order, with their placements.
    pub(super) weights: Vec<(usize, Placement)>,
}

/// The layout of all weights of an output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ShardLayout {
    pub(super) shards: Vec<ShardFile>,
    /// The `weight_map` of `model.safetensors.index.json`: tensor name to file name.
    weight_map: Map<String, Value>,
    /// Bytes of all tensors.
    total: u64,
}

/// A tensor of the output.
struct OutputTensor {
    /// Index of the weight that this tensor stores or scales.
    weight: usize,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    is_scale: bool,
}

impl ShardLayout {
    /// Fills one shard after the other, in the order of the weights. A shard holds at most `shard_size` bytes
    /// of tensors; a larger weight gets a shard of its own.
    pub(super) fn new(weights: &[OutputWeight], shard_size: u64) -> Self {
        let mut groups: Vec<Vec<OutputTensor>> = Vec::new();
        let mut filled = 0;
        for (index, weight) in weights.iter().enumerate() {
            let tensors = tensors(index, weight);
            let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
            match groups.last_mut() {
                Some(group) if filled + bytes <= shard_size => {
                    group.extend(tensors);
                    filled += bytes;
                }
                _ => {
                    groups.push(tensors);
                    filled = bytes;
                }
            }
        }
        let count = groups.len();
        let mut layout = Self { shards: Vec::new(), weight_map: Map::new(), total: 0 };
        for (index, group) in groups.into_iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
            for tensor in &group {
                layout.weight_map.insert(tensor.name.clone(), json!(file));
                layout.total += tensor.bytes;
            }
            layout.shards.push(shard(file, group));
        }
        layout
    }

    /// Returns the contents of `model.safetensors.index.json`; `source` is the hash of the conversion's
    /// identity.
    pub(super) fn index(&self, source: &str) -> Value {
        let metadata = json!({ "total_size": self.total, "octant_source": source });
        json!({ "metadata": metadata, "weight_map": self.weight_map })
    }
}

/// Returns the tensors that store a weight: the weight and, if it is quantised, its scales.
fn tensors(index: usize, weight: &OutputWeight) -> Vec<OutputTensor> {
    let elements = weight.elements() as u64;
    let tensor = |name: String, dtype, shape, bytes| OutputTensor {
        weight: index,
        name,
        dtype,
        shape,
        bytes,
        is_scale: false,
    };
    let Some(granularity) = weight.granularity else {
        return vec![tensor(weight.name.clone(), weight.dtype, weight.shape.clone(), weight.bytes())];
    };
    let shape = match granularity {
        Granularity::Channel => vec![weight.shape[0], 1],
        Granularity::Tensor => vec![1],
    };
    let bytes = shape[0] as u64 * 4;
    let scales = tensor(format!("{}_scale", weight.name), Dtype::F32, shape, bytes);
    vec![
        tensor(weight.name.clone(), Dtype::F8_E4M3, weight.shape.clone(), elements),
        OutputTensor { is_scale: true, ..scales },
    ]
}

/// Lays out the tensors of a shard and writes its header.
fn shard(file: String, mut tensors: Vec<OutputTensor>) -> ShardFile {
    let narrowness = |dtype: Dtype| match dtype {
        Dtype::F32 => 0,
        Dtype::BF16 | Dtype::F16 => 1,
        _ => 2,
    };
    tensors.sort_by_key(|tensor| narrowness(tensor.dtype));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut spans = Vec::new();
    let mut end = 0;
    for tensor in &tensors {
        let span = end..end + tensor.bytes;
        end = span.end;
        let offsets = [span.start, span.end];
        let fields = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets });
        header.insert(tensor.name.clone(), fields);
        spans.push(span);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    let data = header.len() as u64;
    let mut weights: Vec<(usize, Placement)> = Vec::new();
    for (tensor, span) in tensors.iter().zip(spans) {
        let span = data + span.start..data + span.end;
        let at = weights.iter().position(|(weight, _)| *weight == tensor.weight).unwrap_or_else(|| {
            weights.push((tensor.weight, Placement { weight: 0..0, scales: 0..0 }));
            weights.len() - 1
        });
        let placement = &mut weights[at].1;
        *(if tensor.is_scale { &mut placement.scales } else { &mut placement.weight }) = span;
    }
    weights.sort_by_key(|(weight, _)| *weight);
    ShardFile { file, header, len: data + end, weights }
}
