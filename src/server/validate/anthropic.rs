//! Validation of fields that only `/v1/messages` has: blocks of messages, tools with an input schema, and the
//! choice among them.

use serde_json::{Value, json};

use super::chat;
use super::responses::add_call;
use super::tools::{self, OfferedTool, ToolRequest, ToolUse};
use crate::generation::{ChatMessage, Content, Prompts, RenderOptions, Role};
use crate::server::anthropic::types::{
    AnthropicToolWire, CONTENT, ChoiceWire, ConversationWire, TextBlock, ThinkingBlock, ToolResultBlock,
    ToolUseBlock, TurnWire,
};
use crate::server::constraint::Constraint;
use crate::server::error::ApiError;
use crate::server::field_table::Table;
use crate::server::fields::{Fields, missing, wrong_type};
use crate::server::tool_types::{CalledWire, FunctionWire};
use crate::server::unsupported;
use crate::tools::ToolSupport;

/// Forms of a text.
const TEXTS: &str = "a string or an array of text blocks";

/// The tools that the answer may call.
///
/// # Errors
/// 400 that names the field.
pub(super) fn tools(
    wire: &mut ConversationWire,
    support: Option<ToolSupport>,
) -> Result<Option<ToolUse>, ApiError> {
    let tool = |path: &str, item: Value| {
        let AnthropicToolWire { name, description, input_schema, strict } =
            AnthropicToolWire::take(&mut Fields::at(path, item)?)?;
        let function = FunctionWire { name, description, parameters: input_schema, strict };
        OfferedTool::check(path, function, "input_schema")
    };
    let mut request =
        ToolRequest { tools: tools::read_each(wire.tools.take(), tool)?, ..ToolRequest::default() };
    if let Some(ChoiceWire { kind, name, disable_parallel_tool_use }) = wire.tool_choice.take() {
        request.choice = Some(match (kind, name) {
            (Some("tool"), Some(name)) => json!({ "type": "function", "name": name }),
            (Some("tool"), None) => return Err(missing("tool_choice.name", "the name of a tool")),
            (kind, _) => kind.into(),
        });
        request.parallel = disable_parallel_tool_use.map(|disable| !disable);
    }
    request.check(support)
}

/// The constraint of `output_config.format`. `other` is that of another field.
///
/// # Errors
/// 400 that names the field.
pub(super) fn constraint(
    wire: &mut ConversationWire,
    other: Option<Constraint>,
) -> Result<Option<Constraint>, ApiError> {
    let format = wire.output_config.take().and_then(|config| config.format);
    let Some(schema) = format.and_then(|format| format.schema) else { return Ok(other) };
    match other {
        Some(other) => {
            let text = "expected one constraint on the answer, got output_config.format as well";
            Err(ApiError::invalid(other.path, text))
        }
        None => Constraint::json_schema("output_config.format.schema", schema).map(Some),
    }
}

/// The conversation with these tools. Paths of unknown fields are added to `ignored`.
///
/// # Errors
/// 400 that names the field.
pub(super) fn prompts(
    wire: &mut ConversationWire,
    ignored: &mut Vec<String>,
    support: Option<ToolSupport>,
    tools: Option<&ToolUse>,
) -> Result<Prompts, ApiError> {
    let mut turns = Turns { messages: Vec::new(), ignored };
    if let Some(system) = wire.system.take() {
        for text in texts("system", system, turns.ignored)? {
            turns.text(Role::System, text);
        }
    }
    let before = turns.messages.len();
    let items = wire.messages.take().unwrap_or_default();
    let last = items.len().saturating_sub(1);
    for (i, item) in items.into_iter().enumerate() {
        turns.add(&format!("messages[{i}]"), item)?;
    }
    let mut messages = turns.messages;
    if messages.len() == before {
        return Err(ApiError::invalid("messages", "expected at least one text, got none"));
    }
    for message in &mut messages {
        // Templates get a string where one will do.
        if let Content::Parts(parts) = &mut message.content
            && let [only] = parts.as_mut_slice()
        {
            message.content = Content::Text(std::mem::take(only));
        }
    }
    let continues = messages.last().is_some_and(|last| last.role == Role::Assistant);
    if continues && messages.last().is_some_and(|last| last.fields.contains_key("tool_calls")) {
        let text = "expected a message with tool_result blocks after tool_use blocks, got none";
        return Err(ApiError::invalid(format!("messages[{last}]"), text));
    }
    let options = RenderOptions {
        add_generation_prompt: !continues,
        continue_final_message: continues,
        ..RenderOptions::default()
    };
    Ok(chat::conversation(messages, options, support, tools))
}

/// Messages so far. Neighbours of one author are one message.
struct Turns<'a> {
    messages: Vec<ChatMessage>,
    ignored: &'a mut Vec<String>,
}

impl Turns<'_> {
    /// Adds a message of the request.
    fn add(&mut self, path: &str, item: Value) -> Result<(), ApiError> {
        let mut fields = Fields::at(path, item)?;
        let wire = TurnWire::take(&mut fields)?;
        self.ignored.extend(unsupported::ignored_in_message(fields)?);
        let role = match wire.role {
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            _ => Role::System,
        };
        match wire.content {
            Some(Value::String(text)) => {
                // An empty beginning of an answer is none.
                if !(text.is_empty() && role == Role::Assistant) {
                    self.text(role, text);
                }
                Ok(())
            }
            Some(Value::Array(blocks)) => {
                let mut blocks = blocks.into_iter().enumerate();
                blocks.try_for_each(|(i, block)| self.block(&format!("{path}.content[{i}]"), role, block))
            }
            other => Err(wrong_type(&format!("{path}.content"), CONTENT, &other.unwrap_or_default())),
        }
    }

    /// Adds a block of a message.
    fn block(&mut self, path: &str, role: Role, block: Value) -> Result<(), ApiError> {
        let kinds = match role {
            Role::User => "one of text, tool_result",
            Role::Assistant => "one of text, tool_use, thinking, redacted_thinking",
            _ => "text",
        };
        let mut fields = Fields::at(path, block)?;
        let kind = match fields.value("type") {
            Some(Value::String(kind)) => kind,
            Some(other) => return Err(wrong_type(&format!("{path}.type"), kinds, &other)),
            None => return Err(missing(&format!("{path}.type"), kinds)),
        };
        match (role, kind.as_str()) {
            (_, "text") => {
                let wire = TextBlock::take(&mut fields)?;
                self.text(role, wire.text.unwrap_or_default());
            }
            (Role::Assistant, "tool_use") => {
                let wire = ToolUseBlock::take(&mut fields)?;
                let called = CalledWire { name: wire.name, arguments: wire.input.map(Value::Object) };
                add_call(&mut self.messages, tools::earlier_call(path, wire.id, called)?);
            }
            (Role::User, "tool_result") => {
                let wire = ToolResultBlock::take(&mut fields)?;
                self.result(path, wire)?;
            }
            (Role::Assistant, "thinking" | "redacted_thinking") => {
                let wire = ThinkingBlock::take(&mut fields)?;
                if let Some(thinking) = wire.thinking.filter(|text| !text.is_empty()) {
                    let message = self.last_of(role);
                    message.fields.entry("reasoning_content").or_insert(thinking.into());
                }
            }
            (_, other) => {
                let other: String = other.chars().take(64).collect();
                let text = format!("not supported: expected {kinds}, got \"{other}\"");
                return Err(ApiError::unsupported(format!("{path}.type"), text));
            }
        }
        self.ignored.extend(unsupported::ignored_in_message(fields)?);
        Ok(())
    }

    /// Adds the result of a call.
    fn result(&mut self, path: &str, wire: ToolResultBlock) -> Result<(), ApiError> {
        let mut parts = match wire.content {
            Some(content) => texts(&format!("{path}.content"), content, self.ignored)?,
            None => Vec::new(),
        };
        if wire.is_error == Some(true) {
            match parts.first_mut() {
                Some(first) => first.insert_str(0, "Error: "),
                None => parts.push("Error: ".to_owned()),
            }
        }
        if parts.is_empty() {
            parts.push(String::new());
        }
        let mut message = ChatMessage { content: Content::Parts(parts), ..ChatMessage::new(Role::Tool, "") };
        message.fields.extend(wire.tool_use_id.map(|id| ("tool_call_id".to_owned(), id.into())));
        self.messages.push(message);
        Ok(())
    }

    /// Adds a text to the last message if it has this author, or else as a message of its own.
    fn text(&mut self, role: Role, text: String) {
        if let Content::Parts(parts) = &mut self.last_of(role).content {
            parts.push(text);
        }
    }

    /// The last message if it has this author, or else a new one.
    fn last_of(&mut self, role: Role) -> &mut ChatMessage {
        if self.messages.last().is_none_or(|last| last.role != role) {
            let content = Content::Parts(Vec::new());
            self.messages.push(ChatMessage { content, ..ChatMessage::new(role, "") });
        }
        self.messages.last_mut().expect("a message was added")
    }
}

/// Reads a string or an array of text blocks.
fn texts(path: &str, value: Value, ignored: &mut Vec<String>) -> Result<Vec<String>, ApiError> {
    let blocks = match value {
        Value::String(text) => return Ok(vec![text]),
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(path, TEXTS, &other)),
    };
    let block = |(i, block)| {
        let path = format!("{path}[{i}]");
        let mut fields = Fields::at(&path, block)?;
        match fields.value("type") {
            Some(kind) if kind == "text" => {}
            Some(Value::String(kind)) => {
                let kind: String = kind.chars().take(64).collect();
                let text = format!("not supported: expected \"text\", got \"{kind}\"");
                return Err(ApiError::unsupported(format!("{path}.type"), text));
            }
            other => return Err(wrong_type(&format!("{path}.type"), "\"text\"", &other.unwrap_or_default())),
        }
        let wire = TextBlock::take(&mut fields)?;
        ignored.extend(unsupported::ignored_in_message(fields)?);
        Ok(wire.text.unwrap_or_default())
    };
    blocks.into_iter().enumerate().map(block).collect()
}
