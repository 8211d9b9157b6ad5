//! The scheduler's own validation of a request. The server has validated it already. The scheduler checks
//! again because a token id out of range would make a device read outside a table.

use super::SchedulerConfig;
use crate::request::{Reject, Request, SamplingParams};

/// Checks that the request can run within the configured limits.
///
/// # Errors
/// Names the field and says expected versus got.
pub fn check(request: &Request, config: &SchedulerConfig) -> Result<(), Reject> {
    let vocab = config.vocab_size;
    if request.prompt.is_empty() {
        return Err(invalid("prompt", "expected at least one token"));
    }
    check_ids("prompt", request.prompt.iter().copied(), vocab)?;
    check_ids("stop_token_ids", request.stop.stop_ids.iter().copied(), vocab)?;
    check_sampling(&request.sampling, vocab)?;
    check_alternatives("prompt_logprobs", request.prompt_logprobs, vocab)?;
    check_start(request)?;
    check_reward(request, config)?;
    let max_tokens = request.stop.max_tokens;
    if max_tokens == 0 && request.prompt_logprobs.is_none() && !request.reward {
        return Err(invalid("max_tokens", "expected at least 1, got 0"));
    }
    let min_tokens = request.sampling.min_tokens;
    if min_tokens > max_tokens {
        let message = format!("expected at most max_tokens = {max_tokens}, got {min_tokens}");
        return Err(Reject::Invalid { field: "min_tokens", message });
    }
    check_length(request, config)
}

/// Checks the first prompt token to report on.
fn check_start(request: &Request) -> Result<(), Reject> {
    let (start, prompt) = (request.prompt_logprobs_start, request.prompt.len());
    let most = if request.prompt_logprobs.is_some() { prompt - 1 } else { 0 };
    if start as usize > most {
        let message = format!("expected at most {most}, got {start}");
        return Err(Reject::Invalid { field: "prompt_logprobs_start", message });
    }
    Ok(())
}

/// Checks that a model with a reward head only scores, and another one only generates.
fn check_reward(request: &Request, config: &SchedulerConfig) -> Result<(), Reject> {
    match (config.reward_width > 0, request.reward) {
        (false, false) => return Ok(()),
        (true, true) => {}
        (true, false) => {
            let message = "expected true, got false: the model has a reward head and does not generate";
            return Err(invalid("reward", message));
        }
        (false, true) => {
            let message = "expected false, got true: the model has no reward head";
            return Err(invalid("reward", message));
        }
    }
    if request.stop.max_tokens != 0 {
        let message = format!("expected 0 with a reward head, got {}", request.stop.max_tokens);
        return Err(Reject::Invalid { field: "max_tokens", message });
    }
    if request.prompt_logprobs.is_some() {
        return Err(invalid("prompt_logprobs", "expected none: a model with a reward head has no logits"));
    }
    if request.sampling.grammar.is_some() {
        return Err(invalid(
            "structured_outputs",
            "expected none: a model with a reward head writes nothing",
        ));
    }
    Ok(())
}

fn check_length(request: &Request, config: &SchedulerConfig) -> Result<(), Reject> {
    let limit = config.max_sequence_tokens();
    let (prompt, max_tokens) = (request.prompt.len(), request.stop.max_tokens);
    if prompt.saturating_add(max_tokens as usize) > limit {
        return Err(Reject::TooLong { prompt, max_tokens, limit });
    }
    Ok(())
}

fn check_sampling(sampling: &SamplingParams, vocab: usize) -> Result<(), Reject> {
    // All fields are named, so that a new one cannot be forgotten here.
    let &SamplingParams {
        temperature,
        top_p,
        // Every number of tokens is valid.
        top_k: _,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        ref logit_bias,
        seed: _,
        logprobs,
        // `check` compares it with `max_tokens`.
        min_tokens: _,
        ref barred,
        ref grammar,
    } = sampling;
    check_float("temperature", temperature, temperature >= 0.0, "at least 0")?;
    check_float("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
    check_float("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
    check_float("repetition_penalty", repetition_penalty, repetition_penalty > 0.0, "above 0")?;
    for (field, value) in [("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)] {
        check_float(field, value, (-2.0..=2.0).contains(&value), "from -2 to 2")?;
    }
    check_ids("logit_bias", logit_bias.iter().map(|&(id, _)| id), vocab)?;
    for &(_, bias) in logit_bias {
        check_float("logit_bias", bias, (-100.0..=100.0).contains(&bias), "from -100 to 100")?;
    }
    check_ids("stop_token_ids", barred.iter().copied(), vocab)?;
    // A mask has a bit for each id, and devices have a logit for each.
    if let Some(ids) = grammar.as_ref().map(|grammar| grammar.vocab()).filter(|ids| *ids > vocab) {
        let message = format!("expected a grammar over at most {vocab} token ids, got {ids}");
        return Err(Reject::Invalid { field: "structured_outputs", message });
    }
    check_alternatives("logprobs", logprobs, vocab)
}

fn check_ids(field: &'static str, ids: impl Iterator<Item = u32>, vocab: usize) -> Result<(), Reject> {
    for id in ids {
        if id as usize >= vocab {
            let message = format!("expected token ids below {vocab}, got {id}");
            return Err(Reject::Invalid { field, message });
        }
    }
    Ok(())
}

fn check_float(field: &'static str, value: f32, in_range: bool, expected: &str) -> Result<(), Reject> {
    if !value.is_finite() || !in_range {
        let message = format!("expected a finite number {expected}, got {value}");
        return Err(Reject::Invalid { field, message });
    }
    Ok(())
}

fn check_alternatives(field: &'static str, count: Option<u8>, vocab: usize) -> Result<(), Reject> {
    match count {
        Some(count) if usize::from(count) > vocab => {
            let message = format!("expected at most {vocab}, got {count}");
            Err(Reject::Invalid { field, message })
        }
        _ => Ok(()),
    }
}

fn invalid(field: &'static str, message: &str) -> Reject {
    Reject::Invalid { field, message: message.to_owned() }
}
