//! Reads a checkpoint's quantisation scheme: the storage format of its linear weights, and the modules left
//! unquantised.
//!
//! All supported FP8 schemes store E4M3 codes with one scale per tensor or per output row. They differ in the
//! names and shapes of the scales, and in whether activations have a stored scale.

use std::path::Path;

use super::error::LoadError;
use super::json::Object;

/// A checkpoint's quantisation scheme.
#[derive(Debug, Clone, PartialEq)]
pub enum Scheme {
    /// Weights in BF16, F16 or F32.
    None,
    /// Weights in E4M3.
    Fp8(Fp8Scheme),
}

/// Properties of an E4M3 checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Fp8Scheme {
    /// Whether every quantised module has an `input_scale`. If not, activations are scaled per token.
    pub static_activations: bool,
    /// Names or patterns of unquantised modules.
    pub ignored: Vec<String>,
    /// Whether `ignored` holds shell patterns (ModelOpt), not names and `re:` expressions.
    pub wildcards: bool,
}

impl Scheme {
    /// Reads the scheme from `quantization_config` in `config.json`, or from ModelOpt's
    /// `hf_quant_config.json`.
    pub(super) fn read(dir: &Path, config: &Object) -> Result<Self, LoadError> {
        if let Some(quant) = config.object("quantization_config")? {
            return match quant.text("quant_method")? {
                Some("fp8") => auto_fp8(&quant),
                Some("compressed-tensors") => compressed_tensors(&quant),
                Some("modelopt") => model_opt(&quant, "ignore"),
                other => Err(quant.error(
                    "quant_method",
                    format!("expected `fp8`, `compressed-tensors` or `modelopt`, got {other:?}"),
                )),
            };
        }
        let Some(file) = Object::read_if_exists(&dir.join("hf_quant_config.json"))? else {
            return Ok(Self::None);
        };
        let quant = file.object("quantization")?.ok_or_else(|| file.error("quantization", "missing"))?;
        model_opt(&quant, "exclude_modules")
    }

    /// Whether a module, for example `model.layers.0.mlp.up_proj`, has E4M3 weights.
    pub(super) fn covers(&self, module: &str) -> bool {
        match self {
            Self::None => false,
            Self::Fp8(scheme) => !scheme.ignored.iter().any(|pattern| scheme.matches(pattern, module)),
        }
    }
}

impl Fp8Scheme {
    fn matches(&self, pattern: &str, module: &str) -> bool {
        if self.wildcards {
            // Files from older ModelOpt versions list suffixes.
            return wildcard(pattern.as_bytes(), module.as_bytes()) || module.ends_with(pattern);
        }
        // Supports the one form of expression in use: `re:.*name`, which matches a suffix.
        let suffix = pattern.strip_prefix("re:.*").map(|rest| rest.trim_end_matches('$').replace('\\', ""));
        suffix.map_or(pattern == module, |suffix| module.ends_with(&suffix))
    }
}

/// Matches a shell pattern of `*` and `?`.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skip| wildcard(rest, &text[skip..])),
        (Some((p, pattern)), Some((t, text))) if *p == b'?' || p == t => wildcard(pattern, text),
        _ => false,
    }
}

fn auto_fp8(quant: &Object) -> Result<Scheme, LoadError> {
    if let Some(block) = quant.get("weight_block_size") {
        return Err(quant.error("weight_block_size", format!("block scales are not supported, got {block}")));
    }
    let static_activations = match quant.text("activation_scheme")? {
        Some("static") => true,
        Some("dynamic") => false,
        other => {
            return Err(
                quant.error("activation_scheme", format!("expected `static` or `dynamic`, got {other:?}"))
            );
        }
    };
    let ignored = quant.texts("ignored_layers")?;
    Ok(Scheme::Fp8(Fp8Scheme { static_activations, ignored, wildcards: false }))
}

fn compressed_tensors(quant: &Object) -> Result<Scheme, LoadError> {
    let format = quant.text("format")?;
    if format != Some("float-quantized") {
        return Err(quant.error("format", format!("expected `float-quantized`, got {format:?}")));
    }
    let groups = quant.object("config_groups")?.ok_or_else(|| quant.error("config_groups", "missing"))?;
    let groups = groups.objects()?;
    let [group] = groups.as_slice() else {
        return Err(quant.error("config_groups", format!("expected one group, got {}", groups.len())));
    };
    let weights = group.object("weights")?.ok_or_else(|| group.error("weights", "missing"))?;
    check_fp8(&weights)?;
    match weights.text("strategy")? {
        Some("tensor" | "channel") => {}
        other => {
            return Err(weights.error("strategy", format!("expected `tensor` or `channel`, got {other:?}")));
        }
    }
    let inputs =
        group.object("input_activations")?.ok_or_else(|| group.error("input_activations", "missing"))?;
    check_fp8(&inputs)?;
    let dynamic = inputs.flag("dynamic")?.unwrap_or(false);
    let strategy = inputs.text("strategy")?;
    if !matches!((dynamic, strategy), (true, Some("token")) | (false, Some("tensor"))) {
        let message = format!("expected dynamic per `token` or static per `tensor`, got {strategy:?}");
        return Err(inputs.error("strategy", message));
    }
    let ignored = quant.texts("ignore")?;
    Ok(Scheme::Fp8(Fp8Scheme { static_activations: !dynamic, ignored, wildcards: false }))
}

fn check_fp8(args: &Object) -> Result<(), LoadError> {
    let bits = args.count("num_bits")?;
    let kind = args.text("type")?;
    if bits != Some(8) || kind != Some("float") {
        return Err(args.error("num_bits", format!("expected 8-bit float, got {bits:?}-bit {kind:?}")));
    }
    Ok(())
}

fn model_opt(quant: &Object, ignore_key: &str) -> Result<Scheme, LoadError> {
    let static_activations = match quant.text("quant_algo")? {
        Some("FP8") => true,
        Some("FP8_PER_CHANNEL_PER_TOKEN") => false,
        other => {
            let message = format!("expected `FP8` or `FP8_PER_CHANNEL_PER_TOKEN`, got {other:?}");
            return Err(quant.error("quant_algo", message));
        }
    };
    let ignored = quant.texts(ignore_key)?;
    Ok(Scheme::Fp8(Fp8Scheme { static_activations, ignored, wildcards: true }))
}
