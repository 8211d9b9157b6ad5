//! Validation of fields that only `/v1/responses` has: the items of the input, flat tools, and the form of
//! the text.

use serde_json::{Value, json};

use super::chat::TemplateVariable;
use super::tools::{self, OfferedTool, ToolRequest};
use crate::generation::{ChatMessage, Content, Role};
use crate::server::constraint::Constraint;
use crate::server::error::ApiError;
use crate::server::field_table::Table;
use crate::server::fields::{Fields, missing, wrong_type};
use crate::server::responses::reply::{FormatEcho, FunctionEcho, RequestEcho, TextEcho};
use crate::server::responses::types::{
    CONTENT, CallItem, CallOutputItem, ContentPart, FlatToolWire, MAX_ITEMS, MessageItem, ResponsesWire,
    TextFormat,
};
use crate::server::tool_types::{CalledWire, FunctionWire};
use crate::server::unsupported;

/// Name in `include` of the log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The fields that the reply repeats, without temperature and `top_p`.
pub(super) fn echo(wire: &ResponsesWire, tools: &[OfferedTool]) -> RequestEcho {
    let common = &wire.common;
    let format = wire.text.as_ref().and_then(|text| text.format.as_ref());
    let format = format.map_or_else(
        || FormatEcho { kind: "text", ..FormatEcho::default() },
        |format| FormatEcho {
            kind: format.kind.unwrap_or("text"),
            name: format.name.clone(),
            description: format.description.clone(),
            schema: format.schema.clone(),
            strict: format.strict,
        },
    );
    let function = |offered: &OfferedTool| FunctionEcho {
        kind: "function",
        name: offered.tool.name.clone(),
        description: offered.tool.description.clone(),
        parameters: offered.tool.parameters.clone(),
        strict: offered.tool.strict,
    };
    RequestEcho {
        instructions: wire.instructions.clone(),
        max_output_tokens: wire.max_output_tokens.map(|tokens| tokens as u64),
        metadata: common.metadata.clone().unwrap_or_default(),
        parallel_tool_calls: wire.parallel_tool_calls.unwrap_or(true),
        top_logprobs: wire.top_logprobs.unwrap_or(0) as u64,
        text: TextEcho { format },
        tool_choice: wire.tool_choice.clone().unwrap_or_else(|| "auto".into()),
        tools: tools.iter().map(function).collect(),
        user: common.user.clone(),
        prompt_cache_key: wire.prompt_cache_key.clone(),
        safety_identifier: wire.safety_identifier.clone(),
        truncation: "disabled",
        service_tier: "default",
        ..RequestEcho::default()
    }
}

/// The tools of a request.
///
/// # Errors
/// 400 that names the field.
pub(super) fn tools(wire: &mut ResponsesWire) -> Result<ToolRequest, ApiError> {
    let tool = |path: &str, item: Value| {
        let flat = FlatToolWire::take(&mut Fields::at(path, item)?)?;
        let FlatToolWire { name, description, parameters, strict } = flat;
        OfferedTool::check(path, FunctionWire { name, description, parameters, strict }, "parameters")
    };
    Ok(ToolRequest {
        tools: tools::read_each(wire.tools.take(), tool)?,
        choice: wire.tool_choice.clone(),
        parallel: wire.parallel_tool_calls,
    })
}

/// The number of alternatives to report per token; `None` means no log-probabilities. Names in `include` of
/// parts that no reply has count as unknown fields.
///
/// # Errors
/// 400 if `include` has an item that is no string.
pub(super) fn logprobs(wire: &mut ResponsesWire) -> Result<Option<u8>, ApiError> {
    let top = wire.top_logprobs.unwrap_or(0) as u8;
    let mut asked = top > 0;
    for (i, item) in wire.include.take().unwrap_or_default().into_iter().enumerate() {
        match item {
            Value::String(name) if name == LOGPROBS => asked = true,
            Value::String(_) => wire.common.ignored.push(format!("include[{i}]")),
            other => return Err(wrong_type(&format!("include[{i}]"), "a string", &other)),
        }
    }
    Ok(asked.then_some(top))
}

/// Makes fields variables of the template if it reads them. The others are named as ignored.
pub(super) fn template_fields(wire: &mut ResponsesWire, read: &[&str]) {
    let mut variables: Vec<_> = wire
        .common
        .take_template_fields()
        .map(|(name, value)| TemplateVariable { name, path: name, value })
        .into();
    let effort = wire.reasoning.as_mut().and_then(|reasoning| reasoning.effort.take());
    let verbosity = wire.text.as_mut().and_then(|text| text.verbosity.take());
    variables.extend([
        TemplateVariable { name: "reasoning_effort", path: "reasoning.effort", value: effort },
        TemplateVariable { name: "verbosity", path: "text.verbosity", value: verbosity },
    ]);
    for variable in variables {
        variable.set(&mut wire.chat_template_kwargs, &mut wire.common.ignored, read);
    }
}

/// The constraint of `text.format`. `other` is that of another field.
///
/// # Errors
/// 400 that names the field.
pub(super) fn constraint(
    format: Option<TextFormat>,
    other: Option<Constraint>,
) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = format else { return Ok(other) };
    let path = "text.format.schema";
    let own = match (format.kind, format.schema) {
        (Some("json_schema"), Some(schema)) => Some(Constraint::json_schema(path, schema)?),
        (Some("json_schema"), None) => return Err(missing(path, "a JSON schema")),
        (_, Some(_)) => {
            return Err(ApiError::unsupported(path, "this field is not supported with this type"));
        }
        (Some("json_object"), None) => Some(Constraint::json_object("text.format")),
        (_, None) => None,
    };
    match (own, other) {
        (Some(_), Some(other)) => {
            let text = "expected one constraint on the answer, got text.format as well";
            Err(ApiError::invalid(other.path, text))
        }
        (own, other) => Ok(own.or(other)),
    }
}

/// The messages of a conversation. Paths of unknown fields are added to `wire.common.ignored`.
///
/// # Errors
/// 400 that names the field.
pub(super) fn messages(wire: &mut ResponsesWire) -> Result<Vec<ChatMessage>, ApiError> {
    let instructions = wire.instructions.take().filter(|text| !text.is_empty());
    let mut messages: Vec<ChatMessage> =
        instructions.map(|text| ChatMessage::new(Role::System, text)).into_iter().collect();
    let items = match wire.input.take() {
        Some(Value::String(text)) => {
            messages.push(ChatMessage::new(Role::User, text));
            return Ok(messages);
        }
        Some(Value::Array(items)) => items,
        other => {
            return Err(wrong_type("input", "a string or an array of items", &other.unwrap_or_default()));
        }
    };
    if items.len() > MAX_ITEMS {
        let text = format!("expected at most {MAX_ITEMS} items, got {}", items.len());
        return Err(ApiError::invalid("input", text));
    }
    let before = messages.len();
    for (i, item) in items.into_iter().enumerate() {
        add_item(&format!("input[{i}]"), item, &mut messages, &mut wire.common.ignored)?;
    }
    if messages.len() == before {
        return Err(ApiError::invalid("input", "expected at least one message, got none"));
    }
    Ok(messages)
}

/// Adds an item to the messages.
fn add_item(
    path: &str,
    item: Value,
    messages: &mut Vec<ChatMessage>,
    ignored: &mut Vec<String>,
) -> Result<(), ApiError> {
    const KINDS: &str = "one of message, function_call, function_call_output, reasoning";
    let mut fields = Fields::at(path, item)?;
    let kind = match fields.value("type") {
        None => "message".to_owned(),
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(wrong_type(&format!("{path}.type"), KINDS, &other)),
    };
    match kind.as_str() {
        "message" => {
            let wire = MessageItem::take(&mut fields)?;
            let role = match wire.role {
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                _ => Role::System,
            };
            let content = content(&format!("{path}.content"), wire.content, ignored)?;
            messages.push(ChatMessage { content, ..ChatMessage::new(role, "") });
        }
        "function_call" => {
            let (wire, called) = (CallItem::take(&mut fields)?, CalledWire::take(&mut fields)?);
            add_call(messages, tools::earlier_call(path, wire.call_id, called)?);
        }
        "function_call_output" => {
            let wire = CallOutputItem::take(&mut fields)?;
            let content = content(&format!("{path}.output"), wire.output, ignored)?;
            let mut message = ChatMessage { content, ..ChatMessage::new(Role::Tool, "") };
            message.fields.extend(wire.call_id.map(|id| ("tool_call_id".to_owned(), id.into())));
            messages.push(message);
        }
        // Only its model can use it.
        "reasoning" => return Ok(()),
        "item_reference" => {
            let text = "not supported: items are not stored; send the item itself, as clients do with \
                        store = false";
            return Err(ApiError::unsupported(format!("{path}.type"), text));
        }
        other => {
            let other: String = other.chars().take(64).collect();
            let text = format!("not supported: expected {KINDS}, got \"{other}\"");
            return Err(ApiError::unsupported(format!("{path}.type"), text));
        }
    }
    ignored.extend(unsupported::ignored_in_message(fields)?);
    Ok(())
}

/// Adds a call to the last message if it is the assistant's, or else as a message of its own.
pub(super) fn add_call(messages: &mut Vec<ChatMessage>, call: Value) {
    if messages.last().is_none_or(|last| last.role != Role::Assistant) {
        messages.push(ChatMessage::new(Role::Assistant, ""));
    }
    let Some(last) = messages.last_mut() else { return };
    let calls = last.fields.entry("tool_calls").or_insert_with(|| json!([]));
    calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
}

/// Reads the content of an item: a string, or an array of text parts.
fn content(path: &str, value: Option<Value>, ignored: &mut Vec<String>) -> Result<Content, ApiError> {
    match value {
        Some(Value::String(text)) => Ok(Content::Text(text)),
        Some(Value::Array(parts)) => {
            let part = |(i, part)| {
                let path = format!("{path}[{i}]");
                let mut fields = Fields::at(&path, part)?;
                let wire = ContentPart::take(&mut fields)?;
                ignored.extend(unsupported::ignored_in_message(fields)?);
                wire.text.or(wire.refusal).ok_or_else(|| missing(&format!("{path}.text"), "a string"))
            };
            parts.into_iter().enumerate().map(part).collect::<Result<_, _>>().map(Content::Parts)
        }
        other => Err(wrong_type(path, CONTENT, &other.unwrap_or_default())),
    }
}
