//! Refusals of `octant quantize`: the error names the cause, and the output does not look complete.

use std::path::Path;

use octant::model::{ModelConfig, Precision};
use octant::offline::Granularity;
use serde_json::json;

use super::{Tensors, files, is_linear, json_of, quantize, read, write};
use crate::device::model::{fixture, load};

/// Copies a fixture's model, so that a test can change it.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// Asserts that quantising fails with a message that holds all `parts`, and leaves nothing that can be
/// loaded.
fn fails(dir: &Path, parts: &[&str]) {
    for granularity in [Granularity::Channel, Granularity::Tensor] {
        let out = tempfile::tempdir().unwrap();
        let error = quantize(dir, out.path(), granularity).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
        assert!(load(out.path(), Precision::Fp8).is_err());
        let left = files(out.path());
        let whole = left.keys().find(|name| name.ends_with(".json") || name.ends_with(".safetensors"));
        assert!(whole.is_none(), "left {whole:?}");
    }
}

/// Copies a fixture's model with changed tensors.
fn changed(name: &str, change: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let dir = copy(name);
    let mut tensors = read(dir.path());
    change(&mut tensors);
    write(&dir.path().join("model.safetensors"), &tensors);
    dir
}

#[test]
fn nan_and_infinite_weights_are_named() {
    for name in [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.bias",
    ] {
        for bits in [0x7F80u16, 0xFF80, 0x7FC0] {
            let dir = changed("nemotron", |tensors| {
                tensors.get_mut(name).unwrap().2[20..22].copy_from_slice(&bits.to_le_bytes());
            });
            fails(dir.path(), &["model.safetensors", name, "row", "NaN or infinity"]);
        }
    }
}

#[test]
fn a_quantised_model_is_not_quantised_again() {
    let once = tempfile::tempdir().unwrap();
    quantize(&fixture("nemotron"), once.path(), Granularity::Channel).unwrap();
    fails(once.path(), &["config.json", "quantization_config", "quantised already"]);
    // Codes without a quantization_config are refused too.
    let codes = changed("nemotron", |tensors| {
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| is_linear(name)) {
            tensor.2.truncate(tensor.2.len() / 2);
            tensor.0 = "F8_E4M3".to_owned();
        }
    });
    fails(codes.path(), &["_proj.weight", "expected BF16, F16 or F32", "F8_E4M3"]);
}

#[test]
fn missing_surplus_and_misshapen_tensors_are_named() {
    let name = "model.layers.1.mlp.down_proj.weight";
    fails(changed("nemotron", |t| _ = t.remove(name)).path(), &[name, "missing"]);
    let extra = changed("nemotron", |t| {
        let tensor = t[name].clone();
        t.insert("model.layers.2.mlp.down_proj.weight".to_owned(), tensor);
    });
    fails(extra.path(), &["model.layers.2.mlp.down_proj.weight", "not part of this model"]);
    let turned = changed("nemotron", |t| t.get_mut(name).unwrap().1 = vec![128, 64]);
    fails(turned.path(), &[name, "expected shape [64, 128], got [128, 64]"]);
}

#[test]
fn truncated_files_are_named() {
    let dir = copy("nemotron");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 5, 200, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        fails(dir.path(), &["model.safetensors"]);
    }
}

#[test]
fn a_directory_with_other_files_is_not_written_to() {
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("notes.txt"), "mine").unwrap();
    let error = quantize(&fixture("nemotron"), out.path(), Granularity::Channel).unwrap_err().to_string();
    assert!(error.contains("expected an empty directory") && error.contains("notes.txt"), "{error}");
    assert_eq!(files(out.path()).len(), 1);
    let dir = copy("nemotron");
    let before = files(dir.path());
    let error = quantize(dir.path(), dir.path(), Granularity::Channel).unwrap_err().to_string();
    assert!(error.contains("expected an empty directory"), "{error}");
    assert!(files(dir.path()) == before);
}

#[test]
fn a_reward_head_needs_the_reward_architecture_and_the_right_shape() {
    let head = |shape: &[usize]| {
        let bytes = vec![0; shape.iter().product::<usize>() * 2];
        ("BF16".to_owned(), shape.to_vec(), bytes)
    };
    let reward = |tensors: &[(&str, &[usize])], architecture: &str| {
        let dir = changed("nemotron", |all| {
            all.extend(tensors.iter().map(|(name, shape)| ((*name).to_owned(), head(shape))));
        });
        let mut config = json_of(&dir.path().join("config.json"));
        config["architectures"] = json!([architecture]);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        dir
    };
    let weight: (&str, &[usize]) = ("rm_head.weight", &[9, 64]);
    let bias: (&str, &[usize]) = ("rm_head.bias", &[9]);
    let architecture = "NemotronForSequenceClassification";
    for tensors in [&[weight][..], &[weight, bias]] {
        let dir = reward(tensors, architecture);
        assert_eq!(ModelConfig::from_dir(dir.path()).unwrap().reward_width(), 9);
        load(dir.path(), Precision::Fp8).unwrap();
        let out = tempfile::tempdir().unwrap();
        quantize(dir.path(), out.path(), Granularity::Channel).unwrap();
        assert_eq!(read(out.path())["rm_head.weight"], head(&[9, 64]), "the reward head is copied unchanged");
        load(out.path(), Precision::Fp8).unwrap();
    }
    let refused = |tensors: &[(&str, &[usize])], architecture: &str, parts: &[&str]| {
        let error = load(reward(tensors, architecture).path(), Precision::Fp8).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    };
    refused(&[weight], "NemotronForCausalLM", &["rm_head.weight", "not part of this model"]);
    refused(&[], architecture, &["rm_head.weight", "missing"]);
    refused(&[("rm_head.weight", &[9, 32])], architecture, &["rm_head.weight", "[9, 64]", "[9, 32]"]);
    refused(&[weight, ("rm_head.bias", &[8])], architecture, &["rm_head.bias", "[9]", "[8]"]);
}
