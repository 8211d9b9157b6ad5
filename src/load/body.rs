//! The body of a request: a prompt and the settings that all requests share.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::prompts::{Content, Prompts};

/// What is asked for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Endpoint {
    /// Its path, after the server's own.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// What makes the bodies of a run.
#[derive(Debug, Clone)]
pub struct Bodies {
    /// What is asked.
    pub prompts: Prompts,
    /// Whom.
    pub endpoint: Endpoint,
    /// The model's name.
    pub model: String,
    /// Tokens that an answer may have.
    pub max_tokens: u64,
    /// Whether the answer goes on when the model would end it. An extension of vLLM's that others have too.
    pub ignore_eos: bool,
    /// Not sent if absent: the server's default then holds.
    pub temperature: Option<f64>,
    /// Fields that go into every body as they are, over all others.
    pub extra: Map<String, Value>,
}

impl Bodies {
    /// The body of a request, by the request's number.
    pub fn get(&self, index: u64) -> Bytes {
        let prompt = self.prompts.get(index);
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.clone().into());
        match (self.endpoint, prompt.content) {
            (Endpoint::Chat, Content::Text(text)) => {
                body.insert("messages".to_owned(), json!([{ "role": "user", "content": text }]));
            }
            (Endpoint::Completions, Content::Text(text)) => {
                body.insert("prompt".to_owned(), text.into());
            }
            (_, Content::Messages(messages)) => {
                body.insert("messages".to_owned(), messages);
            }
        }
        body.insert("max_tokens".to_owned(), prompt.max_tokens.unwrap_or(self.max_tokens).into());
        body.insert("stream".to_owned(), true.into());
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        if self.ignore_eos {
            body.insert("ignore_eos".to_owned(), true.into());
        }
        if let Some(temperature) = self.temperature {
            body.insert("temperature".to_owned(), temperature.into());
        }
        body.extend(self.extra.clone());
        Bytes::from(Value::Object(body).to_string())
    }
}
