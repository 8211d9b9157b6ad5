//! JSON types of the replies and events of the Responses API. Fields are written in the order in which they
//! stand here.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::generation::Usage;
use crate::server::reply::ChatToken;

/// A response, whole or so far.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Response")]
pub(crate) struct ResponseReply {
    pub(crate) id: String,
    /// Always "response".
    pub(crate) object: &'static str,
    /// Unix time in seconds.
    pub(crate) created_at: u64,
    /// Unix time in seconds of the end; null before it.
    pub(crate) completed_at: Option<u64>,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub(crate) status: &'static str,
    /// Set if the generation failed.
    pub(crate) error: Option<ResponseError>,
    /// Set if the answer was cut off.
    pub(crate) incomplete_details: Option<IncompleteDetails>,
    /// The model's name as the client gave it.
    pub(crate) model: String,
    /// Messages and function calls, in the order in which the model wrote them.
    pub(crate) output: Vec<OutputItem>,
    /// Token counts, at the end.
    pub(crate) usage: Option<ResponseUsage>,
    /// Values of the request.
    #[serde(flatten)]
    pub(crate) request: RequestEcho,
}

/// The values of a request that its reply repeats, with the defaults filled in.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(crate) struct RequestEcho {
    pub(crate) instructions: Option<String>,
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_logprobs: u64,
    pub(crate) text: TextEcho,
    pub(crate) tool_choice: Value,
    pub(crate) tools: Vec<FunctionEcho>,
    pub(crate) user: Option<String>,
    pub(crate) prompt_cache_key: Option<String>,
    pub(crate) safety_identifier: Option<String>,
    /// Always "disabled".
    pub(crate) truncation: &'static str,
    /// Always false: responses are not stored.
    pub(crate) store: bool,
    /// Always false.
    pub(crate) background: bool,
    /// Always null.
    pub(crate) previous_response_id: Option<&'static str>,
    /// Always null.
    pub(crate) max_tool_calls: Option<u64>,
    /// Always null.
    pub(crate) reasoning: Option<&'static str>,
    /// Always "default".
    pub(crate) service_tier: &'static str,
}

/// `text` of a request.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(crate) struct TextEcho {
    pub(crate) format: FormatEcho,
}

/// `text.format` of a request.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(crate) struct FormatEcho {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

/// A tool of a request.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct FunctionEcho {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) strict: bool,
}

/// The failure of a response.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct ResponseError {
    /// Always "server_error".
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// Why a response is incomplete.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct IncompleteDetails {
    /// Always "max_output_tokens".
    pub(crate) reason: &'static str,
}

/// Token counts of a response.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct ResponseUsage {
    pub(crate) input_tokens: usize,
    pub(crate) input_tokens_details: InputDetails,
    pub(crate) output_tokens: usize,
    pub(crate) output_tokens_details: OutputDetails,
    pub(crate) total_tokens: usize,
}

/// Part of [`ResponseUsage`].
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct InputDetails {
    pub(crate) cached_tokens: usize,
    pub(crate) cache_write_tokens: usize,
}

/// Part of [`ResponseUsage`].
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct OutputDetails {
    pub(crate) reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

/// An item of an answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum OutputItem {
    /// A message of the assistant.
    Message { id: String, status: &'static str, role: &'static str, content: Vec<OutputText> },
    /// A call of a function. `arguments` is the text of a JSON object.
    FunctionCall { id: String, status: &'static str, call_id: String, name: String, arguments: String },
}

/// The text of a message.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(crate) struct OutputText {
    /// Always `output_text`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) text: String,
    /// Always empty.
    pub(crate) annotations: [&'static str; 0],
    /// Log-probabilities of the text's tokens, if the request asks for them.
    pub(crate) logprobs: Vec<ChatToken>,
}

/// An event of a stream.
#[derive(Serialize, JsonSchema)]
pub(crate) struct NumberedEvent<'a> {
    #[serde(flatten)]
    pub(crate) event: ResponseEvent<'a>,
    /// Number of the event in its stream, from 0.
    pub(crate) sequence_number: u64,
}

/// An event of a stream, without its number.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type")]
#[schemars(inline)]
pub(crate) enum ResponseEvent<'a> {
    #[serde(rename = "response.created")]
    Created { response: &'a ResponseReply },
    #[serde(rename = "response.in_progress")]
    InProgress { response: &'a ResponseReply },
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: &'a OutputItem },
    #[serde(rename = "response.content_part.added")]
    PartAdded { item_id: &'a str, output_index: usize, content_index: usize, part: &'a OutputText },
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        logprobs: &'a [ChatToken],
    },
    #[serde(rename = "response.output_text.done")]
    TextDone {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        logprobs: &'a [ChatToken],
    },
    #[serde(rename = "response.content_part.done")]
    PartDone { item_id: &'a str, output_index: usize, content_index: usize, part: &'a OutputText },
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { item_id: &'a str, output_index: usize, delta: &'a str },
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone { item_id: &'a str, output_index: usize, name: &'a str, arguments: &'a str },
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: &'a OutputItem },
    #[serde(rename = "response.completed")]
    Completed { response: &'a ResponseReply },
    #[serde(rename = "response.incomplete")]
    Incomplete { response: &'a ResponseReply },
    #[serde(rename = "response.failed")]
    Failed { response: &'a ResponseReply },
}

impl ResponseEvent<'_> {
    /// The value of `type`, which is also the name of the event.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}
