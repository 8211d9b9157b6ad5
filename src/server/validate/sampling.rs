//! How tokens are drawn: each number in its range, as the device will hold it.

use serde_json::{Map, Value};

use super::{Limits, MAX_LOGIT_BIAS, ranged};
use crate::request::SamplingParams;
use crate::server::error::ApiError;
use crate::server::fields::wrong;
use crate::server::types::Common;

/// Logits are divided by the temperature, so one that is almost zero would overflow; 0 itself is greedy.
const LEAST_TEMPERATURE: f32 = 1e-4;

/// Everything but what depends on when to stop and what to report.
pub(super) fn params(wire: &Common, limits: &Limits, fresh_seed: u64) -> Result<SamplingParams, ApiError> {
    let defaults = &limits.defaults;
    let or = |value: Option<f32>, default: f32| value.unwrap_or(default);
    let temperature = number("temperature", wire.temperature, "0, or from 0.0001 to 2", |t| {
        t == 0.0 || (LEAST_TEMPERATURE..=2.0).contains(&t)
    })?;
    let top_p = number("top_p", wire.top_p, "above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
    let min_p = number("min_p", wire.min_p, "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
    let repetition = number("repetition_penalty", wire.repetition_penalty, "from 0.01 to 100", |r| {
        (0.01..=100.0).contains(&r)
    })?;
    let penalty = |param, value| number(param, value, "from -2 to 2", |p: f32| (-2.0..=2.0).contains(&p));
    let top_k = ranged("top_k", wire.top_k, -1, i128::from(i32::MAX))?;
    let seed = ranged("seed", wire.seed, i128::from(i64::MIN), i128::from(u64::MAX))?;
    Ok(SamplingParams {
        temperature: or(temperature, defaults.temperature),
        top_p: or(top_p, defaults.top_p),
        top_k: top_k.map_or(defaults.top_k, |k| k.max(0) as u32),
        min_p: or(min_p, defaults.min_p),
        repetition_penalty: or(repetition, defaults.repetition_penalty),
        presence_penalty: or(penalty("presence_penalty", wire.presence_penalty)?, 0.0),
        frequency_penalty: or(penalty("frequency_penalty", wire.frequency_penalty)?, 0.0),
        logit_bias: logit_bias(wire.logit_bias.as_ref(), limits.vocab_size)?,
        // Both ranges of 64-bit integers, each by its bits.
        seed: seed.map_or(fresh_seed, |seed| seed as u64),
        logprobs: None,
        min_tokens: 0,
        barred: Vec::new(),
    })
}

/// A number that is in range after it has become an f32.
fn number(
    param: &str,
    value: Option<f64>,
    expected: &str,
    in_range: impl Fn(f32) -> bool,
) -> Result<Option<f32>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let narrow = value as f32;
    // What only rounding made zero was not meant as zero.
    let rounded_away = narrow == 0.0 && value != 0.0;
    if !narrow.is_finite() || rounded_away || !in_range(narrow) {
        return Err(ApiError::invalid(param, format!("expected a number {expected}, got {value}")));
    }
    Ok(Some(narrow))
}

fn logit_bias(map: Option<&Map<String, Value>>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = map else { return Ok(Vec::new()) };
    if map.len() > MAX_LOGIT_BIAS {
        let text = format!("expected at most {MAX_LOGIT_BIAS} entries, got {}", map.len());
        return Err(ApiError::invalid("logit_bias", text));
    }
    map.iter().map(|(key, value)| Ok((bias_id(key, vocab_size)?, bias(value)?))).collect()
}

/// A token id in decimal digits and nothing else, so that one id has one spelling.
fn bias_id(key: &str, vocab_size: usize) -> Result<u32, ApiError> {
    let digits = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (key == "0" || !key.starts_with('0'));
    match key.parse::<u32>() {
        Ok(id) if canonical && (id as usize) < vocab_size => Ok(id),
        _ => {
            let most = vocab_size.saturating_sub(1);
            Err(ApiError::invalid("logit_bias", format!("expected keys that are token ids from 0 to {most}")))
        }
    }
}

fn bias(value: &Value) -> Result<f32, ApiError> {
    match value.as_f64() {
        Some(bias) if (-100.0..=100.0).contains(&bias) => Ok(bias as f32),
        _ => Err(wrong("logit_bias", "values from -100 to 100", value)),
    }
}
