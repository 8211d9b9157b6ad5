//! Which weight goes where: shards, their headers, the index. A pure function of the items and a shard's size.
//!
//! A shard is a safetensors file: the length of its header in 8 bytes, the header in JSON, and the tensors without gaps.
//! Wider types come first, so that every tensor begins at a multiple of its width.

use std::ops::Range;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::{Granularity, Item};

/// Where an item's tensors are in its shard's file, in bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) weight: Range<u64>,
    /// Empty for an item that is not quantised.
    pub(super) scales: Range<u64>,
}

/// One file of the output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shard {
    pub(super) file: String,
    /// What the file begins with.
    pub(super) header: Vec<u8>,
    /// Bytes of the file.
    pub(super) len: u64,
    /// Its items, by their number, and their places.
    pub(super) items: Vec<(usize, Place)>,
}

/// All of the output's weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) shards: Vec<Shard>,
    /// The contents of `model.safetensors.index.json`, but for what says where they came from.
    weight_map: Map<String, Value>,
    total: u64,
}

/// A tensor of the output.
struct Tensor {
    item: usize,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    is_scale: bool,
}

impl Plan {
    /// Fills one shard after the other, in the order of the items.
    pub(super) fn new(items: &[Item], shard_size: u64) -> Self {
        let mut groups: Vec<Vec<Tensor>> = Vec::new();
        let mut filled = 0;
        for (index, item) in items.iter().enumerate() {
            let tensors = tensors(index, item);
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
        let mut plan = Self { shards: Vec::new(), weight_map: Map::new(), total: 0 };
        for (index, group) in groups.into_iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
            for tensor in &group {
                plan.weight_map.insert(tensor.name.clone(), json!(file));
                plan.total += tensor.bytes;
            }
            plan.shards.push(shard(file, group));
        }
        plan
    }

    /// `model.safetensors.index.json`; `source` tells what the weights were made of.
    pub(super) fn index(&self, source: &str) -> Value {
        let metadata = json!({ "total_size": self.total, "octant_source": source });
        json!({ "metadata": metadata, "weight_map": self.weight_map })
    }
}

fn tensors(index: usize, item: &Item) -> Vec<Tensor> {
    let elements = item.elements() as u64;
    let tensor = |name: String, dtype, shape, bytes| Tensor {
        item: index,
        name,
        dtype,
        shape,
        bytes,
        is_scale: false,
    };
    let Some(granularity) = item.granularity else {
        return vec![tensor(item.name.clone(), item.dtype, item.shape.clone(), item.bytes())];
    };
    let shape = match granularity {
        Granularity::Channel => vec![item.shape[0], 1],
        Granularity::Tensor => vec![1],
    };
    let bytes = shape[0] as u64 * 4;
    let scales = tensor(format!("{}_scale", item.name), Dtype::F32, shape, bytes);
    vec![
        tensor(item.name.clone(), Dtype::F8_E4M3, item.shape.clone(), elements),
        Tensor { is_scale: true, ..scales },
    ]
}

fn shard(file: String, mut tensors: Vec<Tensor>) -> Shard {
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
    let mut items: Vec<(usize, Place)> = Vec::new();
    for (tensor, span) in tensors.iter().zip(spans) {
        let span = data + span.start..data + span.end;
        let at = items.iter().position(|(item, _)| *item == tensor.item).unwrap_or_else(|| {
            items.push((tensor.item, Place { weight: 0..0, scales: 0..0 }));
            items.len() - 1
        });
        let place = &mut items[at].1;
        *(if tensor.is_scale { &mut place.scales } else { &mut place.weight }) = span;
    }
    items.sort_by_key(|(item, _)| *item);
    Shard { file, header, len: data + end, items }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use safetensors::tensor::{Dtype, SafeTensors};

    use super::super::item::{Item, RowMap, Source};
    use super::super::plan::Plan;
    use super::Granularity;

    fn item(name: &str, shape: &[usize], granularity: Option<Granularity>) -> Item {
        Item {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype: Dtype::BF16,
            granularity,
            source: Source::File { path: PathBuf::new(), offset: 0 },
            rows: RowMap::ALL,
        }
    }

    #[test]
    fn shards_are_files_that_a_reader_takes() {
        let odd = Some(Granularity::Channel);
        let items = [
            item("norm", &[7], None),
            item("a", &[3, 5], odd),
            item("b", &[5, 3], Some(Granularity::Tensor)),
            item("head", &[100, 7], None),
        ];
        // The head has more bytes than a shard; b does not fit beside norm and a, which have 14 + 15 + 12.
        let plan = Plan::new(&items, 50);
        let names = |shard: usize| plan.shards[shard].items.iter().map(|(i, _)| *i).collect::<Vec<_>>();
        assert_eq!([names(0), names(1), names(2)], [vec![0, 1], vec![2], vec![3]]);
        for shard in &plan.shards {
            let mut file = shard.header.clone();
            file.resize(shard.len as usize, 0);
            let read = SafeTensors::deserialize(&file).unwrap();
            let header = shard.header.len();
            for (index, place) in &shard.items {
                let item = &items[*index];
                let weight = read.tensor(&item.name).unwrap();
                assert_eq!(weight.shape(), item.shape);
                assert_eq!(weight.data().as_ptr(), file[place.weight.start as usize..].as_ptr());
                if item.granularity.is_some() {
                    let scales = read.tensor(&format!("{}_scale", item.name)).unwrap();
                    assert_eq!((scales.dtype(), weight.dtype()), (Dtype::F32, Dtype::F8_E4M3));
                    assert_eq!(scales.data().as_ptr(), file[place.scales.start as usize..].as_ptr());
                    assert_eq!((place.scales.start as usize - header) % 4, 0);
                } else {
                    assert_eq!((place.weight.start as usize - header) % 2, 0);
                }
            }
        }
        let index = plan.index("x");
        assert_eq!(index["metadata"]["total_size"], 14 + 15 + 12 + 15 + 4 + 1400);
        assert_eq!(index["weight_map"]["b_scale"], "model-00002-of-00003.safetensors");
    }
}
