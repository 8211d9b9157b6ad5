//! Checks the scheme of a checkpoint's KV cache: E4M3 with one stored scale per layer for K and one for V, or
//! none.

use super::super::error::LoadError;
use super::super::json::Object;

/// Checks `kv_cache_scheme`, which some exporters write as a name.
///
/// # Errors
/// The cache is to be quantised in another way.
pub(super) fn check(quant: &Object) -> Result<(), LoadError> {
    const KEY: &str = "kv_cache_scheme";
    if let Some(name) = quant.get(KEY).and_then(|value| value.as_str()) {
        return match name.to_lowercase().as_str() {
            "fp8" | "static" => Ok(()),
            _ => Err(quant.error(KEY, format!("expected `FP8` or `static`, got `{name}`"))),
        };
    }
    let Some(scheme) = quant.object(KEY)? else { return Ok(()) };
    scheme.require_known(
        &[],
        &[
            ("num_bits", &["8"]),
            ("type", &["\"float\""]),
            ("strategy", &["\"tensor\""]),
            ("symmetric", &["true"]),
            ("dynamic", &["false"]),
            ("group_size", &[]),
            ("block_structure", &[]),
            ("actorder", &["false"]),
            ("scale_dtype", super::SCALE_DTYPES),
        ],
        super::CALIBRATION,
    )?;
    if scheme.get("type").is_none() {
        return Err(scheme.error("type", "missing, expected `float`"));
    }
    Ok(())
}
