//! JSON types of the replies, events and errors of the Messages API.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::generation::Usage;
use crate::server::error::ApiError;

/// A message, whole or at its beginning.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicMessage")]
pub(crate) struct MessageReply {
    pub(crate) id: String,
    /// Always "message".
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// Always "assistant".
    pub(crate) role: &'static str,
    /// The model's name as the client gave it.
    pub(crate) model: String,
    /// Texts and calls, in the order in which the model wrote them.
    pub(crate) content: Vec<ContentBlock>,
    /// `end_turn`, `stop_sequence`, `tool_use`, `max_tokens` or `model_context_window_exceeded`; null before
    /// the end.
    pub(crate) stop_reason: Option<&'static str>,
    /// The stop sequence that ended the answer.
    pub(crate) stop_sequence: Option<String>,
    pub(crate) usage: MessageUsage,
}

/// A block of an answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum ContentBlock {
    Text { text: String },
    ToolUse { id: String, name: String, input: Map<String, Value> },
}

/// Token counts of a message.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(crate) struct MessageUsage {
    /// Tokens of the prompt that were not in the prefix cache.
    pub(crate) input_tokens: usize,
    pub(crate) output_tokens: usize,
    /// Tokens of the prompt that were in the prefix cache.
    pub(crate) cache_read_input_tokens: usize,
    /// Always 0: prefixes are cached without being asked for.
    pub(crate) cache_creation_input_tokens: usize,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            output_tokens: usage.completion_tokens,
            cache_read_input_tokens: usage.cached_tokens,
            cache_creation_input_tokens: 0,
        }
    }
}

/// An event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum MessageEvent<'a> {
    MessageStart {
        message: &'a MessageReply,
    },
    ContentBlockStart {
        index: usize,
        content_block: &'a ContentBlock,
    },
    ContentBlockDelta {
        index: usize,
        delta: BlockDelta<'a>,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: MessageEnd<'a>,
        usage: MessageUsage,
    },
    MessageStop,
    /// Keeps the connection open.
    Ping,
    /// The last event of an answer that failed.
    Error {
        error: AnthropicError,
    },
}

impl MessageEvent<'_> {
    /// The value of `type`, which is also the name of the event.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
            Self::Error { .. } => "error",
        }
    }
}

/// An addition to a block.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum BlockDelta<'a> {
    TextDelta { text: &'a str },
    InputJsonDelta { partial_json: &'a str },
}

/// How a message ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct MessageEnd<'a> {
    pub(crate) stop_reason: Option<&'static str>,
    pub(crate) stop_sequence: Option<&'a str>,
}

/// The number of tokens of a request.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenCount {
    pub(crate) input_tokens: usize,
}

/// The body of an error of the Messages API.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AnthropicErrorBody<'a> {
    /// Always "error".
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError,
    /// Value of the response's `request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// An error of the Messages API.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AnthropicError {
    /// Kind of error.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Text for people. It names the field, and the expected and the received value.
    message: String,
}

impl AnthropicError {
    /// Returns the error as it is sent with this status.
    pub(crate) fn new(error: &ApiError, status: u16) -> Self {
        Self { kind: error_type(status), message: error.message() }
    }
}

/// The type of an error with this status.
fn error_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// The JSON of an error that is sent with this status.
pub(crate) fn error_json(error: &ApiError, status: u16, request_id: Option<&str>) -> String {
    let error = AnthropicError::new(error, status);
    let body = AnthropicErrorBody { kind: "error", error, request_id };
    serde_json::to_string(&body).expect("strings can be written as JSON")
}
