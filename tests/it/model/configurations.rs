//! `config.json` and `generation_config.json`: the values that transformers resolves
//! (`scripts/make_checkpoint_fixtures.py`), and every key read, harmless, warned about or refused.

use octant::model::{GenerationConfig, LoadError, ModelConfig};
use serde_json::{Map, Value, json};

use super::{copy, edit};
use crate::device::model::root;

/// Reads a `config.json` with these contents.
fn read(config: &Value) -> Result<ModelConfig, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    ModelConfig::from_dir(dir.path())
}

fn base(family: &str) -> Map<String, Value> {
    let names = match family {
        "llama" => json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}),
        "nemotron" => json!({"architectures": ["NemotronForCausalLM"], "model_type": "nemotron"}),
        other => panic!("no configuration of the family {other}"),
    };
    let sizes = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 384,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512});
    changed(names.as_object().unwrap(), &sizes)
}

fn changed(base: &Map<String, Value>, change: &Value) -> Map<String, Value> {
    let mut all = base.clone();
    all.extend(change.as_object().unwrap().clone());
    all
}

fn llama(change: Value) -> Result<ModelConfig, LoadError> {
    read(&Value::Object(changed(&base("llama"), &change)))
}

fn nemotron(change: Value) -> Result<ModelConfig, LoadError> {
    read(&Value::Object(changed(&base("nemotron"), &change)))
}

/// Checks that two configurations have the same values. Their norms and activations cannot be compared.
fn assert_same(got: &ModelConfig, expected: &ModelConfig) {
    assert_eq!(format!("{got:?}"), format!("{expected:?}"));
}

fn refused(config: Result<ModelConfig, LoadError>, parts: &[&str]) {
    let error = config.err().map(|e| e.to_string()).unwrap_or_default();
    for part in parts {
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    }
}

#[test]
fn configurations_are_read_as_transformers_reads_them() {
    let path = root().join("tests/data/checkpoints/configurations.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut read_rows, mut refused_rows) = (0, 0);
    for row in fixture["rows"].as_array().unwrap() {
        let family = fixture["families"][row["family"].as_str().unwrap()].as_object().unwrap();
        let config = Value::Object(changed(family, &row["change"]));
        if let Some(key) = row["refused"].as_str() {
            refused(
                read(&config),
                &["config.json", key, "expected"].map(|part| match part {
                    // A parameter that is missing has no expected value.
                    "expected" if row["change"].to_string().contains("llama3") => "",
                    part => part,
                }),
            );
            refused_rows += 1;
            continue;
        }
        let (got, expected) = (read(&config).unwrap_or_else(|e| panic!("{row}: {e}")), &row["expected"]);
        let frequencies: Vec<f64> =
            expected["inv_freq"].as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
        assert_eq!(got.inv_freq.len(), frequencies.len(), "{row}");
        for (got, expected) in got.inv_freq.iter().zip(&frequencies) {
            assert!((f64::from(*got) / expected - 1.0).abs() < 1e-6, "{row}: {got} for {expected}");
        }
        assert_eq!(json!(got.heads.head_dim), expected["head_dim"], "{row}");
        assert_eq!(got.tied, expected["tied"].as_bool().unwrap(), "{row}");
        assert_eq!(json!(got.heads.kv_heads), expected["kv_heads"], "{row}");
        assert!((f64::from(got.norm_eps) - expected["norm_eps"].as_f64().unwrap()).abs() < 1e-9, "{row}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        assert_eq!(json!(GenerationConfig::from_dir(dir.path()).unwrap().eos), expected["eos"], "{row}");
        read_rows += 1;
    }
    assert!(read_rows > 300 && refused_rows > 10, "{read_rows} read, {refused_rows} refused");
}

#[test]
fn keys_that_would_change_the_result_are_refused_with_both_values() {
    for (change, parts) in [
        (json!({"attention_bias": true}), ["attention_bias", "`false`", "got true"]),
        (json!({"mlp_bias": true}), ["mlp_bias", "`false`", "got true"]),
        (json!({"qkv_bias": true}), ["qkv_bias", "`false`", "got true"]),
        (json!({"sliding_window": 128}), ["sliding_window", "512", "got 128"]),
        (json!({"attention_chunk_size": 8}), ["attention_chunk_size", "512", "got 8"]),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            ["layer_types", "full_attention", "got \"sliding_attention\""],
        ),
        (json!({"no_rope_layers": [1, 0]}), ["no_rope_layers", "all layers", "got [1,0]"]),
        (json!({"attention_multiplier": 0.5}), ["attention_multiplier", "0.25", "got 0.5"]),
        (json!({"query_pre_attn_scalar": 256}), ["query_pre_attn_scalar", "16", "got 256"]),
        (json!({"logits_scaling": 8.0}), ["logits_scaling", "`1`", "got 8"]),
        (json!({"embedding_multiplier": 12.0}), ["embedding_multiplier", "`1`", "got 12"]),
        (json!({"residual_multiplier": 0.22}), ["residual_multiplier", "`1`", "got 0.22"]),
        (json!({"attn_logit_softcapping": 50.0}), ["attn_logit_softcapping", "no value", "got 50"]),
        (json!({"final_logit_softcapping": 30.0}), ["final_logit_softcapping", "no value", "got 30"]),
        (json!({"clip_qkv": 8.0}), ["clip_qkv", "no value", "got 8"]),
        (json!({"qk_layernorm": true}), ["qk_layernorm", "`false`", "got true"]),
        (json!({"use_qk_norm": true}), ["use_qk_norm", "`false`", "got true"]),
        (json!({"hidden_act": "gelu"}), ["hidden_act", "`silu`", "got `gelu`"]),
        (json!({"partial_rotary_factor": 0.5}), ["partial_rotary_factor", "expected 1", "got 0.5"]),
        (json!({"rope_interleave": true}), ["rope_interleave", "`false`", "got true"]),
        (json!({"rotary_emb_base": 5e5}), ["rotary_emb_base", "`rope_theta`", "got 500000"]),
        (json!({"num_local_experts": 8}), ["num_local_experts", "`0`", "got 8"]),
        (json!({"model_type": "mistral"}), ["model_type", "`llama`", "got `mistral`"]),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
            ["rope_parameters.full_attention", "all layers", "10000"],
        ),
    ] {
        refused(llama(change), &parts);
    }
    for (change, parts) in [
        (json!({"head_dim": 16, "kv_channels": 32}), ["kv_channels", "`head_dim`", "got 32"]),
        (
            json!({"partial_rotary_factor": 0.5, "rope_percent": 0.25}),
            ["rope_percent", "0.5 as in `partial_rotary_factor`", "got 0.25"],
        ),
        (
            json!({"rope_percent": 0.5, "rope_parameters": {"rope_percentage": 1.0}}),
            ["rope_percentage", "0.5 as in `rope_percent`", "got 1"],
        ),
    ] {
        refused(nemotron(change), &parts);
    }
}

#[test]
fn keys_without_an_effect_change_nothing_and_are_not_warned_about() {
    let plain = llama(json!({})).unwrap();
    assert!(plain.warnings.is_empty(), "{:?}", plain.warnings);
    let same = json!({
        "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.1, "initializer_range": 0.02,
        "pretraining_tp": 1, "use_cache": true, "torch_dtype": "float16", "dtype": "bfloat16",
        "bos_token_id": 1, "pad_token_id": -1, "transformers_version": "4.43.0.dev0", "_name_or_path": "x",
        "id2label": {"0": "A"}, "label2id": {"A": 0}, "sliding_window": null, "attn_logit_softcapping": null,
        "qk_norm": false, "layer_types": ["full_attention", "full_attention"], "logits_scaling": 1,
        "attention_multiplier": 0.25, "query_pre_attn_scalar": 16, "rope_scaling": null, "mystery": null,
        "temperature": 1.0, "top_k": 50, "max_length": 20, "no_rope_layers": [1, 1], "unsloth_version": "1",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "factor": 1.0}});
    assert_same(&llama(same).unwrap(), &plain);
    for window in [json!({"sliding_window": 512}), json!({"sliding_window": 8, "use_sliding_window": false})]
    {
        assert_same(&llama(window).unwrap(), &plain);
    }
}

#[test]
fn unknown_keys_are_warned_about_once_by_name() {
    let plain = llama(json!({})).unwrap();
    for (change, parts) in [
        (json!({"mystery": 1, "puzzle": {"a": 2}}), vec!["`mystery`, `puzzle`", "not known"]),
        (json!({"pretraining_tp": 2}), vec!["`pretraining_tp` = 2", "no effect"]),
        (json!({"temperature": 0.6}), vec!["`temperature` = 0.6", "no effect"]),
        (json!({"norm_eps": 0.5}), vec!["`norm_eps`", "not known"]),
        (json!({"auto_map": {"AutoConfig": "x.Y"}}), vec!["`auto_map`"]),
        (
            json!({"rope_scaling": {"factor": 8.0}}),
            vec!["`rope_scaling.factor` = 8.0", "no effect on `default`"],
        ),
        (json!({"rope_parameters": {"mrope_section": [2, 3, 3]}}), vec!["`rope_parameters.mrope_section`"]),
    ] {
        let got = llama(change).unwrap();
        assert_eq!(got.warnings.len(), 1, "{:?}", got.warnings);
        for part in parts {
            assert!(got.warnings[0].contains(part), "`{}` lacks `{part}`", got.warnings[0]);
        }
        assert_same(&ModelConfig { warnings: Vec::new(), ..got }, &plain);
    }
}

#[test]
fn contradictions_are_warned_about_with_both_names() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let plain = json!({"rope_type": "default", "rope_theta": 10000.0});
    for (change, parts) in [
        (
            json!({"rope_scaling": scaling, "rope_parameters": plain}),
            ["`rope_scaling` counts", "`rope_parameters`"],
        ),
        (
            json!({"rope_theta": 5e5, "rope_parameters": plain}),
            ["`rope_parameters.rope_theta` = 10000 counts", "`rope_theta` = 500000"],
        ),
        (
            json!({"rope_scaling": {"rope_type": "default", "type": "linear"}}),
            ["`rope_scaling.rope_type` = `default` counts", "`rope_scaling.type` = `linear`"],
        ),
        (
            json!({"rope_scaling": scaling, "original_max_position_embeddings": 32}),
            ["`original_max_position_embeddings` = 32 counts", "original_max_position_embeddings` = 64"],
        ),
    ] {
        let got = llama(change).unwrap().warnings;
        let [warning] = got.as_slice() else { panic!("{got:?}") };
        for part in parts {
            assert!(warning.contains(part), "`{warning}` lacks `{part}`");
        }
    }
    let got = nemotron(json!({"norm_eps": 0.5, "layer_norm_eps": 0.25})).unwrap();
    assert_eq!(got.warnings, ["`norm_eps` = 0.5 counts, and not `layer_norm_eps` = 0.25"]);
}

#[test]
fn generation_keys_without_an_effect_are_named() {
    let dir = copy("llama");
    let write = |value: Value| {
        std::fs::write(dir.path().join("generation_config.json"), value.to_string()).unwrap();
        GenerationConfig::from_dir(dir.path()).unwrap().warnings
    };
    let harmless = json!({"_from_model_config": true, "bos_token_id": 1, "eos_token_id": [2, 3],
        "do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0.0, 
        "repetition_penalty": 1.0, "transformers_version": "5.24.0", "pad_token_id": 0,
        "use_cache": true, "num_beams": 1,
        "length_penalty": 1.0, "max_length": 20, "suppress_tokens": null, "cache_implementation": "hybrid"});
    assert!(write(harmless).is_empty());
    let warnings =
        write(json!({"suppress_tokens": [7], "num_beams": 4, "max_new_tokens": 2048, "riddle": "x"}));
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    for part in ["`suppress_tokens` = [7]", "`num_beams` = 4", "`max_new_tokens` = 2048", "`riddle` = \"x\""]
    {
        assert!(warning.contains(part), "`{warning}` lacks `{part}`");
    }
}

#[test]
fn the_models_in_the_repository_need_no_warning() {
    let models =
        ["base", "instruct", "reward"].map(|name| root().join(format!("models/nemotron-4-340b-{name}")));
    let golden = ["llama", "nemotron", "wide"].map(|name| root().join("tests/data/golden").join(name));
    for dir in models.iter().chain(&golden) {
        let (config, generation) =
            (ModelConfig::from_dir(dir).unwrap(), GenerationConfig::from_dir(dir).unwrap());
        assert!(config.warnings.is_empty() && generation.warnings.is_empty(), "{config:?} {generation:?}");
    }
    let dir = copy("llama");
    edit(dir.path(), json!({"mystery": 1}));
    assert_eq!(ModelConfig::from_dir(dir.path()).unwrap().warnings.len(), 1);
}
