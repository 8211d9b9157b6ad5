//! Validation of fields that only chat completions have: messages, template options, and the fields for which
//! OpenAI has two spellings.

use serde_json::{Map, Value};

use super::tools::{self, ToolUse};
use crate::generation::{ChatMessage, Content, MaxTokens, Prompts, RenderOptions, Role};
use crate::server::error::ApiError;
use crate::server::field_table::Table;
use crate::server::fields::{Fields, missing, wrong_type};
use crate::server::types::{ChatWire, MessageWire, PartWire};
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

/// Forms of a message's content.
const CONTENT: &str = "a string or an array of text parts";

/// Makes fields variables of the template if it reads them. The others are named as ignored.
/// `chat_template_kwargs` has precedence.
pub(super) fn template_fields(wire: &mut ChatWire, read: &[&str]) {
    for (name, value) in wire.common.take_template_fields() {
        let variable = TemplateVariable { name, path: name, value };
        variable.set(&mut wire.chat_template_kwargs, &mut wire.common.ignored, read);
    }
}

/// A field that is a variable of the template if the template reads it.
pub(super) struct TemplateVariable {
    /// Name of the variable.
    pub(super) name: &'static str,
    /// Path of the field.
    pub(super) path: &'static str,
    pub(super) value: Option<String>,
}

impl TemplateVariable {
    /// Sets the variable, or names the field as ignored. `read` has the variables that the template reads.
    pub(super) fn set(
        self,
        kwargs: &mut Option<Map<String, Value>>,
        ignored: &mut Vec<String>,
        read: &[&str],
    ) {
        let Some(value) = self.value else { return };
        if read.contains(&self.name) {
            kwargs.get_or_insert_default().entry(self.name).or_insert(Value::String(value));
        } else {
            ignored.push(self.path.to_owned());
        }
    }
}

/// The token limit, from `max_tokens` or `max_completion_tokens`. If both are set they must be equal.
pub(super) fn max_tokens(wire: &ChatWire) -> Result<Option<MaxTokens>, ApiError> {
    match (wire.max_tokens, wire.max_completion_tokens) {
        (Some(old), Some(new)) if old != new => {
            let text = format!("expected the same value as max_tokens = {old}, got {new}");
            Err(ApiError::invalid("max_completion_tokens", text))
        }
        (old, new) if new.or(old) == Some(0) && wire.common.prompt_logprobs.is_none() => {
            let field = if new.is_some() { "max_completion_tokens" } else { "max_tokens" };
            Err(ApiError::invalid(field, "expected at least 1, or prompt_logprobs with it, got 0"))
        }
        (old, new) => Ok(new.or(old).map(|tokens| MaxTokens::Exactly(tokens as u32))),
    }
}

/// The number of alternatives to report per token. `None` means no log-probabilities at all, 0 those of the
/// sampled tokens alone.
pub(super) fn logprobs(wire: &ChatWire) -> Result<Option<u8>, ApiError> {
    let top = wire.top_logprobs.map(|top| top as u8);
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
    let items = wire.messages.take().unwrap_or_default();
    let messages = messages("messages", &items, &mut wire.common.ignored)?;
    let continues = wire.continue_final_message.unwrap_or(false);
    if continues && wire.add_generation_prompt == Some(true) {
        let text = "expected add_generation_prompt = false with this field, got true";
        return Err(ApiError::invalid("continue_final_message", text));
    }
    if continues && !messages.last().is_some_and(|last| last.role == Role::Assistant) {
        let text = "expected a last message with the role assistant, got another role";
        return Err(ApiError::invalid("continue_final_message", text));
    }
    let options = RenderOptions {
        add_generation_prompt: wire.add_generation_prompt.unwrap_or(!continues),
        continue_final_message: continues,
        kwargs: kwargs(wire.chat_template_kwargs.as_ref())?,
    };
    Ok(conversation(messages, options, support, tools))
}

/// The prompt of these messages, with these tools.
pub(super) fn conversation(
    messages: Vec<ChatMessage>,
    mut options: RenderOptions,
    support: Option<ToolSupport>,
    tools: Option<&ToolUse>,
) -> Prompts {
    let tools = tools.map(ToolUse::for_template).unwrap_or_default();
    let messages = match support {
        Some(support) => tools::as_text(messages, support, &tools),
        None => messages,
    };
    if support.is_some_and(|support| support.in_template) && !tools.is_empty() {
        options.kwargs.insert("tools".to_owned(), tools.into());
    }
    Prompts::Chat { messages, options }
}

/// Additional variables for the template.
pub(super) fn kwargs(map: Option<&Map<String, Value>>) -> Result<Map<String, Value>, ApiError> {
    let map = map.cloned().unwrap_or_default();
    match map.keys().find(|key| RESERVED_KWARGS.contains(&key.as_str())) {
        Some(key) => Err(ApiError::invalid(
            "chat_template_kwargs",
            format!("expected names that the server does not set itself, got {key}"),
        )),
        None => Ok(map),
    }
}

/// Reads the messages of the conversation at `path`. Only text content is supported.
pub(super) fn messages(
    path: &str,
    items: &[Value],
    ignored: &mut Vec<String>,
) -> Result<Vec<ChatMessage>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid(path, "expected at least one message, got none"));
    }
    // DeepSeek's and Moonshot's fields of a last message that the answer continues.
    let last = items.len() - 1;
    let asks = |name: &&str| items[last].get(*name).is_some_and(|value| !value.is_null() && value != false);
    if let Some(name) = ["prefix", "partial"].into_iter().find(asks) {
        let text = "this field is not supported; the request's continue_final_message does the same";
        return Err(ApiError::unsupported(format!("{path}[{last}].{name}"), text));
    }
    items.iter().enumerate().map(|(i, item)| message(&format!("{path}[{i}]"), item, ignored)).collect()
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
    let wire = MessageWire::take(&mut fields)?;
    let role = match wire.role {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => Role::System,
    };
    let calls = wire.tool_calls.filter(|calls| !calls.is_empty());
    if calls.is_some() && role != Role::Assistant {
        let text = "expected tool calls in messages of the assistant only";
        return Err(ApiError::invalid(format!("{path}.tool_calls"), text));
    }
    let content_path = format!("{path}.content");
    let content = match wire.content {
        Some(value) => content(&content_path, value, ignored)?,
        None if calls.is_some() => Content::Text(String::new()),
        None => return Err(missing(&content_path, CONTENT)),
    };
    let calls_path = format!("{path}.tool_calls");
    let calls = calls.map(|calls| tools::earlier_calls(&calls_path, calls)).transpose()?;
    if role == Role::Tool && wire.tool_call_id.is_none() {
        return Err(missing(&format!("{path}.tool_call_id"), "a string"));
    }
    // Fields of earlier answers that only the template reads. Like vLLM's, it does not get unknown fields.
    let others = [
        ("reasoning_content", wire.reasoning_content),
        ("reasoning", wire.reasoning),
        ("thinking", wire.thinking),
        ("refusal", wire.refusal),
        ("annotations", wire.annotations),
        ("tool_calls", calls),
        ("tool_call_id", wire.tool_call_id.map(Value::String)),
    ];
    let others = others.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    ignored.extend(unsupported::ignored_in_message(fields)?);
    Ok(ChatMessage { role, content, name: wire.name, fields: others })
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
    let wire = PartWire::take(&mut fields)?;
    ignored.extend(unsupported::ignored_in_message(fields)?);
    Ok(wire.text.unwrap_or_default())
}
