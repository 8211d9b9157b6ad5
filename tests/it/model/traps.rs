//! Common mistakes in implementing the two model families, with the tests that catch them.
//!
//! | trap | tests |
//! |---|---|
//! | rotary embedding pairs halves | `unquantised_nemotron_is_within_the_bfloat16_error_of_float32` |
//! | the rotary fraction has four names | `every_name_of_the_rotary_fraction_is_read_in_both_formats` |
//! | its default is one half for Nemotron | `by_default_nemotron_rotates_half_and_llama_all_dimensions` |
//! | | `frequencies_are_spaced_over_the_rotated_dimensions` |
//! | LayerNorm1p adds 1 to its weight, once, in F32 | `layer_norm_1p_adds_one_to_the_weight_in_f32` |
//! | norms have biases, although the paper says "no bias" | `every_norm_weight_and_bias_is_used` |
//! | LayerNorm subtracts the mean | `nemotron_subtracts_the_mean_has_biases_and_no_gate` |
//! | the head size has three sources | `the_head_size_has_three_sources` |
//! | the epsilon has two names | `the_epsilon_has_two_names` |
//! | the number of KV heads may be missing | `without_kv_heads_every_query_head_has_its_own` |
//! | squared ReLU exceeds the range of F16 | `squared_relu_exceeds_the_range_of_f16` |
//! | `apply_query_key_layer_scaling` changes nothing | `query_key_layer_scaling_has_no_effect` |
//! | merging Q, K and V must not requantise | `all_forms_of_per_tensor_scales_load_exactly` |
//! | | `all_forms_of_per_channel_scales_load_exactly` |

use octant::device::{Activation, KvDtype, NormKind};
use octant::model::{GenerationConfig, ModelConfig, Precision};
use serde_json::json;

use super::{copy, edit, logits};

fn config(name: &str, changes: serde_json::Value) -> ModelConfig {
    let dir = copy(name);
    edit(dir.path(), changes);
    ModelConfig::from_dir(dir.path()).unwrap()
}

#[test]
fn every_name_of_the_rotary_fraction_is_read_in_both_formats() {
    for key in ["partial_rotary_factor", "rope_percent", "rope_percentage", "rope_pct"] {
        let mut old = json!({"rope_parameters": null, "rope_theta": 10000.0});
        old[key] = json!(0.25);
        assert_eq!(
            config("nemotron", old).inv_freq.len(),
            2,
            "{key} at top level: 4 of 16 dimensions rotate"
        );
        let mut new = json!({"rope_parameters": {"rope_theta": 10000.0}});
        new["rope_parameters"][key] = json!(0.25);
        assert_eq!(config("nemotron", new).inv_freq.len(), 2, "{key} nested");
    }
}

#[test]
fn by_default_nemotron_rotates_half_and_llama_all_dimensions() {
    let bare = json!({"rope_parameters": null, "rope_theta": 10000.0});
    assert_eq!(config("nemotron", bare.clone()).inv_freq.len(), 4);
    assert_eq!(config("llama", bare).inv_freq.len(), 8);
}

#[test]
fn frequencies_are_spaced_over_the_rotated_dimensions() {
    let expected: Vec<f32> = (0..4).map(|i| 10000f64.powf(-2.0 * f64::from(i) / 8.0) as f32).collect();
    assert_eq!(config("nemotron", json!({})).inv_freq, expected, "8 dimensions rotate, not 16");
}

#[test]
fn query_key_layer_scaling_has_no_effect() {
    let dir = copy("nemotron");
    let run = || logits(dir.path(), Precision::None, KvDtype::Bf16, &[5, 80, 33, 7]);
    let config = || format!("{:?}", ModelConfig::from_dir(dir.path()).unwrap());
    let without = (config(), run());
    edit(dir.path(), json!({"apply_query_key_layer_scaling": true, "attention_softmax_in_fp32": false}));
    assert_eq!((config(), run()), without);
}

#[test]
fn llama3_scaling_is_read_in_both_formats() {
    let nested = config("llama", json!({}));
    let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let old =
        config("llama", json!({"rope_parameters": null, "rope_theta": 10000.0, "rope_scaling": scaling}));
    assert_eq!(nested.inv_freq, old.inv_freq);
    let plain = config("llama", json!({"rope_parameters": null, "rope_theta": 10000.0}));
    assert_eq!(nested.inv_freq[0], plain.inv_freq[0], "short wavelengths are kept");
    assert_eq!(
        nested.inv_freq[7],
        plain.inv_freq[7] / 4.0,
        "frequencies of long ones are divided by the factor"
    );
}

#[test]
fn the_epsilon_has_two_names() {
    assert_eq!(config("nemotron", json!({"norm_eps": 0.5})).norm_eps, 0.5);
    assert_eq!(config("nemotron", json!({"norm_eps": null, "layer_norm_eps": 0.25})).norm_eps, 0.25);
}

#[test]
fn the_head_size_has_three_sources() {
    assert_eq!(config("nemotron", json!({"head_dim": 24})).heads.head_dim, 24);
    assert_eq!(config("nemotron", json!({"head_dim": null, "kv_channels": 40})).heads.head_dim, 40);
    assert_eq!(config("llama", json!({"head_dim": null})).heads.head_dim, 16, "hidden / heads");
}

#[test]
fn without_kv_heads_every_query_head_has_its_own() {
    let heads = config("nemotron", json!({"num_key_value_heads": null})).heads;
    assert_eq!(heads.kv_heads, heads.q_heads);
}

#[test]
fn nemotron_subtracts_the_mean_has_biases_and_no_gate() {
    let nemotron = config("nemotron", json!({}));
    assert!(matches!(nemotron.norm, NormKind::LayerNorm1p));
    assert!(matches!(nemotron.activation, Activation::SquaredRelu));
    assert!(!nemotron.tied);
    assert_eq!(nemotron.linear_shapes()[2], (128, 64), "one matrix up, no gate");
}

#[test]
fn every_norm_weight_and_bias_is_used() {
    // Changing the weight or bias of any of the five norms changes the logits.
    let dir = copy("nemotron");
    let ids = [5, 80, 33, 7];
    let before = logits(dir.path(), Precision::None, KvDtype::Bf16, &ids);
    let path = dir.path().join("model.safetensors");
    let original = std::fs::read(&path).unwrap();
    let size = u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&original[8..8 + size]).unwrap();
    let norms: Vec<&String> =
        header.as_object().unwrap().keys().filter(|name| name.contains("norm")).collect();
    assert_eq!(norms.len(), 10, "weight and bias of two norms a layer and the last");
    for name in norms {
        let mut bytes = original.clone();
        let at = 8 + size + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 2].copy_from_slice(&0x4040u16.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert!(
            logits(dir.path(), Precision::None, KvDtype::Bf16, &ids) != before,
            "{name} = 3 changes nothing"
        );
    }
}

#[test]
fn end_of_sequence_ids_come_from_the_generation_config_first() {
    let dir = copy("llama");
    assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap().eos, [2]);
    let text = json!({"eos_token_id": [5, 3], "temperature": 0.5, "top_k": 7}).to_string();
    std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
    let generation = GenerationConfig::from_dir(dir.path()).unwrap();
    assert_eq!(generation.eos, [5, 3]);
    assert_eq!(json!(generation.sampling), json!({"temperature": 0.5, "top_k": 7}));
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [5.0, 3]}"#).unwrap();
    assert_eq!(GenerationConfig::from_dir(dir.path()).unwrap().eos, [5, 3]);
    for bad in [json!(-1), json!([2, 1.5]), json!("2"), json!(4_294_967_296_u64)] {
        let text = json!({ "eos_token_id": bad }).to_string();
        std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        let error = GenerationConfig::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("eos_token_id") && error.contains(&bad.to_string()), "{error}");
    }
}

#[test]
fn end_of_sequence_ids_must_be_in_the_vocabulary() {
    let named = GenerationConfig { eos: vec![2, 99], ..GenerationConfig::default() };
    assert_eq!(named.eos_within(Some(7), 100).unwrap(), [2, 99]);
    let error = named.eos_within(None, 99).unwrap_err().to_string();
    assert!(error.contains("eos_token_id") && error.contains("below 99, got 99"), "{error}");
    assert_eq!(GenerationConfig::default().eos_within(Some(7), 100).unwrap(), [7], "the tokenizer's");
}

#[test]
fn a_model_without_sampling_is_greedy() {
    let dir = copy("llama");
    let read = |value: serde_json::Value| {
        std::fs::write(dir.path().join("generation_config.json"), value.to_string()).unwrap();
        let generation = GenerationConfig::from_dir(dir.path()).unwrap();
        (json!(generation.sampling), generation.warnings)
    };
    let sampling = json!({"do_sample": false, "temperature": 0.6, "top_p": 0.9});
    assert_eq!(read(sampling), (json!({"temperature": 0, "top_p": 0.9}), Vec::new()));
    let warning = "generation_config.json: do_sample: expected true or false, got \"no\"; not used";
    assert_eq!(read(json!({"do_sample": "no"})), (json!({}), vec![warning.to_owned()]));
}
