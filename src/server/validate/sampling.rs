//! Validation of the sampling parameters.

use serde_json::{Map, Value};

use super::limits::{Limits, MAX_LOGIT_BIAS};
use super::values::in_range;
use crate::request::SamplingParams;
use crate::server::error::ApiError;
use crate::server::fields::wrong_type;
use crate::server::types::CommonFields;

/// Smallest temperature above 0, as in vLLM. Logits are divided by the temperature and could overflow with a
/// smaller one. Temperature 0 means greedy decoding.
const LEAST_TEMPERATURE: f64 = 0.01;

/// Reads the sampling parameters, except `min_tokens`, `barred` and `logprobs`, which the caller sets.
pub(super) fn params(
    wire: &CommonFields,
    limits: &Limits,
    fresh_seed: u64,
) -> Result<SamplingParams, ApiError> {
    let defaults = &limits.defaults;
    let or = |value: Option<f32>, default: f32| value.unwrap_or(default);
    let temperature = number("temperature", wire.temperature.map(raised), 0.0, 2.0)?;
    let top_p = number("top_p", wire.top_p, 0.0, 1.0)?;
    // The most probable token alone, as with temperature 0.
    let greedy = top_p == Some(0.0);
    let min_p = number("min_p", wire.min_p, 0.0, 1.0)?;
    let repetition = number("repetition_penalty", wire.repetition_penalty, 0.01, 100.0)?;
    let penalty = |param, value| number(param, value, -2.0, 2.0);
    let top_k = in_range("top_k", wire.top_k, -1, i128::from(i32::MAX))?;
    let seed = in_range("seed", wire.seed, i128::from(i64::MIN), i128::from(u64::MAX))?;
    Ok(SamplingParams {
        temperature: if greedy { 0.0 } else { or(temperature, raised(defaults.temperature.into()) as f32) },
        top_p: if greedy { 1.0 } else { or(top_p, defaults.top_p) },
        top_k: top_k.map_or(defaults.top_k, |k| k.max(0) as u32),
        min_p: or(min_p, defaults.min_p),
        repetition_penalty: or(repetition, defaults.repetition_penalty),
        presence_penalty: or(penalty("presence_penalty", wire.presence_penalty)?, 0.0),
        frequency_penalty: or(penalty("frequency_penalty", wire.frequency_penalty)?, 0.0),
        logit_bias: logit_bias(wire.logit_bias.as_ref(), limits.vocab_size)?,
        // A negative seed is used as its 64 bits in two's complement.
        seed: seed.map_or(fresh_seed, |seed| seed as u64),
        logprobs: None,
        min_tokens: 0,
        barred: Vec::new(),
        grammar: None,
    })
}

/// A temperature between 0 and the least one becomes the least one: clients that want nearly greedy decoding
/// send values such as 1e-8.
fn raised(temperature: f64) -> f64 {
    if temperature > 0.0 { temperature.max(LEAST_TEMPERATURE) } else { temperature }
}

/// Checks that a number is from `least` to `most`, and converts it to `f32`.
fn number(param: &str, value: Option<f64>, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            let text = format!("expected a number from {least} to {most}, got {value}");
            Err(ApiError::invalid(param, text))
        }
        value => Ok(value.map(|value| value as f32)),
    }
}

fn logit_bias(map: Option<&Map<String, Value>>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = map else { return Ok(Vec::new()) };
    if map.len() > MAX_LOGIT_BIAS {
        let text = format!("expected at most {MAX_LOGIT_BIAS} entries, got {}", map.len());
        return Err(ApiError::invalid("logit_bias", text));
    }
    map.iter().map(|(key, value)| Ok((bias_id(key, vocab_size)?, bias(value)?))).collect()
}

/// Reads a token id from a key: decimal digits only, without leading zeros, so that each id has one spelling.
fn bias_id(key: &str, vocab_size: usize) -> Result<u32, ApiError> {
    let digits = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (key == "0" || !key.starts_with('0'));
    match key.parse::<u32>() {
        Ok(id) if canonical && (id as usize) < vocab_size => Ok(id),
        _ => {
            let most = vocab_size.saturating_sub(1);
            Err(ApiError::invalid("logit_bias", format!("expected token ids from 0 to {most} as keys")))
        }
    }
}

fn bias(value: &Value) -> Result<f32, ApiError> {
    match value.as_f64() {
        Some(bias) if (-100.0..=100.0).contains(&bias) => Ok(bias as f32),
        _ => Err(wrong_type("logit_bias", "values from -100 to 100", value)),
    }
}
