//! Validation of fields that only chat completions have: messages, template options, and the fields for which
//! OpenAI has two spellings.

use serde_json::{Map, Value};

use super::limits::MAX_MESSAGES;
use super::tools::{self, ToolUse};
use super::values::{alternatives, in_range};
use crate::generation::{ChatMessage, Content, MaxTokens, Prompts, RenderOptions, Role};
use crate::server::error::ApiError;
use crate::server::fields::{Fields, missing, wrong_type};
use crate::server::types::ChatWire;
use crate::server::unsupported;
use crate::tools::ToolSupport;

/// Variables and functions that the renderer sets, and arguments of `apply_chat_template`. A request cannot
/// set them.
const RESERVED_KWARGS: [&str; 16] = [
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "tools",
    "documents",
    "tokenize",
    "tokenizer",
    "chat_template",
    "conversation",
    "raise_exception",
    "strftime_now",
    "return_dict",
];

/// Roles of messages.
const ROLES: &str = "one of system, developer, user, assistant, tool";
/// Forms of a message's content.
const CONTENT: &str = "a string or an array of text parts";

/// Fields of a message that only the template reads. Like vLLM's, it does not get unknown fields.
const TEMPLATE_FIELDS: [&str; 5] = ["reasoning_content", "reasoning", "thinking", "refusal", "annotations"];

/// The token limit, from `max_tokens` or `max_completion_tokens`. If both are set they must be equal.
pub(super) fn max_tokens(wire: &ChatWire) -> Result<Option<MaxTokens>, ApiError> {
    let most = i128::from(u32::MAX);
    let old = in_range("max_tokens", wire.common.max_tokens, 1, most)?;
    let new = in_range("max_completion_tokens", wire.max_completion_tokens, 1, most)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let text = format!("expected the same value as max_tokens = {old}, got {new}");
            Err(ApiError::invalid("max_completion_tokens", text))
        }
        _ => Ok(new.or(old).map(|tokens| MaxTokens::Exactly(tokens as u32))),
    }
}

/// The number of alternatives to report per token. `None` means no log-probabilities at all, 0 those of the
/// sampled tokens alone.
pub(super) fn logprobs(wire: &ChatWire) -> Result<Option<u8>, ApiError> {
    let top = alternatives("top_logprobs", wire.top_logprobs)?;
    match (wire.logprobs.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::invalid("top_logprobs", "expected logprobs = true with this field"))
        }
    }
}

/// The conversation and its render options, with these tools. Paths of unknown fields are added to
/// `wire.common.ignored`.
pub(super) fn prompts(
    wire: &mut ChatWire,
    support: Option<ToolSupport>,
    tools: Option<&ToolUse>,
) -> Result<Prompts, ApiError> {
    let messages = messages(wire.messages.take().as_deref(), &mut wire.common.ignored)?;
    let continues = wire.continue_final_message.unwrap_or(false);
    if continues && wire.add_generation_prompt == Some(true) {
        let text = "expected add_generation_prompt = false with this field, got true";
        return Err(ApiError::invalid("continue_final_message", text));
    }
    if continues && !messages.last().is_some_and(|last| last.role == Role::Assistant) {
        let text = "expected a last message with the role assistant, got another role";
        return Err(ApiError::invalid("continue_final_message", text));
    }
    let mut kwargs = kwargs(wire.chat_template_kwargs.as_ref())?;
    let tools = tools.map(ToolUse::for_template).unwrap_or_default();
    let messages = match support {
        Some(support) => tools::as_text(messages, support, &tools),
        None => messages,
    };
    if support.is_some_and(|support| support.in_template) && !tools.is_empty() {
        kwargs.insert("tools".to_owned(), tools.into());
    }
    let options = RenderOptions {
        add_generation_prompt: wire.add_generation_prompt.unwrap_or(!continues),
        continue_final_message: continues,
        kwargs,
    };
    Ok(Prompts::Chat { messages, options })
}

/// Additional variables for the template.
fn kwargs(map: Option<&Map<String, Value>>) -> Result<Map<String, Value>, ApiError> {
    let map = map.cloned().unwrap_or_default();
    match map.keys().find(|key| RESERVED_KWARGS.contains(&key.as_str())) {
        Some(key) => Err(ApiError::invalid(
            "chat_template_kwargs",
            format!("expected names that the server does not set itself, got {key}"),
        )),
        None => Ok(map),
    }
}

/// Reads the messages of a conversation. Only text content is supported.
fn messages(items: Option<&[Value]>, ignored: &mut Vec<String>) -> Result<Vec<ChatMessage>, ApiError> {
    let items = items.unwrap_or_default();
    if items.is_empty() {
        return Err(ApiError::invalid("messages", "expected at least one message, got none"));
    }
    if items.len() > MAX_MESSAGES {
        let text = format!("expected at most {MAX_MESSAGES} messages, got {}", items.len());
        return Err(ApiError::invalid("messages", text));
    }
    // DeepSeek's and Moonshot's fields of a last message that the answer continues.
    let last = items.len() - 1;
    let asks = |name: &&str| items[last].get(*name).is_some_and(|value| !value.is_null() && value != false);
    if let Some(name) = ["prefix", "partial"].into_iter().find(asks) {
        let text = "this field is not supported; the request's continue_final_message does the same";
        return Err(ApiError::unsupported(format!("messages[{last}].{name}"), text));
    }
    items.iter().enumerate().map(|(i, item)| message(&format!("messages[{i}]"), item, ignored)).collect()
}

/// Reads one message. Paths of unknown fields are added to `ignored`.
fn message(path: &str, item: &Value, ignored: &mut Vec<String>) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::at(path, item.clone())?;
    for name in ["function_call", "audio"] {
        let asks = |value: &Value| value.as_array().is_none_or(|items| !items.is_empty());
        if fields.value(name).is_some_and(|value| asks(&value)) {
            return Err(ApiError::unsupported(format!("{path}.{name}"), "this field is not supported"));
        }
    }
    let role = match fields.string("role")?.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(other) => {
            let text = format!("expected {ROLES}, got \"{other}\"");
            return Err(ApiError::invalid(format!("{path}.role"), text));
        }
        None => return Err(missing(&format!("{path}.role"), ROLES)),
    };
    let calls = fields.array("tool_calls")?.filter(|calls| !calls.is_empty());
    if calls.is_some() && role != Role::Assistant {
        let text = "expected tool calls in messages of the assistant only";
        return Err(ApiError::invalid(format!("{path}.tool_calls"), text));
    }
    let content_path = format!("{path}.content");
    let content = match fields.value("content") {
        Some(value) => content(&content_path, value, ignored)?,
        None if calls.is_some() => Content::Text(String::new()),
        None => return Err(missing(&content_path, CONTENT)),
    };
    let tool_call_id = fields.string("tool_call_id")?;
    if role == Role::Tool && tool_call_id.is_none() {
        return Err(missing(&format!("{path}.tool_call_id"), "a string"));
    }
    let name = fields.string("name")?;
    // Clients send fields of earlier answers back.
    let mut others: Map<String, Value> =
        TEMPLATE_FIELDS.into_iter().filter_map(|name| Some((name.to_owned(), fields.value(name)?))).collect();
    if let Some(calls) = calls {
        others.insert("tool_calls".to_owned(), tools::earlier_calls(&format!("{path}.tool_calls"), calls)?);
    }
    others.extend(tool_call_id.map(|id| ("tool_call_id".to_owned(), Value::String(id))));
    ignored.extend(unsupported::ignored_in_message(fields)?);
    Ok(ChatMessage { role, content, name, fields: others })
}

/// Reads the content of a message: a string, or an array of text parts.
fn content(path: &str, value: Value, ignored: &mut Vec<String>) -> Result<Content, ApiError> {
    match value {
        Value::String(text) => Ok(Content::Text(text)),
        Value::Array(parts) => {
            let part = |(i, part)| text_part(&format!("{path}[{i}]"), part, ignored);
            parts.into_iter().enumerate().map(part).collect::<Result<_, _>>().map(Content::Parts)
        }
        other => Err(wrong_type(path, CONTENT, &other)),
    }
}

fn text_part(path: &str, part: Value, ignored: &mut Vec<String>) -> Result<String, ApiError> {
    let mut fields = Fields::at(path, part)?;
    match fields.string("type")?.as_deref() {
        Some("text") => {}
        Some(other) => {
            let text = format!("expected \"text\", the only type that is supported, got \"{other}\"");
            return Err(ApiError::unsupported(format!("{path}.type"), text));
        }
        None => return Err(missing(&format!("{path}.type"), "\"text\"")),
    }
    let text = fields.string("text")?;
    let _unused = fields.value("cache_control");
    ignored.extend(unsupported::ignored_in_message(fields)?);
    text.ok_or_else(|| missing(&format!("{path}.text"), "a string"))
}
