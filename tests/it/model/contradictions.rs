//! A checkpoint that states a value twice and differently gives the same logits as one that states only the
//! value that transformers uses.

use std::path::Path;

use octant::device::KvDtype;
use octant::model::{ModelConfig, Precision};
use serde_json::{Value, json};

use super::checkpoints::{IDS, Tensors, auto_fp8, directory, f32s, quantise, read, with_scales, write};
use super::{copy, edit, load, logits};

fn run(dir: &Path) -> Vec<f32> {
    logits(dir, Precision::None, KvDtype::Bf16, &IDS)
}

fn golden(name: &str, changes: Value) -> Vec<f32> {
    let dir = copy(name);
    edit(dir.path(), changes);
    run(dir.path())
}

#[test]
fn rope_scaling_wins_over_rope_parameters() {
    let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let wrong = json!({"rope_type": "default", "rope_theta": 10000.0});
    let plain = golden("llama", json!({"rope_parameters": null, "rope_scaling": scaling, "rope_theta": 5e5}));
    let both = json!({"rope_parameters": wrong, "rope_scaling": scaling, "rope_theta": 5e5});
    assert!(golden("llama", both.clone()) == plain);
    // First theta is within the scaling, then the scaling has the old name of its type.
    let mut inner = both.clone();
    inner["rope_theta"] = json!(7.0);
    inner["rope_scaling"]["rope_theta"] = json!(5e5);
    assert!(golden("llama", inner) == plain);
    let mut old = both.clone();
    old["rope_scaling"].as_object_mut().unwrap().remove("rope_type");
    old["rope_scaling"]["type"] = json!("llama3");
    assert!(golden("llama", old) == plain);
    // An empty object counts as absent.
    let mut empty = both;
    empty["rope_scaling"] = json!({});
    assert!(golden("llama", empty) == golden("llama", json!({"rope_parameters": wrong})));
    assert!(golden("llama", json!({"rope_parameters": wrong})) != plain, "the objects differ");
}

/// Doubles the values of a BF16 tensor.
fn doubled(tensors: &Tensors, name: &str) -> Vec<u8> {
    let pairs = tensors[name].2.as_chunks::<2>().0;
    pairs.iter().flat_map(|pair| (u16::from_le_bytes(*pair) + 0x80).to_le_bytes()).collect()
}

#[test]
fn a_stored_head_that_differs_from_the_embedding_it_should_share_is_used() {
    let tied = copy("llama");
    let mut tensors = read(tied.path());
    let plain = run(tied.path());
    let embedding = tensors["model.embed_tokens.weight"].clone();
    let path = tied.path().join("model.safetensors");

    // Stored twice with the same values, it is shared.
    tensors.insert("lm_head.weight".to_owned(), embedding.clone());
    write(&path, &tensors);
    let config = ModelConfig::from_dir(tied.path()).unwrap();
    assert!(config.tied && config.warnings.is_empty());
    assert!(run(tied.path()) == plain);

    // A head with one different element is a separate head.
    let mut one = embedding.clone();
    *one.2.last_mut().unwrap() ^= 1;
    tensors.insert("lm_head.weight".to_owned(), one);
    write(&path, &tensors);
    assert!(!ModelConfig::from_dir(tied.path()).unwrap().tied);

    let bytes = doubled(&tensors, "model.embed_tokens.weight");
    tensors.insert("lm_head.weight".to_owned(), (embedding.0, embedding.1, bytes));
    write(&path, &tensors);
    let config = ModelConfig::from_dir(tied.path()).unwrap();
    let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
    for part in ["tie_word_embeddings", "lm_head.weight", "differs"] {
        assert!(warning.contains(part), "`{warning}` lacks `{part}`");
    }
    let contradicting = run(tied.path());
    edit(tied.path(), json!({"tie_word_embeddings": false}));
    assert!(run(tied.path()) == contradicting && contradicting != plain);
    // The head's weights are twice the embedding's, so every logit doubles.
    assert!(contradicting.iter().zip(&plain).all(|(double, single)| *double == 2.0 * single));
}

#[test]
fn a_stored_head_of_another_type_is_compared_by_value_and_one_in_fp8_is_used() {
    let tied = copy("llama");
    let mut tensors = read(tied.path());
    let plain = run(tied.path());
    let (_, shape, bytes) = tensors["model.embed_tokens.weight"].clone();
    let wide: Vec<u8> = bytes.as_chunks::<2>().0.iter().flat_map(|pair| [0, 0, pair[0], pair[1]]).collect();
    tensors.insert("lm_head.weight".to_owned(), ("F32", shape.clone(), wide));
    write(&tied.path().join("model.safetensors"), &tensors);
    assert!(ModelConfig::from_dir(tied.path()).unwrap().tied);
    assert!(run(tied.path()) == plain);

    let codes = vec![0x38; shape[0] * shape[1]];
    tensors.insert("lm_head.weight".to_owned(), ("F8_E4M3", shape, codes));
    tensors.insert("lm_head.weight_scale".to_owned(), ("F32", vec![], f32s(&[0.5])));
    write(&tied.path().join("model.safetensors"), &tensors);
    assert!(!ModelConfig::from_dir(tied.path()).unwrap().tied);
    let ones = run(tied.path());
    assert!(ones != plain && ones.chunks(384).all(|row| row.iter().all(|x| *x == row[0])));
}

#[test]
fn a_shared_head_may_be_stored_in_the_place_of_the_embedding() {
    let dir = copy("llama");
    let plain = run(dir.path());
    let mut tensors = read(dir.path());
    let embedding = tensors.remove("model.embed_tokens.weight").unwrap();
    tensors.insert("lm_head.weight".to_owned(), embedding);
    write(&dir.path().join("model.safetensors"), &tensors);
    assert!(run(dir.path()) == plain);
    edit(dir.path(), json!({"tie_word_embeddings": false}));
    let error = load(dir.path(), Precision::None).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("model.embed_tokens.weight") && error.contains("missing"), "{error}");
}

#[test]
fn a_head_that_is_not_shared_must_be_stored() {
    let dir = copy("llama");
    edit(dir.path(), json!({"tie_word_embeddings": false}));
    let error = load(dir.path(), Precision::None).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("lm_head.weight") && error.contains("missing"), "{error}");
}

#[test]
fn the_scheme_may_be_stated_twice_but_not_differently() {
    let q = quantise("nemotron", false);
    let tensors = with_scales(&q, |s| ("F32", vec![], f32s(&s[..1])));
    let dir = directory("nemotron", &tensors, auto_fp8("dynamic"));
    let inline = run(dir.path());
    let write = |algorithm: &str| {
        let text = json!({"producer": {"name": "modelopt", "version": "0.29"},
            "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": null,
                "exclude_modules": ["lm_head"]}});
        std::fs::write(dir.path().join("hf_quant_config.json"), text.to_string()).unwrap();
    };
    write("FP8_PER_CHANNEL_PER_TOKEN");
    assert!(run(dir.path()) == inline);
    write("FP8");
    let error = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    for part in ["hf_quant_config.json", "quant_algo", "config.json", "dynamic", "static"] {
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    }
}

#[test]
fn two_files_may_name_unquantised_modules_differently_but_must_mean_the_same() {
    let q = quantise("nemotron", false);
    let tensors = with_scales(&q, |s| ("F32", vec![], f32s(&s[..1])));
    let dir = directory("nemotron", &tensors, auto_fp8("dynamic"));
    let inline = run(dir.path());
    let write = |excluded: Value| {
        let text = json!({"quantization": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
            "exclude_modules": excluded}});
        std::fs::write(dir.path().join("hf_quant_config.json"), text.to_string()).unwrap();
    };
    let refused = || load(dir.path(), Precision::None).err().map(|e| e.to_string()).unwrap_or_default();
    for same in [json!([]), json!(["*lm_head*"]), json!(["lm_head", "model.layers.9*"])] {
        write(same.clone());
        assert!(run(dir.path()) == inline, "{same}");
    }
    for other in [json!(["lm_head", "model.layers.1*"]), json!(["*"]), json!(["*.down_proj"])] {
        write(other.clone());
        let error = refused();
        for part in ["model.layers.", "`quantization_config` of config.json", "hf_quant_config.json"] {
            assert!(error.contains(part), "{other}: `{error}` lacks `{part}`");
        }
    }
    // And the other way round.
    let mut ignored = auto_fp8("dynamic");
    ignored["quantization_config"]["ignored_layers"] = json!(["lm_head", "model.layers.0.mlp.down_proj"]);
    edit(dir.path(), ignored);
    write(json!(["lm_head"]));
    let error = refused();
    assert!(error.contains("`model.layers.0.mlp.down_proj` is quantised by hf_quant_config.json"), "{error}");
}

#[test]
fn the_server_logs_what_it_makes_of_a_checkpoint_once() {
    let dir = copy("llama");
    let mut tensors = read(dir.path());
    let (dtype, shape, _) = tensors["model.embed_tokens.weight"].clone();
    let bytes = doubled(&tensors, "model.embed_tokens.weight");
    tensors.insert("lm_head.weight".to_owned(), (dtype, shape, bytes));
    write(&dir.path().join("model.safetensors"), &tensors);
    edit(dir.path(), json!({"mystery": 1}));
    std::fs::write(dir.path().join("generation_config.json"), json!({"riddle": 2}).to_string()).unwrap();
    // The start ends at the tokenizer, which is missing.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_octant"));
    let output = command.args(["serve", "--port", "0", "--model"]).arg(dir.path()).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.contains("tokenizer.json"), "{log}");
    for part in ["`lm_head.weight` differs", "not used: `mystery`", "`riddle` = 2"] {
        assert_eq!(log.matches(part).count(), 1, "`{part}` in {log}");
    }
}
