//! Validation of the sampling parameters.

use serde_json::{Map, Value};

use super::limits::{Defaults, Limits};
use crate::request::SamplingParams;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, wrong_type};
use crate::server::types::{CommonFields, MAX_BAD_WORD_BYTES};

/// Smallest temperature above 0, as in vLLM. Logits are divided by the temperature and could overflow with a
/// smaller one. Temperature 0 means greedy decoding.
const LEAST_TEMPERATURE: f64 = 0.01;

/// Reads the sampling parameters, except `min_tokens`, `barred` and `logprobs`, which the caller sets.
pub(super) fn params(
    wire: &CommonFields,
    limits: &Limits,
    fresh_seed: u64,
) -> Result<SamplingParams, ApiError> {
    let Defaults { temperature, top_p, top_k, min_p, repetition_penalty } =
        or_defaults(wire, &limits.defaults);
    // The most probable token alone, as with temperature 0.
    let greedy = top_p == 0.0;
    let penalty = |value: Option<f64>| value.map_or(0.0, |value| value as f32);
    Ok(SamplingParams {
        temperature: if greedy { 0.0 } else { temperature },
        top_p: if greedy { 1.0 } else { top_p },
        top_k,
        min_p,
        repetition_penalty,
        presence_penalty: penalty(wire.presence_penalty),
        frequency_penalty: penalty(wire.frequency_penalty),
        logit_bias: logit_bias(wire.logit_bias.as_ref(), limits.vocab_size)?,
        // A negative seed is used as its 64 bits in two's complement.
        seed: wire.seed.map_or(fresh_seed, |seed| seed as u64),
        logprobs: None,
        min_tokens: 0,
        barred: Vec::new(),
        grammar: None,
    })
}

/// The parameters that have defaults: those of the request, or else the defaults.
fn or_defaults(wire: &CommonFields, defaults: &Defaults) -> Defaults {
    let or = |value: Option<f64>, default| value.map_or(default, |value| value as f32);
    Defaults {
        temperature: or(wire.temperature.map(raised), defaults.temperature),
        top_p: or(wire.top_p, defaults.top_p),
        top_k: wire.top_k.map_or(defaults.top_k, |k| k.max(0) as u32),
        min_p: or(wire.min_p, defaults.min_p),
        repetition_penalty: or(wire.repetition_penalty, defaults.repetition_penalty),
    }
}

impl Defaults {
    /// The defaults of a model, and warnings. `sampling` has the sampling parameters of its
    /// `generation_config.json`, which have the names and ranges of a request's fields. A value that a
    /// request could not have is not used, and a warning names it.
    pub fn of_model(sampling: &Map<String, Value>) -> (Self, Vec<String>) {
        let (mut used, mut warnings) = (Self::default(), Vec::new());
        for (key, value) in sampling {
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            match CommonFields::read(Fields::new(alone)) {
                Ok(wire) => used = or_defaults(&wire, &used),
                Err(error) => warnings.push(format!("generation_config.json: {error}; not used")),
            }
        }
        (used, warnings)
    }
}

/// A temperature between 0 and the least one becomes the least one: clients that want nearly greedy decoding
/// send values such as 1e-8.
fn raised(temperature: f64) -> f64 {
    if temperature > 0.0 { temperature.max(LEAST_TEMPERATURE) } else { temperature }
}

fn logit_bias(map: Option<&Map<String, Value>>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = map else { return Ok(Vec::new()) };
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
            let text = format!("expected token ids from 0 to {most} as keys, got \"{key}\"");
            Err(ApiError::invalid("logit_bias", text))
        }
    }
}

fn bias(value: &Value) -> Result<f32, ApiError> {
    match value.as_f64() {
        Some(bias) if (-100.0..=100.0).contains(&bias) => Ok(bias as f32),
        _ => Err(wrong_type("logit_bias", "values from -100 to 100", value)),
    }
}

/// Reads `bad_words`. A text of spaces alone has no token of its own and stands for none.
pub(super) fn bad_words(items: Option<Vec<Value>>) -> Result<Vec<String>, ApiError> {
    let mut words = Vec::new();
    for (i, item) in items.unwrap_or_default().into_iter().enumerate() {
        let path = format!("bad_words[{i}]");
        let Value::String(word) = item else { return Err(wrong_type(&path, "a string", &item)) };
        if word.len() > MAX_BAD_WORD_BYTES {
            let text = format!("expected at most {MAX_BAD_WORD_BYTES} bytes, got {}", word.len());
            return Err(ApiError::invalid(path, text));
        }
        if !word.trim().is_empty() {
            words.push(word);
        }
    }
    Ok(words)
}
