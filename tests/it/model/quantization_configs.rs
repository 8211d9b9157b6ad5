//! Quantisation configurations: lists of modules in every syntax load exactly, groups of one scheme load, and
//! each key is honoured or refused by name.

use std::collections::BTreeMap;

use octant::model::Precision;
use serde_json::{Value, json};

use super::checkpoints::{
    Quantised, Tensors, auto_fp8, compressed, directory, f32s, loads_exactly, model_opt, quantise,
    with_scales,
};
use super::load;

/// Whether a tensor is left unquantised, by its name.
type Float<'a> = &'a dyn Fn(&str) -> bool;

/// A checkpoint whose modules are quantised, except for those that `float` names.
fn partly_quantised(q: &Quantised, float: impl Fn(&str) -> bool) -> Tensors {
    let mut tensors = with_scales(q, |s| ("F32", vec![s.len(), 1], f32s(s)));
    for name in q.scales.keys().filter(|name| float(name)) {
        tensors.remove(&format!("{name}_scale"));
        tensors.insert(name.clone(), q.dequantised[name].clone());
    }
    tensors
}

/// Fails unless reading or loading fails with a message that contains all parts.
fn refused(tensors: &Tensors, config: Value, parts: &[&str]) {
    let dir = directory("llama", tensors, config.clone());
    let error = load(dir.path(), Precision::None).err().map(|e| e.to_string()).unwrap_or_default();
    for part in parts {
        assert!(error.contains(part), "{config}: `{error}` lacks `{part}`");
    }
}

fn with(mut config: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = format!("/quantization_config{parent}");
    config.pointer_mut(&parent).unwrap()[key] = value;
    config
}

#[test]
fn ignored_modules_are_found_by_expressions_names_and_classes() {
    let q = quantise("llama", true);
    let attention = |name: &str| name.contains("self_attn");
    let second = |name: &str| name.contains("layers.1.");
    let qkv = |name: &str| ["q_proj", "k_proj", "v_proj"].iter().any(|part| name.contains(part));
    let down = |name: &str| name.contains("down_proj");
    let cases: [(&[&str], Float<'_>); 14] = [
        (&["lm_head", "re:.*self_attn.*"], &attention),
        (&[r"re:model\.layers\.1\..*"], &second),
        (&[r"re:.*layers\.(1)\..*"], &second),
        (&["LlamaAttention"], &attention),
        (&["re:.*self_attn"], &attention),
        (&["re:model.layers.1"], &second),
        (&[r"re:.*\.(q|k|v)_proj$", "lm_head"], &qkv),
        (&[r"re:.*[qkv]_proj"], &qkv),
        (&[r"re:(?!.*mlp).*"], &attention),
        (&["re:.*down_proj"], &down),
        (&["model.layers.1", "lm_head"], &second),
        (&["re:.*qkv_proj"], &qkv),
        (&["model.layers.0.self_attn.qkv_proj", "model.layers.1.self_attn.qkv_proj"], &qkv),
        (&["Linear"], &|_| true),
    ];
    for (ignore, float) in cases {
        let config = with(compressed("channel", true), "/ignore", json!(ignore));
        loads_exactly("llama", &q, &partly_quantised(&q, float), config);
    }
    // The libraries quantise the linear modules of a parent whose class or name is in the list.
    for class in ["LlamaAttention", "LlamaMLP", "LlamaDecoderLayer", "model.layers.1.mlp"] {
        let config = with(compressed("channel", true), "/ignore", json!([class]));
        loads_exactly("llama", &q, &partly_quantised(&q, |_| false), config);
    }
}

#[test]
fn an_expression_is_matched_from_the_start_of_the_name() {
    let q = quantise("llama", true);
    let tensors = partly_quantised(&q, |name| name.contains("down_proj"));
    for pattern in ["re:down_proj", "re:mlp.down_proj", r"re:layers\.\d", "down_proj", "re:(?x) mlp"] {
        let config = with(compressed("channel", true), "/ignore", json!([pattern]));
        refused(&tensors, config, &["down_proj.weight", "expected F8_E4M3, got BF16"]);
    }
    for (pattern, syntax) in
        [("re:(?L)mlp", "(?L"), ("re:[", "`]` is missing"), (r"re:\p{L}", r"\p"), ("re:*", "re:*")]
    {
        let config = with(compressed("channel", true), "/ignore", json!([pattern]));
        refused(&tensors, config, &["quantization_config.ignore", pattern, syntax]);
    }
}

#[test]
fn targets_select_the_quantised_modules() {
    let q = quantise("llama", true);
    let attention = |name: &str| name.contains("self_attn");
    for targets in
        [json!(["re:.*mlp.*"]), json!(["re:.*(gate|up)_proj", "re:.*down_proj$"]), json!(["LlamaMLP"])]
    {
        let config = with(compressed("channel", true), "/config_groups/group_0/targets", targets);
        loads_exactly("llama", &q, &partly_quantised(&q, attention), config);
    }
    let config = with(compressed("channel", true), "/config_groups/group_0/targets", json!(["re:.*mlp.*"]));
    refused(&partly_quantised(&q, |_| false), config, &["q_proj.weight", "expected BF16, F16 or F32"]);
}

#[test]
fn lists_of_vllm_transformers_and_modelopt_are_read() {
    let q = quantise("llama", true);
    let second = |name: &str| name.contains("layers.1.");
    let attention = |name: &str| name.contains("self_attn");
    let names: Vec<String> =
        q.scales.keys().filter(|n| second(n)).map(|n| n.trim_end_matches(".weight").to_owned()).collect();
    for key in ["ignored_layers", "modules_to_not_convert"] {
        for list in [json!(names), json!(["model.layers.1"]), json!(["layers.1.", "lm_head"])] {
            let mut config = auto_fp8("dynamic");
            config["quantization_config"]["ignored_layers"] = json!(null);
            let config = with(config, &format!("/{key}"), list);
            loads_exactly("llama", &q, &partly_quantised(&q, second), config);
        }
    }
    let both = with(auto_fp8("dynamic"), "/modules_to_not_convert", json!(["model.layers.1"]));
    refused(&q.codes, both, &["modules_to_not_convert", "`ignored_layers`", "lm_head", "model.layers.1"]);
    for list in [json!(["*self_attn*"]), json!(["model.layers.[0-9].self_attn.?_proj"]), json!(["self_attn"])]
    {
        for key in ["ignore", "exclude_modules"] {
            let mut config = model_opt("FP8_PER_CHANNEL_PER_TOKEN");
            config["quantization_config"]["ignore"] = json!(null);
            let config = with(config, &format!("/{key}"), list.clone());
            loads_exactly("llama", &q, &partly_quantised(&q, attention), config);
        }
    }
    // A shell pattern is not an expression.
    let config = with(model_opt("FP8_PER_CHANNEL_PER_TOKEN"), "/ignore", json!([".*self_attn.*"]));
    refused(&partly_quantised(&q, attention), config, &["self_attn", "expected F8_E4M3, got BF16"]);
}

#[test]
fn several_groups_of_one_scheme_load_and_groups_of_different_schemes_are_refused() {
    let q = quantise("llama", true);
    let tensors = partly_quantised(&q, |_| false);
    let config = compressed("channel", true);
    let group = config["quantization_config"]["config_groups"]["group_0"].clone();
    let (mut attention, mut mlp) = (group.clone(), group);
    attention["targets"] = json!(["re:.*self_attn.*"]);
    mlp["targets"] = json!(["re:.*mlp.*"]);
    let two = json!({"group_0": attention, "group_1": mlp});
    loads_exactly("llama", &q, &tensors, with(config.clone(), "/config_groups", two.clone()));
    loads_exactly(
        "llama",
        &q,
        &tensors,
        with(config.clone(), "/config_groups", json!({"FP8_DYNAMIC": ["Linear"]})),
    );

    let static_inputs = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false});
    let different = with(
        with(config.clone(), "/config_groups", two.clone()),
        "/config_groups/group_1/input_activations",
        static_inputs,
    );
    refused(
        &tensors,
        different,
        &["group_1.input_activations", "dynamic", "group_0.input_activations", "got static"],
    );
    let four_bits = with(
        with(config.clone(), "/config_groups", two),
        "/config_groups/group_1/weights/num_bits",
        json!(4),
    );
    refused(&tensors, four_bits, &["group_1.weights.num_bits", "`8`", "got 4"]);
    refused(
        &tensors,
        with(config.clone(), "/config_groups", json!({})),
        &["config_groups", "at least one group"],
    );
    refused(&tensors, with(config, "/config_groups", json!({"NVFP4": ["Linear"]})), &["config_groups.NVFP4"]);
}

#[test]
fn keys_that_change_nothing_load_exactly() {
    let q = quantise("llama", true);
    let tensors = partly_quantised(&q, |_| false);
    for (key, value) in [
        ("/quantization_status", json!("compressed")),
        ("/kv_cache_scheme", json!(null)),
        (
            "/kv_cache_scheme",
            json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true,
                "dynamic": false}),
        ),
        ("/global_compression_ratio", json!(1.5)),
        ("/version", json!("0.15.1")),
        ("/sparsity_config", json!({})),
        (
            "/sparsity_config",
            json!({"format": "dense", "sparsity_structure": "unstructured", "global_sparsity": 0.1}),
        ),
        ("/transform_config", json!({})),
        ("/transform_config", json!({"config_groups": {}})),
        ("/format", json!("naive-quantized")),
        ("/a_new_key", json!(null)),
        ("/a_new_key", json!([])),
        ("/config_groups/group_0/format", json!("float-quantized")),
        ("/config_groups/group_0/output_activations", json!(null)),
        ("/config_groups/group_0/weights/actorder", json!("weight")),
        ("/config_groups/group_0/weights/observer", json!("mse")),
        ("/config_groups/group_0/weights/observer_kwargs", json!({"averaging_constant": 0.01})),
        ("/config_groups/group_0/weights/group_size", json!(-1)),
        ("/config_groups/group_0/weights/symmetric", json!(true)),
        ("/config_groups/group_0/weights/scale_dtype", json!("torch.bfloat16")),
        ("/config_groups/group_0/weights/zp_dtype", json!("torch.float8_e4m3fn")),
        ("/config_groups/group_0/weights/type", json!("FLOAT")),
    ] {
        loads_exactly("llama", &q, &tensors, with(compressed("channel", true), key, value));
    }
    for (key, value) in [
        ("/producer", json!({"name": "modelopt", "version": "0.29.0"})),
        ("/kv_cache_scheme", json!({"dynamic": false, "num_bits": 8, "type": "float"})),
        ("/kv_cache_scheme", json!("FP8")),
        ("/group_size", json!(128)),
        ("/quant_method", json!(null)),
    ] {
        let config = with(model_opt("FP8_PER_CHANNEL_PER_TOKEN"), "/quant_library", json!("modelopt"));
        loads_exactly("llama", &q, &tensors, with(config, key, value));
    }
    // The older name of the configuration, with an underscore in the method.
    let mut old = compressed("channel", true);
    old["quantization_config"]["quant_method"] = json!("compressed_tensors");
    let renamed = json!({"compression_config": old["quantization_config"]});
    loads_exactly("llama", &q, &tensors, renamed);
}

#[test]
fn keys_that_change_the_result_or_are_not_known_are_refused_with_their_value() {
    let none: Tensors = BTreeMap::new();
    let rotation = json!({"config_groups": {"R1": {"type": "hadamard", "apply": []}}});
    for (parent, key, value, parts) in [
        ("", "transform_config", rotation, vec!["transform_config.config_groups", "hadamard"]),
        (
            "",
            "sparsity_config",
            json!({"format": "sparse-24-bitmask"}),
            vec!["sparsity_config.format", "sparse-24"],
        ),
        (
            "",
            "kv_cache_scheme",
            json!({"num_bits": 8, "type": "int"}),
            vec!["kv_cache_scheme.type", "float", "int"],
        ),
        (
            "",
            "kv_cache_scheme",
            json!({"num_bits": 8, "type": "float", "strategy": "attn_head"}),
            vec!["kv_cache_scheme.strategy", "tensor", "attn_head"],
        ),
        (
            "",
            "kv_cache_scheme",
            json!({"num_bits": 8, "type": "float", "dynamic": true}),
            vec!["kv_cache_scheme.dynamic", "false", "got true"],
        ),
        ("", "a_new_key", json!("loud"), vec!["quantization_config.a_new_key", "not known", "loud"]),
        ("", "a_new_key", json!(false), vec!["quantization_config.a_new_key", "not known", "false"]),
        (
            "",
            "format",
            json!("pack-quantized"),
            vec!["quantization_config.format", "float-quantized", "pack-"],
        ),
        ("", "format", json!("mixed-precision"), vec!["quantization_config.format", "mixed-precision"]),
        ("", "moe_sparsity_config", json!({"method": "prune"}), vec!["moe_sparsity_config", "prune"]),
        (
            "/config_groups/group_0",
            "output_activations",
            json!({"num_bits": 8}),
            vec!["output_activations", "num_bits"],
        ),
        (
            "/config_groups/group_0",
            "input_activations",
            json!(null),
            vec!["group_0.input_activations", "weights alone"],
        ),
    ] {
        refused(&none, with(compressed("channel", true), &format!("{parent}/{key}"), value), &parts);
    }
}

#[test]
fn arguments_that_change_the_result_are_refused_with_both_values() {
    const WEIGHTS: &str = "/config_groups/group_0/weights";
    const INPUTS: &str = "/config_groups/group_0/input_activations";
    let none: Tensors = BTreeMap::new();
    for (parent, key, value, parts) in [
        (WEIGHTS, "actorder", json!("group"), vec!["weights.actorder", "got \"group\""]),
        (WEIGHTS, "group_size", json!(128), vec!["weights.group_size", "-1", "got 128"]),
        (WEIGHTS, "block_structure", json!([128, 128]), vec!["weights.block_structure", "got [128,128]"]),
        (WEIGHTS, "strategy", json!("block"), vec!["weights.strategy", "channel", "got `block`"]),
        (WEIGHTS, "symmetric", json!(false), vec!["weights.symmetric", "true", "got false"]),
        (WEIGHTS, "num_bits", json!(4), vec!["weights.num_bits", "8", "got 4"]),
        (WEIGHTS, "type", json!("int"), vec!["weights.type", "float", "got \"int\""]),
        (WEIGHTS, "type", json!(null), vec!["weights.type", "missing"]),
        (WEIGHTS, "dynamic", json!(true), vec!["weights.dynamic", "false", "got true"]),
        (WEIGHTS, "scale_dtype", json!("torch.uint8"), vec!["weights.scale_dtype", "torch.uint8"]),
        (WEIGHTS, "a_new_key", json!(1), vec!["weights.a_new_key", "not known", "got 1"]),
        (INPUTS, "strategy", json!("tensor"), vec!["input_activations.strategy", "dynamic per `tensor`"]),
        (INPUTS, "dynamic", json!("local"), vec!["input_activations.dynamic", "got \"local\""]),
    ] {
        refused(&none, with(compressed("channel", true), &format!("{parent}/{key}"), value), &parts);
    }
}

#[test]
fn keys_of_other_methods_are_refused_with_their_value() {
    let none: Tensors = BTreeMap::new();
    for (key, value, parts) in [
        ("weight_block_size", json!([128, 128]), vec!["weight_block_size", "[128,128]"]),
        ("scale_fmt", json!("ue8m0"), vec!["scale_fmt", "float", "ue8m0"]),
        ("fmt", json!("e5m2"), vec!["fmt", "e4m3", "e5m2"]),
        ("kv_cache_scheme", json!("int8"), vec!["kv_cache_scheme", "FP8", "int8"]),
        ("activation_scheme", json!("none"), vec!["activation_scheme", "static", "none"]),
        ("group_size", json!(64), vec!["quantization_config.group_size", "not known", "64"]),
    ] {
        refused(&none, with(auto_fp8("dynamic"), &format!("/{key}"), value), &parts);
    }
    for (key, value, parts) in [
        ("quant_algo", json!("NVFP4"), vec!["quant_algo", "FP8", "NVFP4"]),
        ("quant_algo", json!("FP8_PB_WO"), vec!["quant_algo", "FP8_PB_WO"]),
        ("kv_cache_quant_algo", json!("NVFP4"), vec!["kv_cache_quant_algo", "FP8", "NVFP4"]),
        ("kv_cache_scheme", json!("INT8"), vec!["kv_cache_scheme", "INT8"]),
        ("pre_quant_scale", json!(true), vec!["pre_quant_scale", "false", "got true"]),
        ("quantized_layers", json!({"a": {"quant_algo": "FP8"}}), vec!["quantized_layers"]),
        ("a_new_key", json!(1), vec!["a_new_key", "not known", "got 1"]),
        (
            "config_groups",
            json!({"group_0": {"weights": {"num_bits": 4, "type": "float"}, "targets": ["Linear"]}}),
            vec!["config_groups.group_0.weights.num_bits", "got 4"],
        ),
    ] {
        refused(&none, with(model_opt("FP8"), &format!("/{key}"), value), &parts);
    }
    for method in ["awq", "gptq", "fbgemm_fp8", "bitsandbytes", "mxfp4"] {
        let config = json!({"quantization_config": {"quant_method": method, "activation_scale_ub": 1200.0}});
        refused(&none, config, &["quantization_config.quant_method", "`compressed-tensors`", method]);
    }
}
