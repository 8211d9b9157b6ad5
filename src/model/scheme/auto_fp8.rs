//! `quant_method` `fp8`: vLLM's and AutoFP8's format, with one scale per tensor.

use super::super::error::LoadError;
use super::super::json::Object;
use super::{Fp8Scheme, Syntax, kv_cache, list_of_two_names};

pub(super) fn read(quant: &Object) -> Result<Fp8Scheme, LoadError> {
    if let Some(block) = quant.get("weight_block_size") {
        return Err(quant.error("weight_block_size", format!("block scales are not supported, got {block}")));
    }
    quant.require_known(
        &["quant_method", "activation_scheme", "ignored_layers", "modules_to_not_convert", "kv_cache_scheme"],
        &[
            ("weight_block_size", &[]),
            ("fmt", &["\"e4m3\""]),
            ("scale_fmt", &["\"float\""]),
            ("expert_dtype", &["\"fp8\""]),
            ("dequantize", &["false"]),
            ("modules_to_convert", &["[]"]),
        ],
        &[],
    )?;
    kv_cache::check(quant)?;
    let static_activations = match quant.text("activation_scheme")?.map(str::to_lowercase).as_deref() {
        Some("static") => true,
        Some("dynamic") => false,
        other => {
            let message = format!("expected `static` or `dynamic`, got {other:?}");
            return Err(quant.error("activation_scheme", message));
        }
    };
    let ignored = list_of_two_names(quant, ["ignored_layers", "modules_to_not_convert"], Syntax::Parts)?;
    Ok(Fp8Scheme { static_activations, targets: None, ignored, file: None })
}
