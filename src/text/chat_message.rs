//! Messages of a conversation, and the options of its rendering: the input of a chat template.

use serde_json::{Map, Value};

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

/// Content of a message, as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A string.
    Text(String),
    /// The texts of a list of parts.
    Parts(Vec<String>),
}

impl Content {
    /// All texts.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let texts = match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::Parts(texts) => texts,
        };
        texts.iter().map(String::as_str)
    }

    /// The same form with other texts.
    pub(super) fn map(&self, text: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Text(own) => Self::Text(text(own)),
            Self::Parts(parts) => Self::Parts(parts.iter().map(|own| text(own)).collect()),
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Author of the message.
    pub role: Role,
    /// Text of the message. No part of it is ever encoded as a turn marker.
    pub content: Content,
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
        Self { role, content: Content::Text(content.into()), name: None, fields: Map::new() }
    }

    /// Bytes of the text and of the fields, as JSON unless they are text.
    pub(crate) fn text_bytes(&self) -> usize {
        let bytes = |field: &Value| field.as_str().map_or_else(|| field.to_string().len(), str::len);
        self.content.texts().map(str::len).sum::<usize>() + self.fields.values().map(bytes).sum::<usize>()
    }

    /// The other fields as the template gets them. Reasoning has all names that templates read, as in
    /// transformers.
    pub(super) fn template_fields(&self) -> Map<String, Value> {
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
