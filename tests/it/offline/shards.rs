//! The layout of the output: which tensors each shard holds, and where.

use std::path::Path;

use octant::device::fp8;
use octant::offline::{Conversion, Granularity};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use super::{Tensors, conversion, floats, is_linear, json_of, read, write};
use crate::device::model::fixture;

/// Most bytes of tensors in a shard: less than the LM head, and than some matrices with their scales.
const SHARD_SIZE: usize = 250;

/// Writes a model with an odd hidden size, so that many quantised matrices have an odd number of bytes.
fn odd_model(dir: &Path) {
    let mut config = json_of(&fixture("nemotron").join("config.json"));
    for (key, value) in [
        ("hidden_size", 15),
        ("intermediate_size", 7),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 8),
        ("vocab_size", 9),
    ] {
        config[key] = json!(value);
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let shapes = [
        ("lm_head.weight", &[9, 15][..]),
        ("model.embed_tokens.weight", &[9, 15]),
        ("model.layers.0.input_layernorm.bias", &[15]),
        ("model.layers.0.input_layernorm.weight", &[15]),
        ("model.layers.0.mlp.down_proj.weight", &[15, 7]),
        ("model.layers.0.mlp.up_proj.weight", &[7, 15]),
        ("model.layers.0.post_attention_layernorm.bias", &[15]),
        ("model.layers.0.post_attention_layernorm.weight", &[15]),
        ("model.layers.0.self_attn.k_proj.weight", &[8, 15]),
        ("model.layers.0.self_attn.o_proj.weight", &[15, 16]),
        ("model.layers.0.self_attn.q_proj.weight", &[16, 15]),
        ("model.layers.0.self_attn.v_proj.weight", &[8, 15]),
        ("model.norm.bias", &[15]),
        ("model.norm.weight", &[15]),
    ];
    let tensor = |(seed, (name, shape)): (usize, (&str, &[usize]))| {
        let values = (0..shape.iter().product()).map(|i| ((i * 31 + seed) % 57) as f32 - 28.0);
        let bytes = values.flat_map(|x| fp8::bf16_bits(x).to_le_bytes()).collect();
        (name.to_owned(), ("BF16".to_owned(), shape.to_vec(), bytes))
    };
    let tensors: Tensors = shapes.into_iter().enumerate().map(tensor).collect();
    write(&dir.join("model.safetensors"), &tensors);
}

/// Names of the tensors of each shard: shards are filled in the order of the input.
fn expected_shards(input: &Tensors, granularity: Granularity) -> Vec<Vec<String>> {
    let mut shards: Vec<Vec<String>> = Vec::new();
    let mut filled = 0;
    for (name, (_, shape, bytes)) in input {
        let scales = if granularity == Granularity::Channel { shape[0] } else { 1 };
        let mut names = vec![name.clone()];
        let mut size = bytes.len();
        if is_linear(name) {
            names.push(format!("{name}_scale"));
            size = bytes.len() / 2 + 4 * scales;
        }
        if shards.is_empty() || filled + size > SHARD_SIZE {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size;
        shards.last_mut().unwrap().extend(names);
    }
    shards
}

#[test]
fn safetensors_reads_every_tensor_of_every_shard_at_a_multiple_of_its_element_size() {
    for granularity in [Granularity::Channel, Granularity::Tensor] {
        let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        odd_model(model.path());
        let shard_size = SHARD_SIZE as u64;
        let small = Conversion { shard_size, ..conversion(model.path(), out.path(), Some(granularity)) };
        octant::offline::quantize(&small, &|_| {}).unwrap();
        let (input, output) = (read(model.path()), read(out.path()));
        let index = json_of(&out.path().join("model.safetensors.index.json"));
        let shards = expected_shards(&input, granularity);
        assert!(shards.len() > 6, "{shards:?}");
        let mut total = 0;
        for (number, mut names) in shards.iter().cloned().enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
            let bytes = std::fs::read(out.path().join(&file)).unwrap();
            let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
            tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
            names.sort();
            assert_eq!(tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            for (name, view) in &tensors {
                let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize - data;
                let width = match view.dtype() {
                    Dtype::F32 => 4,
                    Dtype::BF16 => 2,
                    Dtype::F8_E4M3 => 1,
                    other => panic!("{name}: {other:?}"),
                };
                assert_eq!(offset % width, 0, "{name} begins at {offset}");
                assert_eq!(index["weight_map"][name], file, "{name}");
                total += view.data().len();
            }
        }
        assert_eq!(index["metadata"]["total_size"], total);
        assert_eq!(index["weight_map"].as_object().unwrap().len(), output.len());
        for (name, tensor) in &input {
            if !is_linear(name) {
                assert!(&output[name] == tensor, "{name}");
                continue;
            }
            let (values, scales) = (floats(tensor), floats(&output[&format!("{name}_scale")]));
            let (cols, codes) = (values.len() / scales.len(), &output[name].2);
            for (row, (values, codes)) in values.chunks(cols).zip(codes.chunks(cols)).enumerate() {
                let mut expected = vec![0; cols];
                assert_eq!(fp8::quantize_row(values, &mut expected), scales[row], "{name}, row {row}");
                assert!(expected == codes, "{name}, row {row}");
            }
        }
    }
}
