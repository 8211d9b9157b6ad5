//! Chat templates: messages to the one text the model was trained to continue.
//!
//! Templates are Jinja as Hugging Face runs it: its whitespace rules, its extra functions, Python's methods on values
//! and Python's way to print them. They come with the weights and are run with limits on time, depth and output, so
//! that a broken one fails a request and nothing else.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};

use super::guard::{self, CUT, Markers, Words};
use super::source::{chat_templates, file_error};
use super::{TextError, Tokenizer, python};

/// Template instructions a rendering may execute; a long conversation takes about a hundred per message.
const FUEL: u64 = 5_000_000;
/// Depth of macros and loops within each other.
const MAX_DEPTH: usize = 200;
/// Bytes a rendering may have.
const MAX_RENDERED_BYTES: usize = 64 << 20;

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Whoever set the conversation up.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool the model called.
    Tool,
}

impl Role {
    /// As templates know it.
    pub fn as_str(self) -> &'static str {
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
    /// Who wrote it.
    pub role: Role,
    /// Its text, of which no part is ever read as a turn marker.
    pub content: String,
    /// The author's name, which most templates ignore.
    pub name: Option<String>,
}

/// How to render.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// End with the header of the assistant's next message.
    pub add_generation_prompt: bool,
    /// End within the last message, for the model to continue it. Excludes `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Further variables for the template, such as `tools`. Their text is treated like message text.
    pub kwargs: Map<String, Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, continue_final_message: false, kwargs: Map::new() }
    }
}

/// A rendered conversation, in which the template's markers and a message's spelling of them are still told apart.
#[derive(Debug, Clone)]
pub struct Rendered {
    guarded: String,
}

impl Rendered {
    /// The text as the template wrote it. To be encoded, the value itself goes to [`Tokenizer::encode_prompt`].
    pub fn text(&self) -> String {
        guard::unbroken(&self.guarded)
    }

    pub(super) fn guarded(&self) -> &str {
        &self.guarded
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    markers: Arc<Markers>,
    named: Map<String, Value>,
}

impl ChatTemplate {
    /// From `chat_template.jinja`, else `tokenizer_config.json`, else `chat_template.json`; `None` if none has one.
    /// Of several named templates, `tool_use` renders requests that have tools, `default` all others.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let Some(templates) = chat_templates(dir)? else { return Ok(None) };
        let template = Self::compile(templates.named, tokenizer);
        template.map(Some).map_err(|message| file_error(&templates.path, message))
    }

    /// From the text of a template. The special tokens it may name are the tokenizer's.
    pub fn from_source(source: &str, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        Self::compile(vec![("default".to_owned(), source.to_owned())], tokenizer).map_err(TextError::Source)
    }

    fn compile(templates: Vec<(String, String)>, tokenizer: &Tokenizer) -> Result<Self, String> {
        let mut environment = environment();
        // A list without a default has one template that is meant, or it is not clear which.
        let only = templates.len() == 1;
        for (name, source) in templates {
            if guard::is_reserved(&source) {
                return Err("the chat template has a reserved noncharacter".to_owned());
            }
            let name = if only { "default".to_owned() } else { name };
            let source = without_generation_tags(&source);
            environment
                .add_template_owned(name, source)
                .map_err(|e| format!("the chat template does not compile: {e}"))?;
        }
        if environment.get_template("default").is_err() {
            return Err("there are several chat templates and none is named \"default\"".to_owned());
        }
        Ok(Self { environment, markers: tokenizer.markers().clone(), named: tokenizer.named().clone() })
    }

    /// Lays out a conversation of at least one message. Errors are the client's: messages that the template refuses
    /// (it says why), options that contradict each other, or a rendering that exceeds its limits.
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<Rendered, TextError> {
        let refuse = |message: &str| Err(TextError::Template(message.to_owned()));
        if messages.is_empty() {
            return refuse("there are no messages");
        }
        if options.continue_final_message && options.add_generation_prompt {
            return refuse("a prompt either continues the final message or begins a new one");
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
        let mut output = Capped(Vec::new());
        template
            .render_captured_to(self.context(messages, options)?, &mut output)
            .map_err(|e| explain(&e))?;
        let mut guarded = String::from_utf8_lossy(&output.0).into_owned();
        if options.continue_final_message {
            let Some(end) = guarded.rfind(CUT) else {
                return refuse("it leaves out the final message, which therefore cannot be continued");
            };
            // The space that followed is gone where the template trims the message, so its own end is trimmed too.
            let trimmed = !guarded[end + CUT.len_utf8()..].starts_with(' ');
            guarded.truncate(end);
            if trimmed {
                guarded.truncate(guarded.trim_end().len());
            }
        }
        Ok(Rendered { guarded: guarded.replace(CUT, "") })
    }

    fn context(
        &self,
        messages: &[ChatMessage],
        options: &RenderOptions,
    ) -> Result<Map<String, Value>, TextError> {
        let mut context = self.named.clone();
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        for (name, value) in &options.kwargs {
            if matches!(name.as_str(), "messages" | "add_generation_prompt") {
                return Err(TextError::Template(format!("{name:?} cannot be set as a variable")));
            }
            context.insert(name.clone(), self.protect(value));
        }
        let protect = |text: &str| self.markers.protect(text, Words::Broken);
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
            content.extend([CUT, ' ']);
        }
        context.insert("messages".to_owned(), list.into());
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        Ok(context)
    }

    /// A variable's value, all its text protected.
    fn protect(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.markers.protect(text, Words::Kept).into(),
            Value::Array(items) => items.iter().map(|item| self.protect(item)).collect(),
            Value::Object(map) => {
                let protect = |key: &str| self.markers.protect(key, Words::Kept);
                map.iter().map(|(key, item)| (protect(key), self.protect(item))).collect()
            }
            simple => simple.clone(),
        }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_debug(false);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // Also the end of any escaping.
    environment.set_formatter(|out, _, value| Ok(out.write_str(&python::to_str(value))?));
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("string", |value: &minijinja::Value| python::to_str(value));
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        python::strftime(&format, now)
    });
    environment
}

/// The template's own words on why it refuses the messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn explain(error: &Error) -> TextError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return TextError::Template(guard::unbroken(message));
        }
        source = cause.source();
    }
    let message = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {FUEL} steps"),
        ErrorKind::WriteFailure => format!("the prompt has more than {MAX_RENDERED_BYTES} bytes"),
        _ => error.to_string(),
    };
    TextError::Template(guard::unbroken(&message))
}

/// `{% generation %}` blocks tell training what the model said. They are not Jinja's, and are nothing here.
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

/// Refuses to grow without limit.
struct Capped(Vec<u8>);

impl Write for Capped {
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
