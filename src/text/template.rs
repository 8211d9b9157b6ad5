//! Chat templates: a list of messages to the text that the model was trained to continue.
//!
//! Templates are written in Jinja2 as transformers runs it (`jinja`, `python`). They come with the weights.
//! They run with limits on steps, work, depth and output, so that a broken template fails its request alone.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};

use super::chat_message::{ChatMessage, RenderOptions, Role};
use super::content_format::ContentFormat;
use super::files::{TemplateSource, chat_templates, file_error};
use super::jinja::{self, SyntaxError};
use super::marked_template::{Marking, marked_name, marked_source};
use super::provenance::{Guard, ProbeText, Probed, probe_options, probe_texts, turn_markers};
use super::strftime::strftime;
use super::tokenizer::Tokenizer;
use super::turn_marker_guard::{self as guard, Composed, Rendered, TextKind, TurnMarkers, spelled};
use super::vocabulary::TokenizerJsonError;

use super::{TextError, python};

/// A name that no template contains.
const PROBE_NAME: &str = "kvqxz_tool";
/// Most template instructions per rendering. A long conversation takes about a hundred per message.
const FUEL: u64 = 5_000_000;
/// Most nested macros and loops.
const MAX_DEPTH: usize = 200;
/// Longest rendered text, in bytes.
const MAX_RENDERED_BYTES: usize = 64 << 20;

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
    #[error("the turn markers of the chat template cannot be searched for: {0}")]
    Markers(#[from] TokenizerJsonError),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The turn markers of all templates.
    markers: Arc<TurnMarkers>,
    /// How the markers of each template are told from message text, by the template's name.
    guards: HashMap<String, Guard>,
    /// How each template takes the content of messages, by the template's name.
    formats: HashMap<String, ContentFormat>,
    /// Special tokens by name, as variables of the template.
    special_tokens: Map<String, Value>,
    /// Whether the tokenizer's normaliser can turn any text into any other text.
    rewrites: bool,
    /// Source of the template that renders requests without tools.
    source: String,
    /// Source of the template that renders requests with tools.
    tool_source: String,
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
        let checked = Self::compile(file.templates, tokenizer).and_then(|(template, failed)| {
            template.check()?;
            failed.map_or(Ok(template), Err)
        });
        checked.map(Some).map_err(|error| file_error(&file.path, error))
    }

    /// Renders small conversations. A template may refuse them itself, for instance because it demands a
    /// system message, but not fail.
    fn check(&self) -> Result<(), CompileError> {
        let message = |role: Role| ChatMessage::new(role, "Hello");
        for roles in [&[Role::User][..], &[Role::User, Role::Assistant, Role::User]] {
            self.small("default", &roles.iter().map(|&role| message(role)).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Renders a small conversation; `None` if the template refuses it itself.
    fn small(&self, name: &str, messages: &[ChatMessage]) -> Result<Option<String>, CompileError> {
        let context = self.context(name, messages, &probe_options(name), None)?;
        let mut output = LimitedWriter(Vec::new());
        let template = self.environment.get_template(name)?;
        let Err(error) = template.render_captured_to(context, &mut output).map(|_| ()) else {
            return Ok(Some(String::from_utf8_lossy(&output.0).into_owned()));
        };
        if refusal(&error).is_some() {
            return Ok(None);
        }
        let roles = messages.iter().map(|message| message.role.as_str()).collect::<Vec<_>>().join(", ");
        Err(CompileError::Fails { roles, message: failure(&error) })
    }

    /// Compiles the text of a template. Its variables for special tokens are those of the tokenizer.
    /// If it cannot render a plain conversation, it guards only the tokens that begin or end a sequence.
    ///
    /// # Errors
    /// [`TextError::Source`] if it does not compile.
    pub fn from_source(source: &str, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let compiled = Self::compile(TemplateSource::single(source), tokenizer);
        compiled.map(|(template, _)| template).map_err(|e| TextError::Source(e.to_string()))
    }

    /// Compiles the templates. The error returned with them says why the turn markers are not known.
    fn compile(
        templates: Vec<TemplateSource>,
        tokenizer: &Tokenizer,
    ) -> Result<(Self, Option<CompileError>), CompileError> {
        let mut environment = environment();
        let mut sources = Vec::new();
        // A single template is the default whatever its name is.
        let single = templates.len() == 1;
        for TemplateSource { name, source } in templates {
            if guard::is_reserved(&source) {
                return Err(CompileError::Reserved);
            }
            let name = if single { "default".to_owned() } else { name };
            environment.add_template_owned(name.clone(), jinja::rewrite(&source)?)?;
            sources.push((name, source));
        }
        if environment.get_template("default").is_err() {
            return Err(CompileError::NoDefault);
        }
        let special_tokens = tokenizer.special_tokens().clone();
        let markers = Arc::new(TurnMarkers::new([])?);
        let mut template = Self {
            environment,
            markers,
            guards: HashMap::new(),
            formats: HashMap::new(),
            special_tokens,
            rewrites: tokenizer.rewrites_text(),
            source: String::new(),
            tool_source: String::new(),
        };
        let source = |wanted: &str| sources.iter().find(|(name, _)| name == wanted);
        template.source = source("default").map(|(_, source)| source.clone()).unwrap_or_default();
        template.tool_source =
            source("tool_use").map_or_else(|| template.source.clone(), |(_, source)| source.clone());
        for (name, _) in &sources {
            let format = ContentFormat::find(&|messages| template.small(name, messages));
            template.formats.insert(marked_name(name), format.clone());
            template.formats.insert(name.clone(), format);
        }
        let failed = template.find_markers(&sources, tokenizer)?;
        Ok((template, failed))
    }

    /// Finds the turn markers of the templates by rendering small conversations, and adds a template with
    /// placeholders for each. `sources` has names and sources. Returns the first failure of a template that
    /// is no refusal of its own.
    fn find_markers(
        &mut self,
        sources: &[(String, String)],
        tokenizer: &Tokenizer,
    ) -> Result<Option<CompileError>, TokenizerJsonError> {
        let (mut probes, mut failure) = (Vec::new(), None);
        let mut ids = tokenizer.end_ids().to_vec();
        for (name, _) in sources {
            let Probed { texts, tool, failed } =
                probe_texts(tokenizer, &|probe| self.small(name, &probe.conversation()));
            // Templates of other names are never rendered.
            failure = failure.or(failed.filter(|_| matches!(name.as_str(), "default" | "tool_use")));
            ids.extend(turn_markers(&texts, tool.as_ref(), tokenizer));
            probes.push((texts, tool));
        }
        let named = |id: u32| tokenizer.added_token(id).map(|(text, _)| (text.to_owned(), id));
        self.markers = Arc::new(TurnMarkers::new(ids.into_iter().filter_map(named))?);
        for ((name, source), (texts, tool)) in sources.iter().zip(probes) {
            let marked = [Marking::Written, Marking::All].into_iter().any(|marking| {
                let source = marked_source(source, &self.marked_names(), &self.markers, marking);
                jinja::rewrite(&source).is_ok_and(|source| {
                    self.environment.add_template_owned(marked_name(name), source).is_ok()
                }) && texts.iter().all(|text| self.written(name, text).is_some())
            });
            let place = |text| {
                let written = if marked { self.written(name, text) } else { None };
                (text, written.unwrap_or_default())
            };
            let places: Vec<_> = texts.iter().chain(&tool).map(place).collect();
            self.guards.insert(name.clone(), Guard::new(marked, &self.markers, &places, tokenizer)?);
        }
        Ok(failure)
    }

    /// The markers that a template with placeholders writes into a small conversation.
    fn written(&self, name: &str, text: &ProbeText) -> Option<Vec<Range<usize>>> {
        let marked = self.small(&marked_name(name), &text.probe.conversation()).ok()??;
        self.markers.written(&text.text, &marked)
    }

    /// Names of the variables for special tokens whose text has turn markers.
    fn marked_names(&self) -> Vec<&str> {
        let marked = |value: &Value| value.as_str().is_some_and(|text| self.markers.occurs_in(text));
        self.special_tokens.iter().filter(|(_, value)| marked(value)).map(|(name, _)| name.as_str()).collect()
    }

    /// Source of the template that renders requests without tools.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Source of the template that renders requests with tools.
    pub(crate) fn tool_source(&self) -> &str {
        &self.tool_source
    }

    /// Whether the template shows the tools of a request to the model.
    pub(crate) fn shows_tools(&self) -> bool {
        let user = ChatMessage::new(Role::User, "Hello");
        self.rendered_with_tool(PROBE_NAME, &[user]).is_some_and(|text| text.contains(PROBE_NAME))
    }

    /// Whether the template shows earlier calls of tools to the model; true if it renders none of a small
    /// conversation.
    pub(crate) fn shows_calls(&self) -> bool {
        let call = json!({ "name": PROBE_NAME, "arguments": { "text": "Hello" } });
        let mut assistant = ChatMessage::new(Role::Assistant, "");
        let calls = json!([{ "id": "call00000", "type": "function", "function": call }]);
        assistant.fields.insert("tool_calls".to_owned(), calls);
        let messages = [ChatMessage::new(Role::User, "Hello"), assistant];
        self.rendered_with_tool("tool", &messages).is_none_or(|text| text.contains(PROBE_NAME))
    }

    /// Renders messages with a tool of this name. `None` if the template refuses that.
    fn rendered_with_tool(&self, name: &str, messages: &[ChatMessage]) -> Option<String> {
        let text = json!({ "type": "string", "description": "A text" });
        let parameters = json!({ "type": "object", "properties": { "text": text }, "required": ["text"] });
        let function = json!({ "name": name, "description": "A tool", "parameters": parameters });
        let mut options = RenderOptions::default();
        options.kwargs.insert("tools".to_owned(), json!([{ "type": "function", "function": function }]));
        self.render(messages, &options).ok().map(|rendered| rendered.text())
    }

    /// Whether the template that renders requests without tools reads a variable of this name.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template("default");
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
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
        let guard = guard.filter(|_| written.is_some());
        let composed = guard.map_or(&*self.markers, |guard| &guard.composed);
        let written = written.unwrap_or_default();
        // A marker that no small conversation has is not guaranteed a placeholder.
        let wider = guard.and_then(|guard| guard.wider.as_ref());
        let wider = wider.filter(|wider| wider.occurs_outside(&text, &written));
        let tell = |markers| self.tell_apart(name, &text, messages, options, markers);
        let readings: Vec<Composed> = wider.into_iter().chain([composed]).filter_map(tell).collect();
        let doubtful = readings.iter().all(|reading| reading.neutral.is_some());
        let refusal = if doubtful { spelled(messages, composed) } else { String::new() };
        if readings.is_empty() {
            return Err(TextError::Template(refusal));
        }
        Ok(Rendered::new(text, self.markers.clone(), written, readings, refusal))
    }

    /// Tells markers without placeholders from message text in `text`; `None` if that is impossible.
    fn tell_apart(
        &self,
        name: &str,
        text: &str,
        messages: &[ChatMessage],
        options: &RenderOptions,
        markers: &TurnMarkers,
    ) -> Option<Composed> {
        let ids: Vec<u32> = markers.ids().collect();
        if ids.is_empty() {
            return Some(Composed::default());
        }
        let protected = self.output(name, messages, options, Some(markers)).ok()?;
        let breaks = TurnMarkers::breaks(text, &protected)?;
        // A template or a normaliser can change message text to a marker that has no break.
        let neutral = if self.rewrites || guard::is_suspect(messages, &options.kwargs, markers) {
            let (neutral, kwargs) = guard::neutral(messages, &options.kwargs, markers);
            let options = RenderOptions { kwargs, ..options.clone() };
            Some(self.output(name, &neutral, &options, None).ok()?)
        } else {
            None
        };
        Some(Composed { ids, breaks, neutral })
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
        let cut = guard::cut_mark(messages.iter().flat_map(|message| message.content.texts()));
        let mut output = LimitedWriter(Vec::new());
        template
            .render_captured_to(self.context(name, messages, options, protected)?, &mut output)
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
        name: &str,
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
            context.insert(name.clone(), guard::protect_value(value, protected, TextKind::Variable));
        }
        let protect = |text: &str| match protected {
            Some(markers) => markers.protect(text, TextKind::Message),
            None => text.to_owned(),
        };
        let format = self.formats.get(name);
        let mut list: Vec<Value> = messages
            .iter()
            .map(|message| {
                let content = ContentFormat::value(format, message, &protect);
                let mut value = json!({ "role": message.role.as_str(), "content": content });
                for (name, field) in message.template_fields() {
                    value[name] = guard::protect_value(&field, protected, TextKind::Message);
                }
                value
            })
            .collect();
        if let Some(last) = list.last_mut().filter(|_| options.continue_final_message) {
            let content = match &mut last["content"] {
                Value::Array(parts) => parts.last_mut().map(|part| &mut part["text"]),
                text => Some(text),
            };
            if let Some(Value::String(text)) = content {
                text.push_str(&guard::cut_mark(messages.iter().flat_map(|message| message.content.texts())));
                text.push(' ');
            }
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
    TextError::Template(refusal(error).unwrap_or_else(|| failure(error)))
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
