//! Chat templates: a list of messages to the text that the model was trained to continue.
//!
//! Templates are written in Jinja as Hugging Face runs it, with its whitespace rules and extra functions, and
//! with Python's methods and printing of values. They come with the weights. They run with limits on steps,
//! depth and output, so that a broken template fails its request alone.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};

use super::files::{TemplateSource, chat_templates, file_error};
use super::marked_template::{Marking, marked_name, marked_source};
use super::provenance::{Probe, ProbeText, probe_texts, turn_markers};
use super::tokenizer::Tokenizer;
use super::turn_marker_guard::{self as guard, Composed, Rendered, TextKind, TurnMarkers};
use super::vocabulary::TokenizerJsonError;
use super::{TextError, python};

/// Most template instructions per rendering. A long conversation takes about a hundred per message.
const FUEL: u64 = 5_000_000;
/// Most template instructions for one of the small conversations that show the turn markers.
const PROBE_FUEL: u64 = 100_000;
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
    Syntax(#[from] Error),
    #[error("the model has several chat templates and none is named \"default\"")]
    NoDefault,
    #[error("the turn markers of the chat template cannot be searched for: {0}")]
    Markers(#[from] TokenizerJsonError),
}

/// How the turn markers of one template are told from message text.
struct Guard {
    /// Whether the environment has the template with placeholders too.
    marked: bool,
    /// The markers that the template puts together from parts.
    composed: TurnMarkers,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The turn markers of all templates.
    markers: Arc<TurnMarkers>,
    /// How the markers of each template are told from message text, by the template's name.
    guards: HashMap<String, Guard>,
    /// Special tokens by name, as variables of the template.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads the template from `chat_template.jinja`, else from `tokenizer_config.json`, else from
    /// `chat_template.json`. Returns `None` if the directory has none. Among several named templates,
    /// `tool_use` renders requests that have tools, and `default` renders all others.
    ///
    /// # Errors
    /// [`TextError::File`] if a file cannot be read or a template does not compile.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let Some(file) = chat_templates(dir)? else { return Ok(None) };
        let template = Self::compile(file.templates, tokenizer);
        template.map(Some).map_err(|error| file_error(&file.path, error))
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
        let mut sources = Vec::new();
        // A single template is the default whatever its name is.
        let single = templates.len() == 1;
        for TemplateSource { name, source } in templates {
            if guard::is_reserved(&source) {
                return Err(CompileError::Reserved);
            }
            let name = if single { "default".to_owned() } else { name };
            let source = without_generation_tags(&source);
            environment.add_template_owned(name.clone(), source.clone())?;
            sources.push((name, source));
        }
        if environment.get_template("default").is_err() {
            return Err(CompileError::NoDefault);
        }
        let special_tokens = tokenizer.special_tokens().clone();
        let markers = Arc::new(TurnMarkers::new([])?);
        let mut template = Self { environment, markers, guards: HashMap::new(), special_tokens };
        template.environment.set_fuel(Some(PROBE_FUEL));
        template.find_markers(&sources, tokenizer)?;
        template.environment.set_fuel(Some(FUEL));
        Ok(template)
    }

    /// Finds the turn markers of the templates by rendering small conversations, and adds a template with
    /// placeholders for each. `sources` has names and sources.
    fn find_markers(
        &mut self,
        sources: &[(String, String)],
        tokenizer: &Tokenizer,
    ) -> Result<(), TokenizerJsonError> {
        let mut probes = Vec::new();
        let mut ids = tokenizer.end_ids().to_vec();
        for (name, _) in sources {
            let (texts, tool) = probe_texts(tokenizer, &|probe| self.probe(name, probe));
            ids.extend(turn_markers(&texts, tool.as_ref(), tokenizer));
            probes.push(texts);
        }
        let named = |id: u32| tokenizer.added_token(id).map(|(text, _)| (text.to_owned(), id));
        self.markers = Arc::new(TurnMarkers::new(ids.into_iter().filter_map(named))?);
        for ((name, source), texts) in sources.iter().zip(probes) {
            let marked = [Marking::Written, Marking::All].into_iter().any(|marking| {
                let source = marked_source(source, &self.marked_names(), &self.markers, marking);
                self.environment.add_template_owned(marked_name(name), source).is_ok()
                    && texts.iter().all(|text| self.written(name, text).is_some())
            });
            let composed = texts.iter().flat_map(|text| {
                let written = if marked { self.written(name, text) } else { None };
                text.ids_without(&written.unwrap_or_default()).collect::<Vec<_>>()
            });
            let composed: HashSet<u32> = composed.collect();
            let composed = self.markers.ids().filter(|id| !marked || composed.contains(id)).filter_map(named);
            let composed = TurnMarkers::new(composed)?;
            self.guards.insert(name.clone(), Guard { marked, composed });
        }
        Ok(())
    }

    /// Renders a small conversation; `None` if the template refuses it.
    fn probe(&self, name: &str, probe: Probe) -> Option<String> {
        let message = |(role, text): (&str, &str)| ChatMessage {
            role: match role {
                "system" => Role::System,
                "user" => Role::User,
                "assistant" => Role::Assistant,
                _ => Role::Tool,
            },
            content: text.to_owned(),
            name: None,
        };
        let messages: Vec<_> = probe.messages().map(message).collect();
        self.output(name, &messages, &RenderOptions::default(), None).ok()
    }

    /// The markers that a template with placeholders writes into a small conversation.
    fn written(&self, name: &str, text: &ProbeText) -> Option<Vec<Range<usize>>> {
        self.markers.written(&text.text, &self.probe(&marked_name(name), text.probe)?)
    }

    /// Names of the variables for special tokens whose text has turn markers.
    fn marked_names(&self) -> Vec<&str> {
        let marked = |value: &Value| value.as_str().is_some_and(|text| self.markers.occurs_in(text));
        self.special_tokens.iter().filter(|(_, value)| marked(value)).map(|(name, _)| name.as_str()).collect()
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
        let name = if tools && self.guards.contains_key("tool_use") { "tool_use" } else { "default" };
        let text = self.output(name, messages, options, None)?;
        let guard = self.guards.get(name).filter(|guard| guard.marked);
        let marked = guard.and_then(|_| self.output(&marked_name(name), messages, options, None).ok());
        let written = marked.and_then(|marked| self.markers.written(&text, &marked));
        // If the placeholders change what the template does with these messages, no marker has a placeholder.
        let composed = guard.filter(|_| written.is_some()).map_or(&*self.markers, |guard| &guard.composed);
        let ids: Vec<u32> = composed.ids().collect();
        let mut breaks = Vec::new();
        if !ids.is_empty() {
            let protected = self.output(name, messages, options, Some(composed)).ok();
            let Some(found) = protected.and_then(|protected| TurnMarkers::breaks(&text, &protected)) else {
                return Err(TextError::Template(spelled(messages, composed)));
            };
            breaks = found;
        }
        let composed = Composed { ids, breaks };
        Ok(Rendered::new(text, self.markers.clone(), written.unwrap_or_default(), composed))
    }

    /// The output of a template, which ends with the last message if the model is to continue it. With
    /// `protected`, the texts have breaks in what could be part of these markers.
    fn output(
        &self,
        name: &str,
        messages: &[ChatMessage],
        options: &RenderOptions,
        protected: Option<&TurnMarkers>,
    ) -> Result<String, TextError> {
        let template = self.environment.get_template(name).map_err(|e| TextError::Template(e.to_string()))?;
        let cut = guard::cut_mark(messages.iter().map(|message| message.content.as_str()));
        let mut output = LimitedWriter(Vec::new());
        template
            .render_captured_to(self.context(messages, options, protected)?, &mut output)
            .map_err(|e| explain(&e))?;
        let mut text = String::from_utf8_lossy(&output.0).into_owned();
        if options.continue_final_message {
            let Some(end) = text.rfind(&cut) else {
                return Err(TextError::Template(
                    "the template leaves out the final message, so it cannot be continued".to_owned(),
                ));
            };
            // `context` put a space after the cut. If it is gone, the template trims messages, so the end is
            // trimmed.
            let trimmed = !text[end + cut.len()..].starts_with(' ');
            text.truncate(end);
            if trimmed {
                text.truncate(text.trim_end().len());
            }
        }
        Ok(text)
    }

    /// The variables of the template.
    fn context(
        &self,
        messages: &[ChatMessage],
        options: &RenderOptions,
        protected: Option<&TurnMarkers>,
    ) -> Result<Map<String, Value>, TextError> {
        let mut context = self.special_tokens.clone();
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        for (name, value) in &options.kwargs {
            if matches!(name.as_str(), "messages" | "add_generation_prompt") {
                return Err(TextError::Template(format!("{name:?} cannot be set as a variable")));
            }
            context.insert(name.clone(), protect_variable(value, protected));
        }
        let protect = |text: &str| match protected {
            Some(markers) => markers.protect(text, TextKind::Message),
            None => text.to_owned(),
        };
        let mut list: Vec<Value> = messages
            .iter()
            .map(|message| {
                let mut value = json!({"role": message.role.as_str(), "content": protect(&message.content)});
                if let Some(name) = &message.name {
                    value["name"] = protect(name).into();
                }
                value
            })
            .collect();
        if let Some(Value::String(content)) =
            list.last_mut().filter(|_| options.continue_final_message).map(|last| &mut last["content"])
        {
            content.push_str(&guard::cut_mark(messages.iter().map(|message| message.content.as_str())));
            content.push(' ');
        }
        for name in self.marked_names() {
            // A client that sets such a variable writes its text, so that has no placeholders.
            let text =
                options.kwargs.get(name).cloned().or_else(|| {
                    self.special_tokens[name].as_str().map(|text| self.markers.marked(text).into())
                });
            context.insert(marked_name(name), text.unwrap_or_default());
        }
        context.insert("messages".to_owned(), list.into());
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        Ok(context)
    }
}

/// The value of a variable, with breaks in all of its text if there are markers to protect it from.
fn protect_variable(value: &Value, markers: Option<&TurnMarkers>) -> Value {
    let Some(known) = markers else { return value.clone() };
    match value {
        Value::String(text) => known.protect(text, TextKind::Variable).into(),
        Value::Array(items) => items.iter().map(|item| protect_variable(item, markers)).collect(),
        Value::Object(map) => {
            let protect = |key: &str| known.protect(key, TextKind::Variable);
            map.iter().map(|(key, item)| (protect(key), protect_variable(item, markers))).collect()
        }
        simple => simple.clone(),
    }
}

/// The error for messages that spell a turn marker which the template treats differently from other text.
fn spelled(messages: &[ChatMessage], markers: &TurnMarkers) -> String {
    let spells = |text: &str| markers.protect(text, TextKind::Message) != text;
    let place = messages.iter().position(|message| spells(&message.content));
    let place = place.map_or("a variable".to_owned(), |i| format!("messages[{i}].content"));
    format!(
        "{place} contains a turn marker of the chat template or a part of one, and the template treats it \
         differently from other text, so it cannot be told from the template's own turn markers"
    )
}

/// Jinja with Hugging Face's settings, functions and filters.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_debug(false);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // This also turns off HTML escaping.
    environment.set_formatter(|out, _, value| Ok(out.write_str(&python::to_str(value))?));
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("string", |value: &minijinja::Value| python::to_str(value));
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(TemplateRefusal(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        python::strftime(&format, now)
    });
    environment
}

/// The message with which a template refuses a conversation (`raise_exception`).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TemplateRefusal(String);

/// Converts an error of a rendering. A refusal by the template keeps the template's message.
fn explain(error: &Error) -> TextError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(TemplateRefusal(message)) = cause.downcast_ref() {
            return TextError::Template(message.clone());
        }
        source = cause.source();
    }
    let message = match error.kind() {
        ErrorKind::OutOfFuel => format!("rendering takes more than {FUEL} steps"),
        ErrorKind::WriteFailure => format!("the prompt has more than {MAX_RENDERED_BYTES} bytes"),
        _ => error.to_string(),
    };
    TextError::Template(message)
}

/// Replaces `{% generation %}` tags by tags without effect. They mark the model's text for training and are
/// not Jinja.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, end) = (&rest[start..start + length], start + length);
        out.push_str(&rest[..start]);
        match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
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
