//! NVIDIA's ModelOpt: `quant_method` `modelopt` in `config.json`, or the file `hf_quant_config.json`.

use super::super::error::LoadError;
use super::super::json::Object;
use super::compressed_tensors::check_args;
use super::{Fp8Scheme, ModuleList, Syntax, kv_cache, list_of_two_names};

/// Reads `hf_quant_config.json`.
pub(super) fn read_file(file: &Object) -> Result<Fp8Scheme, LoadError> {
    file.require_known(&["quantization"], &[], &["producer", "quant_method"])?;
    let quant = file.object("quantization")?.ok_or_else(|| file.error("quantization", "missing"))?;
    read(&quant)
}

/// Reads the configuration in `config.json`, or the part of the file that has the same keys.
pub(super) fn read(quant: &Object) -> Result<Fp8Scheme, LoadError> {
    if quant.get("quantization").is_some() {
        return read_file(quant);
    }
    quant.require_known(
        &[
            "quant_algo",
            "config_groups",
            "ignore",
            "exclude_modules",
            "kv_cache_scheme",
            "kv_cache_quant_algo",
        ],
        &[
            ("has_zero_point", &["false"]),
            ("pre_quant_scale", &["false"]),
            ("use_meta_recipe", &["false"]),
            ("clamp_val", &[]),
            ("quantized_layers", &["{}"]),
        ],
        // The two supported algorithms have no groups and no smoothing, whatever these keys say.
        &["quant_method", "quant_library", "producer", "group_size", "awq_block_size", "smoothquant_val"],
    )?;
    kv_cache::check(quant)?;
    match quant.text("kv_cache_quant_algo")?.map(str::to_uppercase).as_deref() {
        None | Some("FP8") => {}
        Some(other) => {
            return Err(
                quant.error("kv_cache_quant_algo", format!("expected `FP8` or `null`, got `{other}`"))
            );
        }
    }
    let static_activations = match quant.text("quant_algo")?.map(str::to_uppercase).as_deref() {
        Some("FP8") => true,
        Some("FP8_PER_CHANNEL_PER_TOKEN") => false,
        other => {
            let message = format!("expected `FP8` or `FP8_PER_CHANNEL_PER_TOKEN`, got {other:?}");
            return Err(quant.error("quant_algo", message));
        }
    };
    let targets = targets(quant)?;
    let ignored = list_of_two_names(quant, ["ignore", "exclude_modules"], Syntax::Shell)?;
    Ok(Fp8Scheme { static_activations, targets, ignored, file: None })
}

/// Reads the quantised modules of `config_groups`, which repeat what `quant_algo` says.
fn targets(quant: &Object) -> Result<Option<ModuleList>, LoadError> {
    let Some(groups) = quant.object("config_groups")? else { return Ok(None) };
    let mut targets = Vec::new();
    for (name, _) in groups.entries() {
        let Some(group) = groups.object(name)? else { continue };
        group.require_known(&["targets", "weights", "input_activations"], &[], &[])?;
        for key in ["weights", "input_activations"] {
            if let Some(args) = group.object(key)? {
                check_args(&args)?;
            }
        }
        targets.extend(group.texts("targets")?);
    }
    if targets.is_empty() {
        return Ok(None);
    }
    let list = ModuleList::new(Syntax::Named, &targets);
    list.map(Some).map_err(|error| quant.error("config_groups", error.to_string()))
}
