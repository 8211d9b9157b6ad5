//! What a load client needs to know of a streamed chunk, and nothing else of it: whether it has content, whether the
//! answer is over, the usage, an error. Text is looked at and not kept, so that a chunk costs well under a microsecond.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, Visitor};

/// Tokens of a request as the server counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer. Absent from some servers' answers that have none.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// What a chunk says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// There is text, reasoning or a call of a tool in it. A role alone, or an empty text, is not content.
    pub content: bool,
    /// A choice ended.
    pub finished: bool,
    /// Tokens so far.
    pub usage: Option<Usage>,
    /// The server gave up, saying this.
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: Option<Filled>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<Filled>,
    #[serde(default)]
    reasoning_content: Option<Filled>,
    #[serde(default)]
    reasoning: Option<Filled>,
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

/// Whether a string has anything in it.
#[derive(Clone, Copy)]
struct Filled(bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Filled;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Filled, E> {
                Ok(Filled(!text.is_empty()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Choice {
    fn has_content(&self) -> bool {
        let filled = |text: Option<Filled>| text.is_some_and(|Filled(filled)| filled);
        filled(self.text)
            || self.delta.as_ref().is_some_and(|delta| {
                filled(delta.content)
                    || filled(delta.reasoning_content)
                    || filled(delta.reasoning)
                    || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
            })
    }
}

impl Chunk {
    /// Reads the data of an event; an error names what is wrong with the JSON.
    pub fn parse(data: &[u8]) -> Result<Self, serde_json::Error> {
        let wire: Wire = serde_json::from_slice(data)?;
        let choices = wire.choices.unwrap_or_default();
        Ok(Self {
            content: choices.iter().any(Choice::has_content),
            finished: choices.iter().any(|choice| choice.finish_reason.is_some()),
            usage: wire.usage,
            error: wire.error.map(|error| message(&error)),
        })
    }
}

/// The text of an error object in any of the forms that servers send: an object with a message, or a text.
pub fn message(error: &serde_json::Value) -> String {
    let inner = error.get("error").unwrap_or(error);
    let text = inner.get("message").or_else(|| inner.get("detail")).unwrap_or(inner);
    text.as_str().map_or_else(|| text.to_string(), str::to_owned)
}
