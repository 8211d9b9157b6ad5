//! Validation of request bodies. Only this module makes a [`ValidRequest`], in which every value is in range
//! and every default is filled in.
//!
//! Token ids are checked here against the vocabulary, and again by the scheduler: an id out of range would
//! read past the end of a table on the device and could expose data of other requests. Rules that OpenAI's
//! API leaves open:
//! - `n > 1` with greedy decoding is allowed and returns equal choices.
//! - `seed` is any integer from -2^63 to 2^64 - 1; its low 64 bits are used. Choice `i` samples with
//!   `seed + i`.
//! - Without `max_tokens`, a chat gets the rest of the context, a text completion at most 16 tokens.
//! - `top_k` of 0 or -1 means all tokens.
//! - `top_p` of 0 means greedy decoding, and a temperature between 0 and 0.01 becomes 0.01.

mod anthropic;
mod chat;
mod completion;
mod conversations;
mod limits;
mod prompt_scores;
mod responses;
mod sampling;
mod scored_chat;
mod scored_texts;
mod scores;
mod tools;
mod values;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::anthropic::types::{CountTokensWire, MessagesWire};
use super::api_keys::Caller;
use super::constraint::Constraint;
use super::error::ApiError;
use super::field_table::Table;
use super::fields::{Fields, missing, wrong_type};
use super::responses::reply::RequestEcho;
use super::responses::types::ResponsesWire;
use super::types::{
    ChatWire, CommonFields, CompletionWire, DetokenizeWire, MAX_SEQUENCES, MAX_STOP_BYTES, MAX_STOP_STRINGS,
    TokenizeWire,
};
use super::unsupported;
use crate::generation::{Ask, MaxTokens, OutputRules, Prompts, RenderOptions, ToolCalls, Truncate};
use crate::request::{MAX_PRIORITY, SamplingParams, Tenant};
pub(crate) use limits::TEMPLATE_FIELDS;
pub use limits::{Defaults, Limits};
pub(crate) use scored_chat::scored_chat;
pub(crate) use scores::{classify, get_reward, pooling, reward};
use tools::ToolUse;
use values::token_ids;

/// A validated request: every value is in range and every default is filled in.
#[derive(Debug, Clone)]
pub struct ValidRequest {
    /// Name of the model that the client gave, or the first name that is served.
    pub model: String,
    /// Prompts, sampling parameters and limits for the generator.
    pub ask: Ask,
    /// Time within which the client wants the whole answer.
    pub timeout: Option<Duration>,
    /// Whether to answer with server-sent events.
    pub stream: bool,
    /// Whether the last event carries the usage.
    pub include_usage: bool,
    /// Whether every event carries the usage of its choice so far.
    pub continuous_usage: bool,
    /// Whether log-probabilities name tokens by their ids.
    pub names_ids: bool,
    /// Whether the answer ends with its cost.
    pub include_cost: bool,
    /// Whether the answer has log-probabilities.
    pub logprobs: bool,
    /// The path of the field that constrains the answer.
    pub(crate) grammar_path: String,
    /// Paths of unknown fields. Private, so that only this module can make a `ValidRequest`.
    ignored: Vec<String>,
}

impl ValidRequest {
    /// Sets the tenant to that of the caller's API key, and adds the key's priority to the request's.
    pub(crate) fn of(mut self, caller: Option<Caller>) -> Self {
        if let Some(Caller { tenant, priority }) = caller {
            self.ask.tenant = tenant;
            self.ask.priority = self.ask.priority.saturating_add(priority);
        }
        self
    }

    /// Paths of unknown fields, which a header of the response lists.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// Validates the body of `POST /v1/chat/completions`. `fresh_seed` is the seed if the client sets none.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub fn chat(fields: Fields, limits: &Limits, fresh_seed: u64) -> Result<ValidRequest, ApiError> {
    limits.must_generate()?;
    let mut wire = ChatWire::read(fields)?;
    chat::template_fields(&mut wire, &limits.template_fields);
    let asked = chat::max_tokens(&wire)?;
    let logprobs = chat::logprobs(&wire)?;
    let tools = tools::read(&mut wire, limits.tools)?;
    let prompts = chat::prompts(&mut wire, limits.tools, tools.as_ref())?;
    let max_tokens = asked.unwrap_or(MaxTokens::UpTo(u32::MAX));
    let answer = ChatAnswer { logprobs, max_tokens, tools };
    answer.finish(wire.common, prompts, limits, fresh_seed)
}

/// The fields of any chat protocol that describe the answer, without the shared ones.
struct ChatAnswer {
    logprobs: Option<u8>,
    max_tokens: MaxTokens,
    tools: Option<ToolUse>,
}

impl ChatAnswer {
    /// Validates the shared fields and puts the request together.
    fn finish(
        self,
        mut wire: CommonFields,
        prompts: Prompts,
        limits: &Limits,
        fresh_seed: u64,
    ) -> Result<ValidRequest, ApiError> {
        let Self { logprobs, max_tokens, tools } = self;
        if let Some(tools) = &tools {
            wire.constraint = tools.constraint(wire.constraint, limits.reject_unknown_fields)?;
        }
        let tools = tools.as_ref().map(ToolUse::calls);
        finish(wire, RouteFields { prompts, logprobs, max_tokens, echo: false, tools }, limits, fresh_seed)
    }
}

/// Validates the body of `POST /v1/responses`. Returns the fields that the reply repeats, too.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn response(
    fields: Fields,
    limits: &Limits,
    fresh_seed: u64,
) -> Result<(ValidRequest, RequestEcho), ApiError> {
    limits.must_generate()?;
    let mut wire = ResponsesWire::read(fields)?;
    let asked = wire.max_output_tokens.map(|tokens| MaxTokens::Exactly(tokens as u32));
    let logprobs = responses::logprobs(&mut wire)?;
    let request = responses::tools(&mut wire)?;
    let echo = responses::echo(&wire, &request.tools);
    let tools = request.check(limits.tools)?;
    responses::template_fields(&mut wire, &limits.template_fields);
    let format = wire.text.take().and_then(|text| text.format);
    wire.common.constraint = responses::constraint(format, wire.common.constraint)?;
    let kwargs = chat::kwargs(wire.chat_template_kwargs.as_ref())?;
    let options = RenderOptions { kwargs, ..RenderOptions::default() };
    let messages = responses::messages(&mut wire)?;
    let prompts = chat::conversation(messages, options, limits.tools, tools.as_ref());
    let fields = wire.common;
    let temperature = fields.temperature.map_or(limits.defaults.temperature, |value| value as f32);
    let top_p = fields.top_p.map_or(limits.defaults.top_p, |value| value as f32);
    let max_tokens = asked.unwrap_or(MaxTokens::UpTo(u32::MAX));
    let valid = ChatAnswer { logprobs, max_tokens, tools }.finish(fields, prompts, limits, fresh_seed)?;
    Ok((valid, RequestEcho { temperature, top_p, ..echo }))
}

/// Validates the body of `POST /v1/messages`. Returns the greatest number of tokens of the answer, too.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn message(
    fields: Fields,
    limits: &Limits,
    fresh_seed: u64,
) -> Result<(ValidRequest, u32), ApiError> {
    limits.must_generate()?;
    let MessagesWire { max_tokens, stop_sequences, metadata, mut conversation, mut common } =
        MessagesWire::read(fields)?;
    let most = max_tokens.unwrap_or(1) as u32;
    common.user = metadata.and_then(|data| data.user_id).or(common.user);
    if let Some(stop) = stop_sequences {
        let stop = stop_strings("stop_sequences", Some(&Value::Array(stop)))?;
        common.stop = Some(stop.into());
    }
    let tools = anthropic::tools(&mut conversation, limits.tools)?;
    let kwargs = anthropic::template_fields(&mut conversation, &mut common, &limits.template_fields);
    common.constraint = anthropic::constraint(&mut conversation, common.constraint)?;
    let (messages, options) = anthropic::messages(&mut conversation, &mut common.ignored)?;
    let options = RenderOptions { kwargs, ..options };
    let prompts = chat::conversation(messages, options, limits.tools, tools.as_ref());
    let answer = ChatAnswer { logprobs: None, max_tokens: MaxTokens::UpTo(most), tools };
    Ok((answer.finish(common, prompts, limits, fresh_seed)?, most))
}

/// Validates the body of `POST /v1/messages/count_tokens`. Returns the prompt.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn count_tokens(mut fields: Fields, limits: &Limits) -> Result<Prompts, ApiError> {
    let CountTokensWire { model, mut conversation } = CountTokensWire::read(&mut fields)?;
    served_model(model, limits)?;
    unsupported::refuse(&mut fields)?;
    let tools = anthropic::tools(&mut conversation, limits.tools)?;
    // A constraint does not change the prompt, but must be valid.
    let _unused = anthropic::constraint(&mut conversation, None)?;
    let mut unknown = CommonFields::default();
    let kwargs = anthropic::template_fields(&mut conversation, &mut unknown, &limits.template_fields);
    let (messages, options) = anthropic::messages(&mut conversation, &mut unknown.ignored)?;
    let options = RenderOptions { kwargs, ..options };
    Ok(chat::conversation(messages, options, limits.tools, tools.as_ref()))
}

/// Validates the body of `POST /v1/completions`. `fresh_seed` is the seed if the client sets none.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub fn completion(fields: Fields, limits: &Limits, fresh_seed: u64) -> Result<ValidRequest, ApiError> {
    limits.must_generate()?;
    let mut wire = CompletionWire::read(fields)?;
    // There is no template.
    for (name, value) in wire.common.take_template_fields() {
        wire.common.ignored.extend(value.map(|_| name.to_owned()));
    }
    let prompt = wire.prompt.take();
    let prompts = completion::prompts(prompt, wire.add_special_tokens.unwrap_or(true), limits.vocab_size)?;
    let echo = wire.echo.unwrap_or(false);
    let logprobs = wire.logprobs.map(|count| count as u8);
    if wire.max_tokens == Some(0) && !echo && wire.common.prompt_logprobs.is_none() {
        let text = "expected at least 1, or echo = true or prompt_logprobs with it, got 0";
        return Err(ApiError::invalid("max_tokens", text));
    }
    let max_tokens = wire.max_tokens.map_or(MaxTokens::UpTo(16), |tokens| MaxTokens::Exactly(tokens as u32));
    finish(wire.common, RouteFields { prompts, logprobs, max_tokens, echo, tools: None }, limits, fresh_seed)
}

/// Validates the body of `POST /tokenize`. Returns the prompt, and whether to return the text of each token.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn tokenize(mut fields: Fields, limits: &Limits) -> Result<(Prompts, bool), ApiError> {
    let wire = TokenizeWire::take(&mut fields)?;
    served_model(wire.model, limits)?;
    let strings = wire.return_token_strs.unwrap_or(false);
    let mut chat = ChatWire { tools: wire.tools, tool_choice: wire.tool_choice, ..ChatWire::default() };
    let tools = tools::read(&mut chat, limits.tools)?;
    let Some(messages) = wire.messages else {
        let add_special = wire.add_special_tokens.unwrap_or(true);
        let text = wire.prompt.ok_or_else(|| missing("prompt", "a string, or messages instead"))?;
        return Ok((Prompts::Texts { texts: vec![text], add_special }, strings));
    };
    if wire.prompt.is_some() {
        return Err(ApiError::invalid("prompt", "expected either prompt or messages, got both"));
    }
    if wire.add_special_tokens == Some(true) {
        let text = "not supported with messages, whose chat template adds special tokens itself";
        return Err(ApiError::unsupported("add_special_tokens", text));
    }
    unsupported::refuse(&mut fields)?;
    chat.messages = Some(messages);
    // A score has no turn after the answer.
    let add = wire.add_generation_prompt.or(limits.scoring.as_ref().map(|_| false));
    chat.add_generation_prompt = add;
    chat.continue_final_message = wire.continue_final_message;
    chat.chat_template_kwargs = wire.chat_template_kwargs;
    Ok((chat::prompts(&mut chat, limits.tools, tools.as_ref())?, strings))
}

/// Validates the body of `POST /detokenize`. Returns the token ids.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn detokenize(mut fields: Fields, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    let wire = DetokenizeWire::take(&mut fields)?;
    served_model(wire.model, limits)?;
    token_ids("tokens", &wire.tokens.unwrap_or_default(), limits.vocab_size)
}

/// Validated fields that chat and text completions spell differently.
struct RouteFields {
    prompts: Prompts,
    logprobs: Option<u8>,
    max_tokens: MaxTokens,
    echo: bool,
    tools: Option<ToolCalls>,
}

/// Validates the shared fields and puts the request together.
fn finish(
    wire: CommonFields,
    route: RouteFields,
    limits: &Limits,
    fresh_seed: u64,
) -> Result<ValidRequest, ApiError> {
    if let (true, Some(name)) = (limits.reject_unknown_fields, wire.ignored.first()) {
        return Err(ApiError::unsupported(name, "this field is unknown or has no effect here"));
    }
    let model = served_model(wire.model.clone(), limits)?;
    let n = choices(&wire, &route.prompts)?;
    let stream = wire.stream.unwrap_or(false);
    if wire.stream_options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "expected stream = true with this field"));
    }
    let stop_ids = stop_ids(&wire, limits)?;
    let sampling = SamplingParams {
        min_tokens: min_tokens(&wire, route.max_tokens)?,
        barred: stop_ids.clone(),
        logprobs: route.logprobs,
        ..sampling::params(&wire, limits, fresh_seed)?
    };
    let priority = priority(&wire, limits)?;
    let output = output_rules(&wire, &route)?;
    let allowed = wire.allowed_token_ids.as_deref();
    let allowed_tokens =
        allowed.map(|ids| token_ids("allowed_token_ids", ids, limits.vocab_size)).transpose()?;
    let prompt_logprobs_start = prompt_scores::start(&wire, stream)?;
    let (grammar, path) = wire.constraint.map(|Constraint { path, source }| (source, path)).unzip();
    let ask = Ask {
        prompts: route.prompts,
        n,
        sampling,
        max_tokens: route.max_tokens,
        stop_ids,
        output,
        priority,
        tenant: tenant(wire.user),
        cache_salt: wire.cache_salt.map(Arc::from),
        grammar,
        tools: route.tools,
        bad_words: sampling::bad_words(wire.bad_words)?,
        allowed_tokens,
        truncate: truncate(wire.truncate_prompt_tokens)?,
        prompt_logprobs: wire.prompt_logprobs.map(|count| count as u8),
        prompt_logprobs_start,
        reward: false,
    };
    let stream_options = wire.stream_options.unwrap_or_default();
    Ok(ValidRequest {
        model,
        ask,
        stream,
        timeout: wire.timeout.map(Duration::from_secs_f64),
        include_usage: stream_options.include_usage.unwrap_or(false),
        continuous_usage: stream_options.continuous_usage_stats.unwrap_or(false),
        names_ids: wire.return_tokens_as_token_ids.unwrap_or(false),
        include_cost: wire.return_cost.unwrap_or(false),
        logprobs: route.logprobs.is_some(),
        grammar_path: path.unwrap_or_default(),
        ignored: wire.ignored,
    })
}

/// The ids that end an answer, in order.
fn stop_ids(wire: &CommonFields, limits: &Limits) -> Result<Vec<u32>, ApiError> {
    let named = wire.stop_token_ids.as_deref().unwrap_or_default();
    let mut stop_ids = token_ids("stop_token_ids", named, limits.vocab_size)?;
    if !wire.ignore_eos.unwrap_or(false) {
        stop_ids.extend(&limits.eos_ids);
    }
    stop_ids.sort_unstable();
    stop_ids.dedup();
    Ok(stop_ids)
}

/// The request's priority. Where keys have priorities, a request can lower its own and cannot raise it.
fn priority(wire: &CommonFields, limits: &Limits) -> Result<i32, ApiError> {
    match wire.priority.unwrap_or(0) as i32 {
        priority if limits.keys_have_priorities && priority < 0 => {
            let text = format!("expected an integer from 0 to {MAX_PRIORITY}, got {priority}");
            Err(ApiError::invalid("priority", text))
        }
        priority => Ok(priority),
    }
}

/// The rules for the output text of each choice.
fn output_rules(wire: &CommonFields, route: &RouteFields) -> Result<OutputRules, ApiError> {
    Ok(OutputRules {
        stop: stop_strings("stop", wire.stop.as_ref())?,
        include_stop: wire.include_stop_str_in_output.unwrap_or(false),
        skip_special: wire.skip_special_tokens.unwrap_or(true),
        echo: route.echo,
        score_stop_id: !matches!(route.prompts, Prompts::Chat { .. }),
        token_ids: wire.return_token_ids.unwrap_or(false),
    })
}

/// The served name of the model that the client asks for; the first one if it names none. Clients made for
/// vLLM name the model's directory, and routers such as LiteLLM put a provider in front: `openai/NAME`. The
/// name is only compared; it is never used as a path.
///
/// # Errors
/// 404 if `asked` is not served.
pub(crate) fn served_model(asked: Option<String>, limits: &Limits) -> Result<String, ApiError> {
    let first = || limits.models.first().cloned().unwrap_or_default();
    let Some(asked) = asked else { return Ok(first()) };
    let ends_with = |name: &&String| {
        let provider = asked.strip_suffix(name.as_str()).and_then(|before| before.strip_suffix('/'));
        asked == **name || provider.is_some_and(|provider| !provider.is_empty())
    };
    let path = asked.strip_suffix('/').unwrap_or(&asked);
    // The longest name, since one name can be the end of another.
    match limits.models.iter().filter(ends_with).max_by_key(|name| name.len()) {
        Some(name) => Ok(name.clone()),
        None if limits.model_paths.iter().any(|known| known == path) => Ok(first()),
        None => Err(ApiError::ModelNotFound(asked)),
    }
}

/// The number of choices per prompt.
fn choices(wire: &CommonFields, prompts: &Prompts) -> Result<u32, ApiError> {
    let n = wire.n.unwrap_or(1);
    match wire.best_of {
        None => {}
        Some(best_of) if best_of < n => {
            let text = format!("expected at least n = {n}, got {best_of}");
            return Err(ApiError::invalid("best_of", text));
        }
        Some(1) => {}
        Some(best_of) => {
            let text = format!("expected 1, since larger values are not supported, got {best_of}");
            return Err(ApiError::unsupported("best_of", text));
        }
    }
    let (count, n) = (prompts.count(), n as u32);
    if count * n as usize > MAX_SEQUENCES {
        let text =
            format!("expected at most {MAX_SEQUENCES} choices in total, got {count} prompts × n = {n}");
        return Err(ApiError::invalid(if n > 1 { "n" } else { "prompt" }, text));
    }
    Ok(n)
}

fn min_tokens(wire: &CommonFields, max_tokens: MaxTokens) -> Result<u32, ApiError> {
    let min = wire.min_tokens.unwrap_or(0) as u32;
    let (MaxTokens::Exactly(max) | MaxTokens::UpTo(max)) = max_tokens;
    if min > max {
        return Err(ApiError::invalid(
            "min_tokens",
            format!("expected at most max_tokens = {max}, got {min}"),
        ));
    }
    Ok(min)
}

fn stop_strings(path: &str, stop: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let items = match stop {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    // An empty string stands for none.
    let items: Vec<&Value> = items.iter().filter(|item| *item != "").collect();
    if items.len() > MAX_STOP_STRINGS {
        let text = format!("expected at most {MAX_STOP_STRINGS} strings, got {}", items.len());
        return Err(ApiError::invalid(path, text));
    }
    let one = |item: &Value| match item {
        Value::String(text) if text.len() > MAX_STOP_BYTES => {
            let text = format!("expected strings of at most {MAX_STOP_BYTES} bytes, got {}", text.len());
            Err(ApiError::invalid(path, text))
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_type(path, "a string or an array of strings", other)),
    };
    items.into_iter().map(one).collect()
}

fn truncate(tokens: Option<i128>) -> Result<Option<Truncate>, ApiError> {
    match tokens {
        Some(0) => Err(ApiError::invalid("truncate_prompt_tokens", "expected -1 or at least 1, got 0")),
        Some(-1) => Ok(Some(Truncate::Fit)),
        tokens => Ok(tokens.map(|tokens| Truncate::Last(tokens as u32))),
    }
}

/// The tenant of a request without a named API key: its `user`. Each tenant gets an equal share of the
/// server.
fn tenant(user: Option<String>) -> Tenant {
    // Requests without a `user`, or with an empty one, share one tenant without a name.
    let name = user.filter(|user| !user.is_empty()).map(|user| format!("user:{user}"));
    Tenant { name: name.unwrap_or_default().into(), weight: 1 }
}
