//! From what a client wrote to what is meant, and the only maker of a [`ValidRequest`]: everything is in range and
//! nothing optional is left.
//!
//! Every list of ids is checked here against the vocabulary, and again by the scheduler: one id out of range would
//! reach past a table on a device, and into the answers of others. Choices that the wire leaves open:
//! - `n > 1` with greedy decoding is allowed and gives equal choices.
//! - `seed` is any integer from -2^63 to 2^64 - 1, taken as 64 bits. Choice `i` draws with `seed + i`.
//! - Without `max_tokens` a chat gets the rest of the context, a text completion 16 tokens or the rest if less.
//! - `top_k` 0 and -1 both mean all.

mod chat;
mod completion;
mod sampling;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use serde_json::Value;

use super::api_keys::Caller;
use super::error::ApiError;
use super::fields::{Fields, integer, wrong};
use super::types::{ChatWire, Common, CompletionWire, refuse_unsupported};
use crate::generation::{Ask, MaxTokens, OutputRules, Prompts};
use crate::request::{MAX_PRIORITY, SamplingParams, Tenant};

/// Stop strings per request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Ids of `stop_token_ids`.
pub const MAX_STOP_IDS: usize = 64;
/// Entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Choices per prompt.
pub const MAX_N: u32 = 128;
/// Sequences per request: prompts times choices.
pub const MAX_SEQUENCES: usize = 256;
/// Messages of a conversation.
pub const MAX_MESSAGES: usize = 2048;
/// Alternatives reported per token.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// Characters of `cache_salt`.
pub const MAX_SALT_CHARS: usize = 1024;
/// Says in how many milliseconds the whole answer must be there.
pub const DEADLINE_HEADER: &str = "x-request-deadline-ms";
/// Bytes of `user`.
pub const MAX_USER_BYTES: usize = 512;
/// Seconds of `timeout`, and of the header: a day.
pub const MAX_TIMEOUT: f64 = 86_400.0;
/// Ids of one `/detokenize`.
pub const MAX_DETOKENIZE: usize = 1 << 20;

/// What holds where a client says nothing: the model's `generation_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// 1 where the model says nothing.
    pub temperature: f32,
    /// 1 where the model says nothing.
    pub top_p: f32,
    /// 0, for all, where the model says nothing.
    pub top_k: u32,
    /// 0 where the model says nothing.
    pub min_p: f32,
    /// 1 where the model says nothing.
    pub repetition_penalty: f32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// What requests are measured by.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The names that the model answers to; the first is meant where a client names none.
    pub models: Vec<String>,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// What holds where a client says nothing.
    pub defaults: Defaults,
    /// Whether a field that nobody knows is an error.
    pub reject_unknown_fields: bool,
    /// Whether the operator has given keys their priorities, before which no request of theirs may put itself.
    pub keys_have_priorities: bool,
}

/// A request in which everything is decided.
#[derive(Debug, Clone)]
pub struct ValidRequest {
    /// The model as the client named it.
    pub model: String,
    /// What to generate.
    pub ask: Ask,
    /// How long the client waits for the whole answer.
    pub timeout: Option<Duration>,
    /// Answer as events.
    pub stream: bool,
    /// End the events with one of the usage.
    pub include_usage: bool,
    /// End the answer with what it has cost.
    pub include_cost: bool,
    /// Whether the answer shows scores.
    pub logprobs: bool,
    /// Private, so that only this module makes one.
    ignored: Vec<String>,
}

impl ValidRequest {
    /// The same, as the request of whoever holds a key.
    pub fn of(mut self, caller: Option<Caller>) -> Self {
        if let Some(Caller { tenant, priority }) = caller {
            self.ask.tenant = tenant;
            self.ask.priority = self.ask.priority.saturating_add(priority);
        }
        self
    }

    /// Fields that nobody knows; they are named in a header of the response.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// `POST /v1/chat/completions`. `fresh_seed` is used where the client gives none.
///
/// # Errors
/// 400, or 404 for the model.
pub fn chat(fields: Fields, limits: &Limits, fresh_seed: u64) -> Result<ValidRequest, ApiError> {
    let mut wire = ChatWire::read(fields)?;
    let asked = chat::max_tokens(&wire)?;
    let logprobs = chat::logprobs(&wire)?;
    let prompts = chat::prompts(&mut wire)?;
    let rest =
        Rest { prompts, logprobs, max_tokens: asked.unwrap_or(MaxTokens::UpTo(u32::MAX)), echo: false };
    finish(wire.common, rest, limits, fresh_seed)
}

/// `POST /v1/completions`. `fresh_seed` is used where the client gives none.
///
/// # Errors
/// 400, or 404 for the model.
pub fn completion(fields: Fields, limits: &Limits, fresh_seed: u64) -> Result<ValidRequest, ApiError> {
    let mut wire = CompletionWire::read(fields)?;
    let prompt = wire.prompt.take();
    let prompts = completion::prompts(prompt, wire.add_special_tokens.unwrap_or(true), limits.vocab_size)?;
    let echo = wire.echo.unwrap_or(false);
    let logprobs = alternatives("logprobs", wire.logprobs)?;
    let least = i128::from(!echo);
    let asked = ranged("max_tokens", wire.common.max_tokens, least, i128::from(u32::MAX))?;
    let max_tokens = asked.map_or(MaxTokens::UpTo(16), |tokens| MaxTokens::Exactly(tokens as u32));
    finish(wire.common, Rest { prompts, logprobs, max_tokens, echo }, limits, fresh_seed)
}

/// `POST /tokenize`: what to tokenise, and whether to show the tokens' texts.
///
/// # Errors
/// 400, or 404 for the model.
pub fn tokenize(mut fields: Fields, limits: &Limits) -> Result<(Prompts, bool), ApiError> {
    served_model(fields.string("model")?, &limits.models)?;
    let strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let Some(messages) = fields.array("messages")? else {
        let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
        let text = fields.string("prompt")?;
        let text = text.ok_or_else(|| ApiError::invalid("prompt", "expected a string, or messages"))?;
        return Ok((Prompts::Texts { texts: vec![text], add_special }, strings));
    };
    if fields.value("prompt").is_some() {
        return Err(ApiError::invalid("prompt", "expected a prompt or messages, got both"));
    }
    if fields.bool("add_special_tokens")?.unwrap_or(false) {
        return Err(ApiError::unsupported("add_special_tokens", "the template decides for messages"));
    }
    refuse_unsupported(&mut fields)?;
    let mut wire = ChatWire {
        messages: Some(messages),
        add_generation_prompt: fields.bool("add_generation_prompt")?,
        continue_final_message: fields.bool("continue_final_message")?,
        chat_template_kwargs: fields.object("chat_template_kwargs")?.map(Fields::into_map),
        ..ChatWire::default()
    };
    Ok((chat::prompts(&mut wire)?, strings))
}

/// `POST /detokenize`: the ids.
///
/// # Errors
/// 400, or 404 for the model.
pub fn detokenize(mut fields: Fields, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    served_model(fields.string("model")?, &limits.models)?;
    let items = fields.array("tokens")?;
    let items = items.ok_or_else(|| ApiError::invalid("tokens", "expected an array of token ids"))?;
    id_list("tokens", Some(&items), MAX_DETOKENIZE, limits.vocab_size)
}

/// What the two routes decide each in its own way.
struct Rest {
    prompts: Prompts,
    logprobs: Option<u8>,
    max_tokens: MaxTokens,
    echo: bool,
}

fn finish(wire: Common, rest: Rest, limits: &Limits, fresh_seed: u64) -> Result<ValidRequest, ApiError> {
    if let (true, Some(name)) = (limits.reject_unknown_fields, wire.ignored.first()) {
        return Err(ApiError::unsupported(name, "unknown field"));
    }
    let model = served_model(wire.model.clone(), &limits.models)?;
    let n = choices(&wire, &rest.prompts)?;
    let stream = wire.stream.unwrap_or(false);
    if wire.stream_options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "expected only together with stream = true"));
    }
    let stop = stop_strings(wire.stop.as_ref())?;
    let named = id_list("stop_token_ids", wire.stop_token_ids.as_deref(), MAX_STOP_IDS, limits.vocab_size)?;
    let mut stop_ids = named;
    if !wire.ignore_eos.unwrap_or(false) {
        stop_ids.extend(&limits.eos_ids);
    }
    stop_ids.sort_unstable();
    stop_ids.dedup();
    let sampling = SamplingParams {
        min_tokens: min_tokens(&wire, rest.max_tokens)?,
        barred: stop_ids.clone(),
        logprobs: rest.logprobs,
        ..sampling::params(&wire, limits, fresh_seed)?
    };
    // A request may come later than its key's, and never earlier.
    let first = if limits.keys_have_priorities { 0 } else { -MAX_PRIORITY };
    let priority = ranged("priority", wire.priority, first.into(), MAX_PRIORITY.into())?.unwrap_or(0) as i32;
    let output = OutputRules {
        stop,
        include_stop: wire.include_stop_str_in_output.unwrap_or(false),
        skip_special: wire.skip_special_tokens.unwrap_or(true),
        echo: rest.echo,
        score_stop_id: !matches!(rest.prompts, Prompts::Chat { .. }),
    };
    let cache_salt = cache_salt(wire.cache_salt)?;
    let tenant = tenant(wire.user)?;
    let timeout = timeout(wire.timeout)?;
    let max_tokens = rest.max_tokens;
    let ask = Ask {
        prompts: rest.prompts,
        n,
        sampling,
        max_tokens,
        stop_ids,
        output,
        priority,
        tenant,
        cache_salt,
    };
    Ok(ValidRequest {
        model,
        ask,
        stream,
        timeout,
        include_usage: wire.stream_options.flatten().unwrap_or(false),
        include_cost: wire.return_cost.unwrap_or(false),
        logprobs: rest.logprobs.is_some(),
        ignored: wire.ignored,
    })
}

/// The model that is meant. Names are compared to a list and go nowhere near a file system.
///
/// # Errors
/// 404.
pub fn served_model(asked: Option<String>, served: &[String]) -> Result<String, ApiError> {
    match asked {
        None => Ok(served.first().cloned().unwrap_or_default()),
        Some(name) if served.contains(&name) => Ok(name),
        Some(name) => Err(ApiError::ModelNotFound(name)),
    }
}

fn choices(wire: &Common, prompts: &Prompts) -> Result<u32, ApiError> {
    let n = ranged("n", wire.n, 1, i128::from(MAX_N))?.unwrap_or(1);
    match wire.best_of {
        None => {}
        Some(best_of) if best_of < n => {
            return Err(ApiError::invalid("best_of", format!("expected at least n = {n}, got {best_of}")));
        }
        Some(1) => {}
        Some(_) => return Err(ApiError::unsupported("best_of", "values above 1 are not supported")),
    }
    let (count, n) = (prompts.count(), n as u32);
    if count * n as usize > MAX_SEQUENCES {
        let text = format!("expected at most {MAX_SEQUENCES} choices in all, got {count} prompts × {n}");
        return Err(ApiError::invalid(if n > 1 { "n" } else { "prompt" }, text));
    }
    Ok(n)
}

fn min_tokens(wire: &Common, max_tokens: MaxTokens) -> Result<u32, ApiError> {
    let min = ranged("min_tokens", wire.min_tokens, 0, i128::from(u32::MAX))?.unwrap_or(0) as u32;
    let (MaxTokens::Exactly(max) | MaxTokens::UpTo(max)) = max_tokens;
    if min > max {
        return Err(ApiError::invalid(
            "min_tokens",
            format!("expected at most max_tokens = {max}, got {min}"),
        ));
    }
    Ok(min)
}

fn stop_strings(stop: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let items = match stop {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    if items.len() > MAX_STOP_STRINGS {
        let text = format!("expected at most {MAX_STOP_STRINGS} strings, got {}", items.len());
        return Err(ApiError::invalid("stop", text));
    }
    let one = |item: &Value| match item {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::invalid("stop", "expected strings of at least one character"))
        }
        Value::String(text) if text.len() > MAX_STOP_BYTES => {
            let text = format!("expected strings of at most {MAX_STOP_BYTES} bytes, got {}", text.len());
            Err(ApiError::invalid("stop", text))
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong("stop", "a string or an array of strings", other)),
    };
    items.iter().map(one).collect()
}

/// Token ids: integers from 0 to below the vocabulary size.
fn id_list(
    param: &str,
    items: Option<&[Value]>,
    most: usize,
    vocab_size: usize,
) -> Result<Vec<u32>, ApiError> {
    let items = items.unwrap_or_default();
    if items.len() > most {
        return Err(ApiError::invalid(param, format!("expected at most {most} ids, got {}", items.len())));
    }
    items.iter().map(|item| token_id(param, item, vocab_size)).collect()
}

fn token_id(param: &str, item: &Value, vocab_size: usize) -> Result<u32, ApiError> {
    let id = integer(item).and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
    id.ok_or_else(|| {
        let expected = format!("a token id from 0 to {}", vocab_size.saturating_sub(1));
        wrong(param, &expected, item)
    })
}

/// An integer within bounds.
fn ranged(param: &str, value: Option<i128>, least: i128, most: i128) -> Result<Option<i128>, ApiError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(ApiError::invalid(param, format!("expected an integer from {least} to {most}, got {value}")))
        }
        in_range => Ok(in_range),
    }
}

fn alternatives(param: &str, value: Option<i128>) -> Result<Option<u8>, ApiError> {
    Ok(ranged(param, value, 0, i128::from(MAX_TOP_LOGPROBS))?.map(|count| count as u8))
}

/// Whose share of the server the request takes, unless its key says so.
fn tenant(user: Option<String>) -> Result<Tenant, ApiError> {
    match user {
        Some(user) if user.len() > MAX_USER_BYTES => {
            let text = format!("expected at most {MAX_USER_BYTES} bytes, got {}", user.len());
            Err(ApiError::invalid("user", text))
        }
        // An empty name is nobody's.
        user => {
            let name = user.filter(|user| !user.is_empty()).map(|user| format!("user:{user}"));
            Ok(Tenant { name: name.unwrap_or_default().into(), weight: 1 })
        }
    }
}

/// The header's milliseconds; of several such headers the shortest time, since each may be a proxy's.
///
/// # Errors
/// 400.
pub fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let all = headers.get_all(DEADLINE_HEADER).iter().map(|value| {
        let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
        ms.filter(|ms| (1..=(MAX_TIMEOUT * 1000.0) as u64).contains(ms)).ok_or_else(|| {
            ApiError::invalid(DEADLINE_HEADER, "expected whole milliseconds, at least 1 and at most a day")
        })
    });
    let all: Vec<u64> = all.collect::<Result<_, _>>()?;
    Ok(all.into_iter().min().map(Duration::from_millis))
}

/// Seconds as a duration.
fn timeout(seconds: Option<f64>) -> Result<Option<Duration>, ApiError> {
    match seconds {
        Some(seconds) if !(seconds > 0.0 && seconds <= MAX_TIMEOUT) => {
            let text = format!("expected seconds above 0 and at most {MAX_TIMEOUT}, got {seconds}");
            Err(ApiError::invalid("timeout", text))
        }
        seconds => Ok(seconds.map(Duration::from_secs_f64)),
    }
}

fn cache_salt(salt: Option<String>) -> Result<Option<Arc<str>>, ApiError> {
    match salt {
        Some(salt) if salt.is_empty() || salt.chars().count() > MAX_SALT_CHARS => {
            Err(ApiError::invalid("cache_salt", format!("expected from 1 to {MAX_SALT_CHARS} characters")))
        }
        salt => Ok(salt.map(Arc::from)),
    }
}
