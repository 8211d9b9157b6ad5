//! Chat templates: a list of messages to the text that the model was trained to continue.
//!
//! Templates are written in Jinja2 as transformers runs it (`jinja`, `python`). They come with the weights.
//! They run with limits on steps, work, depth and output, so that a broken template fails its request alone.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};

use super::files::{TemplateSource, chat_templates, file_error};
use super::jinja::{self, SyntaxError};
use super::strftime::strftime;
use super::tokenizer::Tokenizer;
use super::turn_marker_guard::{self as guard, CUT, Rendered, TextKind, TurnMarkers};
use super::{TextError, python};

/// Most template instructions per rendering. A long conversation takes about a hundred per message.
const FUEL: u64 = 5_000_000;
/// Most nested macros and loops.
const MAX_DEPTH: usize = 200;
/// Longest rendered text, in bytes.
const MAX_RENDERED_BYTES: usize = 64 << 20;

/// Author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl Role {
    /// The name that templates use.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Author of the message.
    pub role: Role,
    /// Text of the message. No part of it is ever encoded as a turn marker.
    pub content: String,
    /// Name of the author. Most templates ignore it.
    pub name: Option<String>,
    /// Other fields by name, such as `tool_call_id` and `reasoning_content`.
    pub fields: Map<String, Value>,
}

/// Fields with the model's reasoning. Templates read the first; clients send any.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatMessage {
    /// A message that has no other fields.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), name: None, fields: Map::new() }
    }

    /// Bytes of the text and of the fields that are text.
    pub(crate) fn text_bytes(&self) -> usize {
        let fields = self.fields.values().filter_map(Value::as_str).map(str::len).sum::<usize>();
        self.content.len() + fields
    }

    /// The other fields as the template gets them. Reasoning has all names that templates read, as in
    /// transformers.
    fn template_fields(&self) -> Map<String, Value> {
        let mut fields: Map<String, Value> = self.fields.clone();
        fields.retain(|_, value| !value.is_null());
        if let Some(name) = &self.name {
            fields.insert("name".to_owned(), name.as_str().into());
        }
        if let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() {
            fields.insert("reasoning_content".to_owned(), reasoning.clone());
            fields.entry("thinking").or_insert(reasoning);
        }
        fields
    }
}

/// Options of a rendering.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Whether the text ends with the header of the assistant's next message.
    pub add_generation_prompt: bool,
    /// Whether the text ends within the last message, so that the model continues it. Cannot be combined with
    /// `add_generation_prompt`.
    pub continue_final_message: bool,
    /// More variables for the template, such as `tools`. Their text cannot become a turn marker either.
    pub kwargs: Map<String, Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, continue_final_message: false, kwargs: Map::new() }
    }
}

/// A chat template that cannot be used. The operator has to replace it.
#[derive(Debug, thiserror::Error)]
enum CompileError {
    #[error("the chat template contains a reserved noncharacter")]
    Reserved,
    #[error("the chat template does not compile: {0}")]
    Syntax(#[from] SyntaxError),
    #[error("the chat template does not compile: {0}")]
    Engine(#[from] Error),
    #[error("the model has several chat templates and none is named \"default\"")]
    NoDefault,
    #[error("the chat template cannot render messages of the roles {roles}: {message}")]
    Fails { roles: String, message: String },
    #[error(transparent)]
    Context(#[from] TextError),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    markers: Arc<TurnMarkers>,
    /// Special tokens by name, as variables of the template.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads the template from `chat_template.jinja`, else from `tokenizer_config.json`, else from
    /// `chat_template.json`. Returns `None` if the directory has none. Among several named templates,
    /// `tool_use` renders requests that have tools, and `default` renders all others.
    ///
    /// # Errors
    /// [`TextError::File`] if a file cannot be read, or a template does not compile or cannot render a plain
    /// conversation.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let Some(file) = chat_templates(dir)? else { return Ok(None) };
        let template = Self::compile(file.templates, tokenizer);
        let checked = template.and_then(|template| template.check().map(|()| template));
        checked.map(Some).map_err(|error| file_error(&file.path, error))
    }

    /// Renders small conversations. A template may refuse them itself, for instance because it demands a
    /// system message, but not fail.
    fn check(&self) -> Result<(), CompileError> {
        let message = |role: Role| ChatMessage::new(role, "Hello");
        for roles in [&[Role::User][..], &[Role::User, Role::Assistant, Role::User]] {
            let messages: Vec<ChatMessage> = roles.iter().map(|&role| message(role)).collect();
            let context = self.context(&messages, &RenderOptions::default())?;
            let template = self.environment.get_template("default")?;
            if let Err(error) = template.render_captured_to(context, &mut LimitedWriter(Vec::new()))
                && refusal(&error).is_none()
            {
                let roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
                return Err(CompileError::Fails { roles, message: failure(&error) });
            }
        }
        Ok(())
    }

    /// Compiles the text of a template. Its variables for special tokens are those of the tokenizer.
    ///
    /// # Errors
    /// [`TextError::Source`] if it does not compile.
    pub fn from_source(source: &str, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        Self::compile(TemplateSource::single(source), tokenizer).map_err(|e| TextError::Source(e.to_string()))
    }

    fn compile(templates: Vec<TemplateSource>, tokenizer: &Tokenizer) -> Result<Self, CompileError> {
        let mut environment = environment();
        // A single template is the default whatever its name is.
        let single = templates.len() == 1;
        for TemplateSource { name, source } in templates {
            if guard::is_reserved(&source) {
                return Err(CompileError::Reserved);
            }
            let name = if single { "default".to_owned() } else { name };
            environment.add_template_owned(name, jinja::rewrite(&source)?)?;
        }
        if environment.get_template("default").is_err() {
            return Err(CompileError::NoDefault);
        }
        let special_tokens = tokenizer.special_tokens().clone();
        Ok(Self { environment, markers: tokenizer.markers().clone(), special_tokens })
    }

    /// Renders a conversation of at least one message.
    ///
    /// # Errors
    /// [`TextError::Template`], which the client has to act on: the template refuses the messages (with its
    /// own message), options contradict each other, or the rendering exceeds a limit.
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<Rendered, TextError> {
        let refuse = |message: &str| Err(TextError::Template(message.to_owned()));
        if messages.is_empty() {
            return refuse("the conversation has no messages");
        }
        if options.continue_final_message && options.add_generation_prompt {
            return refuse("continue_final_message and add_generation_prompt cannot both be set");
        }
        let tools = options.kwargs.get("tools").is_some_and(|tools| !tools.is_null());
        let template =
            Some("tool_use").filter(|_| tools).and_then(|name| self.environment.get_template(name).ok());
        let template = match template {
            Some(template) => template,
            None => {
                self.environment.get_template("default").map_err(|e| TextError::Template(e.to_string()))?
            }
        };
        let mut output = LimitedWriter(Vec::new());
        template
            .render_captured_to(self.context(messages, options)?, &mut output)
            .map_err(|e| explain(&e))?;
        let mut guarded = String::from_utf8_lossy(&output.0).into_owned();
        if options.continue_final_message {
            let Some(end) = guarded.rfind(CUT) else {
                return refuse("the template leaves out the final message, so it cannot be continued");
            };
            // `context` put a space after the cut. If it is gone, the template trims messages, so the end is
            // trimmed.
            let trimmed = !guarded[end + CUT.len_utf8()..].starts_with(' ');
            guarded.truncate(end);
            if trimmed {
                guarded.truncate(guarded.trim_end().len());
            }
        }
        Ok(Rendered::new(guarded.replace(CUT, "")))
    }

    /// The variables of the template.
    fn context(
        &self,
        messages: &[ChatMessage],
        options: &RenderOptions,
    ) -> Result<Map<String, Value>, TextError> {
        let mut context = self.special_tokens.clone();
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        for (name, value) in &options.kwargs {
            if matches!(name.as_str(), "messages" | "add_generation_prompt") {
                return Err(TextError::Template(format!("{name:?} cannot be set as a variable")));
            }
            context.insert(name.clone(), self.protect(value, TextKind::Variable));
        }
        let protect = |text: &str| self.markers.protect(text, TextKind::Message);
        let mut list: Vec<Value> = messages
            .iter()
            .map(|message| {
                let mut value = json!({"role": message.role.as_str(), "content": protect(&message.content)});
                for (name, field) in message.template_fields() {
                    value[name] = self.protect(&field, TextKind::Message);
                }
                value
            })
            .collect();
        if let Some(Value::String(content)) =
            list.last_mut().filter(|_| options.continue_final_message).map(|last| &mut last["content"])
        {
            content.extend([CUT, ' ']);
        }
        context.insert("messages".to_owned(), list.into());
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        Ok(context)
    }

    /// A value with all of its text protected.
    fn protect(&self, value: &Value, kind: TextKind) -> Value {
        match value {
            Value::String(text) => self.markers.protect(text, kind).into(),
            Value::Array(items) => items.iter().map(|item| self.protect(item, kind)).collect(),
            Value::Object(map) => {
                let protect = |key: &str| self.markers.protect(key, kind);
                map.iter().map(|(key, item)| (protect(key), self.protect(item, kind))).collect()
            }
            simple => simple.clone(),
        }
    }
}

/// Jinja2 with transformers' settings, functions and filters.
fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    // Rewritten templates have no whitespace control left.
    environment.set_keep_trailing_newline(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_debug(false);
    // This also turns off HTML escaping.
    environment.set_formatter(|out, state, value| {
        let text = python::to_str(value)?;
        python::charge(state, text.len() as u64)?;
        Ok(out.write_str(&text)?)
    });
    python::add_to(&mut environment);
    environment.add_function("raise_exception", |message: minijinja::Value| -> Result<String, Error> {
        let refusal = TemplateRefusal(python::to_str(&message)?);
        Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(refusal))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        strftime(&format, now)
    });
    environment
}

/// The message with which a template refuses a conversation (`raise_exception`).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TemplateRefusal(String);

/// Converts an error of a rendering. A refusal by the template keeps the template's message.
fn explain(error: &Error) -> TextError {
    TextError::Template(guard::without_breaks(&refusal(error).unwrap_or_else(|| failure(error))))
}

/// The message with which the template refused the conversation; `None` if it failed.
fn refusal(error: &Error) -> Option<String> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(TemplateRefusal(message)) = cause.downcast_ref() {
            return Some(message.clone());
        }
        source = cause.source();
    }
    None
}

/// The message of a failure, with the line of the template.
fn failure(error: &Error) -> String {
    match (error.kind(), error.line()) {
        (ErrorKind::OutOfFuel, _) => {
            format!("rendering takes more than {FUEL} steps, or works on more text than is allowed")
        }
        (ErrorKind::WriteFailure, _) => format!("the prompt has more than {MAX_RENDERED_BYTES} bytes"),
        (kind, Some(line)) => {
            format!("line {line}: {}", error.detail().map_or_else(|| kind.to_string(), str::to_owned))
        }
        _ => error.to_string(),
    }
}

/// A buffer that fails when it would exceed [`MAX_RENDERED_BYTES`].
struct LimitedWriter(Vec<u8>);

impl Write for LimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other("the rendered prompt is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
