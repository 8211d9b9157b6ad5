//! `quant_method` `compressed-tensors`: the format of llm-compressor.

use serde_json::{Value, json};

use super::super::error::LoadError;
use super::super::json::Object;
use super::super::key_rules::Neutral;
use super::{CALIBRATION, Fp8Scheme, ModuleList, SCALE_DTYPES, Syntax, kv_cache, module_list};

/// Names of the formats that store E4M3 codes as they are.
const FORMATS: &[&str] = &["\"float-quantized\"", "\"naive-quantized\""];

/// The arguments of a quantisation that change the result.
const ARGS: [Neutral; 7] = [
    ("symmetric", &["true"]),
    ("group_size", &["-1"]),
    ("block_structure", &[]),
    // `weight`, also called `static`, orders the columns during calibration only.
    ("actorder", &["false", "\"weight\"", "\"static\""]),
    ("scale_dtype", SCALE_DTYPES),
    ("num_bits", &["8"]),
    ("type", &["\"float\"", "\"FLOAT\""]),
];

pub(super) fn read(quant: &Object) -> Result<Fp8Scheme, LoadError> {
    check_keys(quant)?;
    kv_cache::check(quant)?;
    let groups = quant.object("config_groups")?.ok_or_else(|| quant.error("config_groups", "missing"))?;
    let mut targets = Vec::new();
    let mut first: Option<(Object, bool)> = None;
    for (name, value) in groups.entries() {
        let group = preset(&groups, name, value)?;
        let dynamic = dynamic_activations(&group)?;
        if let Some((other, before)) = first.as_ref().filter(|(_, before)| *before != dynamic) {
            let kind = |dynamic| if dynamic { "dynamic" } else { "static" };
            let message = format!(
                "expected {} activation scales as in `{}`, got {}",
                kind(*before),
                other.path_of("input_activations"),
                kind(dynamic)
            );
            return Err(group.error("input_activations", message));
        }
        if group.get("targets").is_none() {
            return Err(group.error("targets", "missing"));
        }
        targets.extend(group.texts("targets")?);
        first.get_or_insert((group, dynamic));
    }
    let Some((_, dynamic)) = first else {
        return Err(quant.error("config_groups", "expected at least one group, got none"));
    };
    let targets = ModuleList::new(Syntax::Named, &targets);
    let targets = targets.map_err(|error| quant.error("config_groups", error.to_string()))?;
    let ignored = module_list(quant, "ignore", Syntax::Named)?;
    Ok(Fp8Scheme { static_activations: !dynamic, targets: Some(targets), ignored, file: None })
}

/// Checks the keys outside the groups.
fn check_keys(quant: &Object) -> Result<(), LoadError> {
    const STATES: &[&str] = &["\"compressed\"", "\"frozen\"", "\"initialized\"", "\"calibration\""];
    if quant.get("format").is_none() {
        return Err(quant.error("format", "missing, expected `float-quantized`"));
    }
    quant.require_known(
        &[
            "quant_method",
            "config_groups",
            "ignore",
            "kv_cache_scheme",
            "sparsity_config",
            "transform_config",
        ],
        &[
            ("format", FORMATS),
            ("quantization_status", STATES),
            ("dequantize", &["false"]),
            ("moe_sparsity_config", &["{}"]),
        ],
        &[
            "version",
            "compressed-tensors_version",
            "global_compression_ratio",
            "run_compressed",
            "use_optimized_inference",
        ],
    )?;
    // Sparse weights that are stored dense, zeros included, are weights like any other.
    if let Some(sparsity) = quant.object("sparsity_config")?
        && sparsity.entries().next().is_some()
    {
        match sparsity.text("format")? {
            Some("dense") => {}
            other => return Err(sparsity.error("format", format!("expected `dense`, got {other:?}"))),
        }
    }
    if let Some(transforms) = quant.object("transform_config")? {
        transforms.require_known(&[], &[("config_groups", &["{}"])], &[])?;
    }
    Ok(())
}

/// Returns the group at `name`. If `value` is only a list of targets, `name` is that of a preset scheme.
fn preset(groups: &Object, name: &str, value: &Value) -> Result<Object, LoadError> {
    if !value.is_array() {
        return groups.object(name)?.ok_or_else(|| groups.error(name, "expected an object, got null"));
    }
    let (weights, inputs) = match name.to_uppercase().as_str() {
        "FP8" => ("tensor", json!({ "dynamic": false, "strategy": "tensor" })),
        "FP8_DYNAMIC" => ("channel", json!({ "dynamic": true, "strategy": "token" })),
        _ => return Err(groups.error(name, "expected the preset `FP8` or `FP8_DYNAMIC`, or an object")),
    };
    let mut group = json!({
        "targets": value,
        "weights": { "num_bits": 8, "type": "float", "strategy": weights },
        "input_activations": inputs,
    });
    group["input_activations"]["num_bits"] = json!(8);
    group["input_activations"]["type"] = json!("float");
    Ok(groups.nested(name, group))
}

/// Checks a group, and returns whether its activations are scaled when they are computed.
fn dynamic_activations(group: &Object) -> Result<bool, LoadError> {
    group.require_known(
        &["targets", "weights", "input_activations"],
        &[("output_activations", &[]), ("format", FORMATS)],
        &[],
    )?;
    let weights = group.object("weights")?.ok_or_else(|| group.error("weights", "missing"))?;
    check_args(&weights)?;
    weights.require_neutral(&[("dynamic", &["false"])])?;
    match strategy(&weights)?.as_str() {
        "tensor" | "channel" => {}
        other => {
            return Err(weights.error("strategy", format!("expected `tensor` or `channel`, got `{other}`")));
        }
    }
    let inputs = group.object("input_activations")?.ok_or_else(|| {
        group.error("input_activations", "missing; weights alone in E4M3 are not supported")
    })?;
    check_args(&inputs)?;
    inputs.require_neutral(&[("dynamic", &["true", "false"])])?;
    let dynamic = inputs.flag("dynamic")?.unwrap_or(false);
    let strategy = strategy(&inputs)?;
    if !matches!((dynamic, strategy.as_str()), (true, "token") | (false, "tensor")) {
        let kind = if dynamic { "dynamic" } else { "static" };
        let message =
            format!("expected dynamic per `token` or static per `tensor`, got {kind} per `{strategy}`");
        return Err(inputs.error("strategy", message));
    }
    Ok(dynamic)
}

/// Checks that the arguments of a quantisation mean E4M3 without groups.
pub(super) fn check_args(args: &Object) -> Result<(), LoadError> {
    args.require_known(&["strategy", "dynamic"], &ARGS, CALIBRATION)?;
    match args.get("type") {
        // The default of the library is an integer.
        None => Err(args.error("type", "missing, expected `float`")),
        Some(_) => Ok(()),
    }
}

/// The part of a tensor that shares a scale.
fn strategy(args: &Object) -> Result<String, LoadError> {
    let default = if args.get("group_size").is_some() { "channel" } else { "tensor" };
    Ok(args.text("strategy")?.unwrap_or(default).to_lowercase())
}
