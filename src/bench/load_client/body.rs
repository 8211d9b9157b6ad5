//! JSON bodies of requests. Each has its own prompt; all requests of a run share the other settings.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::prompts::{PromptContent, PromptSource};

/// Endpoint of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Endpoint {
    /// Path of the endpoint, relative to the server's base URL.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// Builder of the request bodies of a run.
#[derive(Debug, Clone)]
pub struct Bodies {
    /// Prompts.
    pub prompts: PromptSource,
    /// Endpoint that decides the format.
    pub endpoint: Endpoint,
    /// Name of the model.
    pub model: String,
    /// `max_tokens`, unless the prompt has its own.
    pub max_tokens: u64,
    /// `ignore_eos`, an extension of vLLM that other servers share: generate until `max_tokens`.
    pub ignore_eos: bool,
    /// `temperature`; `None` leaves the field out, so that the server uses its default.
    pub temperature: Option<f64>,
    /// Fields added to every body; they replace fields of the same name.
    pub extra: Map<String, Value>,
}

impl Bodies {
    /// Body of request number `index`.
    pub fn get(&self, index: u64) -> Bytes {
        let prompt = self.prompts.get(index);
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.clone().into());
        match (self.endpoint, prompt.content) {
            (Endpoint::Chat, PromptContent::Text(text)) => {
                body.insert("messages".to_owned(), json!([{ "role": "user", "content": text }]));
            }
            (Endpoint::Completions, PromptContent::Text(text)) => {
                body.insert("prompt".to_owned(), text.into());
            }
            (_, PromptContent::Messages(messages)) => {
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
