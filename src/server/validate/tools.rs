//! Validation of tools: their definitions, the choice among them, and what both mean for the prompt and for
//! the answer.

use serde_json::{Map, Value, json};

use crate::generation::{ChatMessage, Content, Role, ToolCalls};
use crate::grammar::GrammarSource;
use crate::server::constraint::{Constraint, refuse_options};
use crate::server::error::ApiError;
use crate::server::field_table::Table;
use crate::server::fields::{Fields, missing, wrong_type};
use crate::server::tool_types::{
    AllowedToolsWire, CallWire, CalledWire, FunctionWire, NamedWire, TOOL_CHOICES, ToolChoiceWire, ToolWire,
};
use crate::server::types::ChatWire;
use crate::tools::{
    AllowedTool, AnswerWithoutCalls, Tool, ToolFormat, ToolSupport, call_grammar, call_text, describe_tools,
    result_text,
};

/// The tools of a request and how the answer may use them.
#[derive(Debug, Clone)]
pub(super) struct ToolUse {
    tools: Vec<Tool>,
    /// Path of the parameters of each tool.
    paths: Vec<String>,
    /// Whether each tool may be called.
    allowed: Vec<bool>,
    mode: Mode,
    /// Whether the answer may have several calls.
    parallel: bool,
    format: ToolFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Auto,
    Required,
}

/// Reads the tools and the choice among them. `None` if the answer may not call any: then the model does not
/// see them either.
///
/// # Errors
/// 400 that names the field.
pub(super) fn read(wire: &mut ChatWire, support: Option<ToolSupport>) -> Result<Option<ToolUse>, ApiError> {
    let request = ToolRequest {
        tools: read_each(wire.tools.take(), tool)?,
        choice: wire.tool_choice.take(),
        parallel: wire.parallel_tool_calls,
    };
    request.check(support)
}

/// The tools of a request in any protocol.
#[derive(Default)]
pub(super) struct ToolRequest {
    pub(super) tools: Vec<OfferedTool>,
    /// `tool_choice` in the form of a chat completion or of a response.
    pub(super) choice: Option<Value>,
    /// Whether the answer may have several calls; true if it is not set.
    pub(super) parallel: Option<bool>,
}

/// The definition of a tool, with the paths of its fields.
pub(super) struct OfferedTool {
    pub(super) tool: Tool,
    pub(super) name_path: String,
    pub(super) parameters_path: String,
}

impl OfferedTool {
    /// Checks a definition. `path` is that of the object with the name, `parameters` the name of the field
    /// that holds the schema of the arguments.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(super) fn check(path: &str, function: FunctionWire, parameters: &str) -> Result<Self, ApiError> {
        let (name_path, parameters_path) = (format!("{path}.name"), format!("{path}.{parameters}"));
        let name = function.name.unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        if !name.chars().all(plain) {
            let text = format!("expected letters, digits and characters of _-.:/, got {}", Value::from(name));
            return Err(ApiError::invalid(name_path, text));
        }
        let tool = Tool {
            name,
            description: function.description,
            parameters: of_object(function.parameters.unwrap_or_default(), &parameters_path)?,
            strict: function.strict.unwrap_or(false),
        };
        Ok(Self { tool, name_path, parameters_path })
    }
}

/// Reads each definition of the field `tools`.
///
/// # Errors
/// 400 that names the field.
pub(super) fn read_each(
    items: Option<Vec<Value>>,
    read: impl Fn(&str, Value) -> Result<OfferedTool, ApiError>,
) -> Result<Vec<OfferedTool>, ApiError> {
    let items = items.unwrap_or_default().into_iter().enumerate();
    items.map(|(i, item)| read(&format!("tools[{i}]"), item)).collect()
}

impl ToolRequest {
    /// Checks the tools and the choice among them. `None` if the answer may not call any: then the model does
    /// not see them either.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(super) fn check(self, support: Option<ToolSupport>) -> Result<Option<ToolUse>, ApiError> {
        let (mut tools, mut paths): (Vec<Tool>, Vec<String>) = (Vec::new(), Vec::new());
        for OfferedTool { tool, name_path, parameters_path } in self.tools {
            if tools.iter().any(|other| other.name == tool.name) {
                let text = format!("expected different names, got \"{}\" twice", tool.name);
                return Err(ApiError::invalid(name_path, text));
            }
            tools.push(tool);
            paths.push(parameters_path);
        }
        let choice = choice(self.choice, &tools)?;
        let Some(choice) = choice.filter(|_| !tools.is_empty()) else { return Ok(None) };
        let Choice { mode, allowed, single } = choice;
        let Some(support) = support else { return Ok(None) };
        let Some(format) = support.format else {
            let text = "the format in which this model's chat template writes tool calls is not known; \
                        the operator can name one with --tool-call-parser";
            return Err(ApiError::unsupported("tools", text));
        };
        let parallel = !single && self.parallel.unwrap_or(true);
        Ok(Some(ToolUse { tools, paths, allowed, mode, parallel, format }))
    }
}

impl ToolUse {
    /// The tools as the chat template gets them.
    pub(super) fn for_template(&self) -> Vec<Value> {
        self.tools.iter().map(Tool::for_template).collect()
    }

    /// How calls are found in the answer.
    pub(super) fn calls(&self) -> ToolCalls {
        ToolCalls { format: self.format, names: self.tools.iter().map(|tool| tool.name.clone()).collect() }
    }

    /// The constraint on the whole answer. `other` constrains the answer without calls. With
    /// `reject_ignored`, keywords that cannot be enforced are errors for all tools.
    ///
    /// # Errors
    /// 400 if `other` cannot be combined with tools.
    pub(super) fn constraint(
        &self,
        other: Option<Constraint>,
        reject_ignored: bool,
    ) -> Result<Option<Constraint>, ApiError> {
        let allowed: Vec<(usize, &Tool)> =
            self.tools.iter().enumerate().filter(|(i, _)| self.allowed[*i]).collect();
        let (path, without) = match (self.mode, other) {
            (Mode::Required, None) => ("tools".to_owned(), AnswerWithoutCalls::Never),
            (Mode::Required, Some(other)) => {
                let text =
                    "expected no other constraint on the answer with a tool_choice that requires a call";
                return Err(ApiError::invalid(other.path, text));
            }
            (Mode::Auto, Some(Constraint { path, source: GrammarSource::JsonSchema(schema) })) => {
                (path.clone(), AnswerWithoutCalls::Json { schema, path })
            }
            (Mode::Auto, Some(other)) => {
                let text = "only a JSON schema can be combined with tools; expected tool_choice = \"none\"";
                return Err(ApiError::unsupported(other.path, text));
            }
            (Mode::Auto, None) => {
                let strict = allowed.iter().any(|(_, tool)| tool.strict);
                if !strict && self.parallel && allowed.len() == self.tools.len() {
                    return Ok(None);
                }
                ("tools".to_owned(), AnswerWithoutCalls::Text)
            }
        };
        let must_follow = self.mode == Mode::Required || reject_ignored;
        let tools = allowed.iter().map(|&(i, tool)| {
            let lenient = !must_follow && !tool.strict;
            AllowedTool { tool, path: &self.paths[i], lenient }
        });
        let tools: Vec<AllowedTool<'_>> = tools.collect();
        let source = call_grammar(self.format, &tools, self.parallel, &without);
        Ok(Some(Constraint { path, source }))
    }
}

/// Reads the definition of a tool.
fn tool(path: &str, item: Value) -> Result<OfferedTool, ApiError> {
    let function = ToolWire::take(&mut Fields::at(path, item)?)?.function.unwrap_or_default();
    OfferedTool::check(&format!("{path}.function"), function, "parameters")
}

/// Reads the calls of an earlier answer. Chat templates expect arguments as an object, not as text.
pub(super) fn earlier_calls(path: &str, items: Vec<Value>) -> Result<Value, ApiError> {
    let call = |(i, item): (usize, Value)| {
        let wire = CallWire::take(&mut Fields::at(&format!("{path}[{i}]"), item)?)?;
        earlier_call(&format!("{path}[{i}].function"), wire.id, wire.function.unwrap_or_default())
    };
    items.into_iter().enumerate().map(call).collect()
}

/// A call of an earlier answer as chat templates expect it. `path` is that of the object with the arguments.
///
/// # Errors
/// 400 if the arguments have the wrong type.
pub(super) fn earlier_call(path: &str, id: Option<String>, called: CalledWire) -> Result<Value, ApiError> {
    let arguments = match called.arguments {
        None => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        // Arguments that were cut off are no JSON.
        Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Some(object @ Value::Object(_)) => object,
        Some(other) => {
            return Err(wrong_type(&format!("{path}.arguments"), "a string with JSON, or an object", &other));
        }
    };
    let function = json!({ "name": called.name.unwrap_or_default(), "arguments": arguments });
    let mut call = json!({ "type": "function", "function": function });
    if let Some(id) = id {
        call["id"] = id.into();
    }
    Ok(call)
}

/// The messages with all as text that the template does not show: calls, or tools, calls and results.
/// Messages without tools and calls are left as they are.
pub(super) fn as_text(messages: Vec<ChatMessage>, support: ToolSupport, tools: &[Value]) -> Vec<ChatMessage> {
    let Some(format) = support.format else { return messages };
    if support.in_template {
        let adapted =
            |message| if support.calls_in_template { message } else { calls_as_text(message, format) };
        return messages.into_iter().map(adapted).collect();
    }
    if tools.is_empty() && !messages.iter().any(|message| message.fields.contains_key("tool_calls")) {
        return messages;
    }
    let mut adapted: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
    let mut after_result = false;
    for message in messages {
        let text = joined(&message.content);
        match message.role {
            Role::Assistant => adapted.push(calls_as_text(message, format)),
            Role::Tool | Role::User => {
                let is_result = message.role == Role::Tool;
                let text = if is_result { result_text(&text) } else { text };
                match adapted.last_mut().filter(|_| after_result) {
                    // Many templates expect that user and assistant alternate.
                    Some(last) => last.content = Content::Text(format!("{}\n{text}", joined(&last.content))),
                    None if is_result => adapted.push(ChatMessage::new(Role::User, text)),
                    None => adapted.push(message),
                }
                after_result = is_result;
                continue;
            }
            Role::System => adapted.push(message),
        }
        after_result = false;
    }
    if !tools.is_empty() {
        let description = describe_tools(format, tools);
        match adapted.first_mut().filter(|first| first.role == Role::System) {
            Some(first) => {
                first.content = Content::Text(format!("{}\n\n{description}", joined(&first.content)));
            }
            None => adapted.insert(0, ChatMessage::new(Role::System, description)),
        }
    }
    adapted
}

/// The message with its calls as the model writes them.
fn calls_as_text(mut message: ChatMessage, format: ToolFormat) -> ChatMessage {
    if let Some(Value::Array(calls)) = message.fields.remove("tool_calls") {
        let text = Some(joined(&message.content)).filter(|text| !text.is_empty());
        let calls = calls.iter().map(|call| {
            let function = &call["function"];
            let name = function["name"].as_str().unwrap_or_default();
            call_text(format, name, &function["arguments"].to_string())
        });
        let parts: Vec<String> = text.into_iter().chain(calls).collect();
        message.content = Content::Text(parts.join("\n"));
    }
    message
}

fn joined(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::Parts(parts) => parts.join("\n"),
    }
}

/// The schema of a tool's parameters, which are always an object.
fn of_object(mut schema: Map<String, Value>, path: &str) -> Result<Map<String, Value>, ApiError> {
    refuse_options(&schema, path)?;
    let combined = ["$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| schema.contains_key(*key));
    match schema.get("type") {
        None if combined => {}
        None => {
            schema.insert("type".to_owned(), "object".into());
        }
        Some(kind) if kind == "object" => {}
        Some(other) => {
            let text = format!("expected \"object\", got {other}");
            return Err(ApiError::invalid(format!("{path}.type"), text));
        }
    }
    if !combined {
        schema.entry("properties").or_insert_with(|| json!({}));
    }
    Ok(schema)
}

/// The choice of a request that may call tools.
struct Choice {
    mode: Mode,
    allowed: Vec<bool>,
    /// Whether the answer is a single call, because the choice names its tool.
    single: bool,
}

/// Reads the field `tool_choice`; `None` means that no tool may be called.
fn choice(value: Option<Value>, tools: &[Tool]) -> Result<Option<Choice>, ApiError> {
    let all = |mode| Choice { mode, allowed: vec![true; tools.len()], single: false };
    let choice = match value {
        None => Some(all(Mode::Auto)),
        Some(Value::String(word)) => match word.as_str() {
            "none" => None,
            "auto" => Some(all(Mode::Auto)),
            "required" | "any" => Some(all(Mode::Required)),
            other => {
                let text = format!("expected {TOOL_CHOICES}, got \"{other}\"");
                return Err(ApiError::invalid("tool_choice", text));
            }
        },
        Some(value @ Value::Object(_)) => {
            let wire = ToolChoiceWire::take(&mut Fields::at("tool_choice", value)?)?;
            match wire.kind {
                Some("allowed_tools") => {
                    let (place, wire) = match wire.allowed_tools {
                        Some(inner) => ("tool_choice.allowed_tools", inner),
                        None => ("tool_choice", AllowedToolsWire { mode: wire.mode, tools: wire.tools }),
                    };
                    Some(allowed_tools(place, wire, tools)?)
                }
                _ => {
                    let named = NamedWire { name: wire.name, function: wire.function };
                    let is_flat = named.function.is_none() && named.name.is_some();
                    let path = if is_flat { "tool_choice.name" } else { "tool_choice.function.name" };
                    let at = position(tools, named, path)?;
                    let allowed = (0..tools.len()).map(|i| i == at).collect();
                    Some(Choice { mode: Mode::Required, allowed, single: true })
                }
            }
        }
        Some(other) => return Err(wrong_type("tool_choice", TOOL_CHOICES, &other)),
    };
    let required = choice.as_ref().is_some_and(|choice| choice.mode == Mode::Required);
    if required && tools.is_empty() {
        return Err(ApiError::invalid("tool_choice", "expected tools with this choice, got none"));
    }
    Ok(choice)
}

/// The choice of some of the tools. `place` is the path of the object.
fn allowed_tools(place: &str, wire: AllowedToolsWire, tools: &[Tool]) -> Result<Choice, ApiError> {
    let mode = if wire.mode == Some("required") { Mode::Required } else { Mode::Auto };
    let path = format!("{place}.tools");
    let items = wire.tools.ok_or_else(|| missing(&path, "an array of tools"))?;
    let mut allowed = vec![false; tools.len()];
    for (i, item) in items.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let named = NamedWire::take(&mut Fields::at(&path, item)?)?;
        allowed[position(tools, named, &path)?] = true;
    }
    Ok(Choice { mode, allowed, single: false })
}

/// The index of the tool that is named.
fn position(tools: &[Tool], named: NamedWire, path: &str) -> Result<usize, ApiError> {
    let name = named.name.or(named.function.and_then(|function| function.name));
    let name = name.ok_or_else(|| missing(path, "the name of a tool"))?;
    let at = tools.iter().position(|tool| tool.name == name);
    at.ok_or_else(|| {
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        let names = if names.is_empty() { "tools with this choice".to_owned() } else { names.join(", ") };
        ApiError::invalid(path, format!("expected one of {names}, got {}", Value::from(name)))
    })
}
