//! Broken model directories: every error names the file and the tensor or key, and says expected versus got.

use std::collections::BTreeMap;
use std::path::Path;

use octant::model::{ModelConfig, Precision};
use serde_json::{Value, json};

use super::checkpoints::{read, write};
use super::{copy, edit, load};

const INDEX: &str = "model.safetensors.index.json";

/// The error message of a failing load.
fn failure(dir: &Path, precision: Precision) -> String {
    match load(dir, precision) {
        Ok(_) => panic!("loading must fail"),
        Err(error) => error.to_string(),
    }
}

/// Asserts that loading fails with a message that contains all parts.
fn fails(dir: &Path, parts: &[&str]) {
    let error = failure(dir, Precision::Fp8);
    for part in parts {
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    }
}

/// Rewrites the safetensors file with a changed header.
fn reheader(dir: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    change(&mut header);
    let text = serde_json::to_vec(&header).unwrap();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(&text);
    out.extend(&bytes[8 + size..]);
    std::fs::write(path, out).unwrap();
}

#[test]
fn an_unknown_architecture_is_named() {
    let dir = copy("llama");
    edit(dir.path(), json!({"architectures": ["GPT2LMHeadModel"]}));
    fails(dir.path(), &["config.json", "architectures", "GPT2LMHeadModel", "NemotronForCausalLM"]);
}

#[test]
fn unsupported_configuration_values_are_named() {
    let cases = [
        (json!({"hidden_size": -4}), "hidden_size"),
        (json!({"num_hidden_layers": null}), "num_hidden_layers"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"head_dim": 12}), "head_dim"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}), "rope_parameters.rope_type"),
        (json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_type"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config.quant_method"),
        (
            json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
            "quantization_config.weight_block_size",
        ),
    ];
    for (change, key) in cases {
        let dir = copy("llama");
        edit(dir.path(), change);
        fails(dir.path(), &["config.json", key]);
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = copy("nemotron");
    edit(dir.path(), json!({"num_hidden_layers": 3}));
    fails(dir.path(), &["model.layers.2.input_layernorm.weight", "missing"]);
}

#[test]
fn an_extra_tensor_is_named() {
    let dir = copy("nemotron");
    edit(dir.path(), json!({"num_hidden_layers": 1}));
    fails(dir.path(), &["model.safetensors", "model.layers.1.", "not part of this model"]);
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named() {
    let dir = copy("llama");
    edit(dir.path(), json!({"intermediate_size": 95}));
    fails(dir.path(), &["model.layers.0.mlp.gate_proj.weight", "[95, 64]", "[96, 64]"]);
}

#[test]
fn a_tensor_of_the_wrong_type_is_named() {
    let dir = copy("llama");
    reheader(dir.path(), |header| header["model.norm.weight"]["dtype"] = json!("I16"));
    fails(dir.path(), &["model.norm.weight", "BF16, F16 or F32", "I16"]);
}

#[test]
fn a_truncated_file_is_named() {
    let dir = copy("nemotron");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 5, 200, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        let error = failure(dir.path(), Precision::Fp8);
        assert!(error.contains("model.safetensors"), "{keep} bytes: {error}");
    }
}

#[test]
fn a_truncated_file_names_the_tensor_that_is_cut_off() {
    let dir = copy("nemotron");
    let mut tensors = read(dir.path());
    let norm =
        BTreeMap::from([("model.norm.weight".to_owned(), tensors.remove("model.norm.weight").unwrap())]);
    write(&dir.path().join("model.safetensors"), &tensors);
    write(&dir.path().join("last.safetensors"), &norm);
    let names = tensors.keys().map(|name| (name.clone(), json!("model.safetensors")));
    let map: serde_json::Map<String, Value> =
        names.chain([("model.norm.weight".to_owned(), json!("last.safetensors"))]).collect();
    std::fs::write(dir.path().join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
    load(dir.path(), Precision::Fp8).unwrap();
    let path = dir.path().join("last.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
    let (whole, cut) = (bytes.len().to_string(), (bytes.len() - 30).to_string());
    fails(dir.path(), &["last.safetensors", "model.norm.weight", &whole, &cut, "truncated"]);
    // A file that is too long.
    std::fs::write(&path, [bytes.as_slice(), &[0; 3]].concat()).unwrap();
    fails(dir.path(), &["last.safetensors", &whole, &(bytes.len() + 3).to_string()]);
}

#[test]
fn a_wrong_index_entry_is_named() {
    let dir = copy("nemotron");
    let tensors = read(dir.path());
    let index = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let names = tensors.keys().map(|name| (name.clone(), json!("model.safetensors")));
        let mut map: serde_json::Map<String, Value> = names.collect();
        change(&mut map);
        std::fs::write(dir.path().join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    index(&|map| map[name] = json!("model-00002-of-00002.safetensors"));
    fails(dir.path(), &["model-00002-of-00002.safetensors", name, "no such file", INDEX]);
    index(&|map| _ = map.insert("model.layers.7.extra".to_owned(), json!("model.safetensors")));
    fails(dir.path(), &["model.safetensors", "model.layers.7.extra", "not in this file", INDEX]);
    std::fs::write(dir.path().join("two.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    index(&|map| map[name] = json!("two.safetensors"));
    fails(dir.path(), &["two.safetensors", name, "model.safetensors"]);
}

#[test]
fn float_weights_of_mixed_dtypes_are_named() {
    let first = "model.layers.0.self_attn.q_proj.weight";
    // The first tensor shares a fused matrix with `first`; the second is in another layer.
    for name in ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight"] {
        for precision in [Precision::Fp8, Precision::None] {
            let dir = copy("llama");
            // F16 is as wide as BF16, so the rest of the header stays valid.
            reheader(dir.path(), |header| header[name]["dtype"] = json!("F16"));
            let error = failure(dir.path(), precision);
            for part in ["model.safetensors", name, "expected BF16", first, "got F16"] {
                assert!(error.contains(part), "`{error}` lacks `{part}`");
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (precision, tensor) in [
        (Precision::Fp8, "model.layers.0.mlp.down_proj.weight"),
        (Precision::None, "model.layers.1.self_attn.q_proj.weight"),
        (Precision::Fp8, "model.norm.weight"),
        (Precision::Fp8, "model.embed_tokens.weight"),
    ] {
        for bits in [0x7F80u16, 0x7FC0] {
            let dir = copy("llama");
            let path = dir.path().join("model.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
            let at = 8 + size + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 20;
            bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            let error = failure(dir.path(), precision);
            assert!(error.contains(tensor) && error.contains("model.safetensors"), "{error}");
        }
    }
}

#[test]
fn missing_files_and_invalid_json_are_named() {
    let dir = copy("llama");
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(ModelConfig::from_dir(dir.path()).unwrap_err().to_string().contains("config.json"));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(ModelConfig::from_dir(dir.path()).unwrap_err().to_string().contains("config.json"));
    let dir = copy("llama");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    fails(dir.path(), &["model.safetensors"]);
}

#[test]
fn an_index_with_a_path_or_a_duplicate_tensor_is_rejected() {
    let dir = copy("llama");
    let index = dir.path().join("model.safetensors.index.json");
    for file in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ""] {
        std::fs::write(&index, json!({"weight_map": {"model.norm.weight": file}}).to_string()).unwrap();
        fails(dir.path(), &["model.safetensors.index.json", "model.norm.weight"]);
    }
    std::fs::copy(dir.path().join("model.safetensors"), dir.path().join("two.safetensors")).unwrap();
    let map = json!({"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}});
    std::fs::write(&index, map.to_string()).unwrap();
    fails(dir.path(), &["two.safetensors", "also in"]);
}
