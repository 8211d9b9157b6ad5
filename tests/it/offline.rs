//! Conversions of model directories on disk: their output, refusals, and continuation after a kill.

mod nemo;
mod quantize;
mod refused;
mod resume;
mod shards;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use octant::commands::convert::progress_line;
use octant::device::fp8;
use octant::model::LoadError;
use octant::offline::{Conversion, ConversionProgress, Converted, Granularity};
use serde_json::{Value, json};

use crate::device::model::fixture;
use crate::model::checkpoints::{is_linear, write};

/// A stored tensor: safetensors type, shape, bytes.
type Tensor = (String, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

fn conversion(input: &Path, output: &Path, granularity: Option<Granularity>) -> Conversion {
    Conversion {
        input: input.to_owned(),
        output: output.to_owned(),
        granularity,
        tokenizer: true,
        shard_size: 8_000_000_000,
        threads: 2,
    }
}

fn quantize(input: &Path, output: &Path, granularity: Granularity) -> Result<Converted, LoadError> {
    octant::offline::quantize(&conversion(input, output, Some(granularity)), &|_| {})
}

/// Returns all tensors of a directory's safetensors files.
fn read(dir: &Path) -> Tensors {
    let mut all = Tensors::new();
    for (name, bytes) in files(dir).into_iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (tensor, view) in file.tensors() {
            let dtype = format!("{:?}", view.dtype());
            let before = all.insert(tensor, (dtype, view.shape().to_vec(), view.data().to_vec()));
            assert!(before.is_none());
        }
    }
    all
}

/// Returns the contents of all files of a directory, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// Asserts that two directories hold the same file names and the same bytes.
fn same(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(bytes == &other[name], "{name} differs");
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Returns the elements of a BF16, F16 or F32 tensor.
fn floats(tensor: &Tensor) -> Vec<f32> {
    let bytes = &tensor.2;
    match tensor.0.as_str() {
        "BF16" => bytes.chunks_exact(2).map(|b| fp8::bf16_value(u16::from_le_bytes([b[0], b[1]]))).collect(),
        "F16" => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        "F32" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        other => panic!("{other}"),
    }
}

/// Writes a Nemotron checkpoint with two query heads and random BF16 weights, in one file.
fn random_model(dir: &Path, hidden: usize, layers: usize, vocab: usize) {
    let mut config = json_of(&fixture("nemotron").join("config.json"));
    let ffn = 4 * hidden;
    let sizes = [
        ("hidden_size", hidden),
        ("intermediate_size", ffn),
        ("num_hidden_layers", layers),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", hidden / 2),
        ("vocab_size", vocab),
    ];
    for (key, value) in sizes {
        config[key] = json!(value);
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{\"stands for\": \"a tokenizer\"}").unwrap();
    let mut state = 1u64;
    let mut tensor = |shape: &[usize]| -> Tensor {
        let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * 2);
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let x = (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
            bytes.extend(fp8::bf16_bits(x).to_le_bytes());
        }
        ("BF16".to_owned(), shape.to_vec(), bytes)
    };
    let mut tensors = Tensors::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), tensor(&[vocab, hidden]));
    tensors.insert("lm_head.weight".to_owned(), tensor(&[vocab, hidden]));
    for layer in 0..layers {
        let base = format!("model.layers.{layer}");
        for (name, shape) in [
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [hidden / 2, hidden]),
            ("self_attn.v_proj", [hidden / 2, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("mlp.up_proj", [ffn, hidden]),
            ("mlp.down_proj", [hidden, ffn]),
        ] {
            tensors.insert(format!("{base}.{name}.weight"), tensor(&shape));
        }
    }
    let layers = (0..layers).map(|layer| format!("model.layers.{layer}."));
    let norms =
        layers.flat_map(|base| ["input_layernorm", "post_attention_layernorm"].map(|n| base.clone() + n));
    for norm in norms.chain(["model.norm".to_owned()]) {
        for part in ["weight", "bias"] {
            tensors.insert(format!("{norm}.{part}"), tensor(&[hidden]));
        }
    }
    write(&dir.join("model.safetensors"), &tensors);
}

#[test]
fn the_rate_is_that_of_this_run() {
    let (done, earlier, total) = (60_000_000_000, 40_000_000_000, 100_000_000_000);
    let progress = ConversionProgress { done, earlier, total, tensor: "w" };
    let text = progress_line(done, &progress, Duration::from_secs(10));
    assert_eq!(text, "60 % of 100.0 GB, 2.00 GB/s, 0:00:20 left: w");
}
