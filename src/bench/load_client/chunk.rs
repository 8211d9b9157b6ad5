//! Parser of streamed chunks that keeps only what a load client needs: whether the chunk has content, whether
//! the answer has ended, usage, and errors. It does not copy text.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, Visitor};

use crate::http_client::message;

/// Token counts of a request as the server reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct ReportedUsage {
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Tokens of the answer. Some servers leave the field out if there are none.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// Content of a chunk as far as the client uses it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Whether it has text, reasoning or a tool call. A role alone or an empty text is not content.
    pub content: bool,
    /// Whether it has a finish reason.
    pub finished: bool,
    /// Usage, if reported.
    pub usage: Option<ReportedUsage>,
    /// Message of an error object.
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    choices: Option<Vec<ReceivedChoice>>,
    #[serde(default)]
    usage: Option<ReportedUsage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ReceivedChoice {
    #[serde(default)]
    text: Option<Filled>,
    #[serde(default)]
    delta: Option<ReceivedDelta>,
    #[serde(default)]
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct ReceivedDelta {
    #[serde(default)]
    content: Option<Filled>,
    #[serde(default)]
    reasoning_content: Option<Filled>,
    #[serde(default)]
    reasoning: Option<Filled>,
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

/// Whether a string is not empty.
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

impl ReceivedChoice {
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
    /// Parses the data of an event.
    ///
    /// # Errors
    /// The data is not valid JSON, or a field has the wrong type.
    pub fn parse(data: &[u8]) -> Result<Self, serde_json::Error> {
        let wire: Wire = serde_json::from_slice(data)?;
        let choices = wire.choices.unwrap_or_default();
        Ok(Self {
            content: choices.iter().any(ReceivedChoice::has_content),
            finished: choices.iter().any(|choice| choice.finish_reason.is_some()),
            usage: wire.usage,
            error: wire.error.map(|error| message(&error)),
        })
    }
}
