//! JSON types of replies about the server, its models and their tokens.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// Reply of `GET /v1/models`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelList {
    pub(super) object: &'static str,
    /// The model under each of its names.
    pub(super) data: Vec<ModelReply>,
}

/// The model under one of its names.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub(super) struct ModelReply {
    /// The name.
    pub(super) id: String,
    pub(super) object: &'static str,
    /// Unix time in seconds at which the server started.
    pub(super) created: u64,
    pub(super) owned_by: &'static str,
    /// The most tokens of prompt and answer together.
    pub(super) max_model_len: usize,
    /// `generate`, or `reward` for a model with a reward head, which scores answers and does not generate.
    pub(super) task: &'static str,
    /// Names of the values of a reward model, in the order of its replies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attributes: Option<Vec<String>>,
}

/// Reply of `GET /version`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VersionReply {
    /// Version of Octant.
    pub(super) version: &'static str,
}

/// Reply of `POST /tokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TokenizeReply {
    /// Number of tokens.
    pub(super) count: usize,
    /// The most tokens of prompt and answer together.
    pub(super) max_model_len: usize,
    /// Token ids.
    pub(super) tokens: Vec<u32>,
    /// Text of each token, if `return_token_strs` asks for it.
    pub(super) token_strs: Option<Vec<String>>,
}

/// Reply of `POST /detokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DetokenizeReply {
    /// The text, special tokens included.
    pub(super) prompt: String,
}

/// Reply of `GET /tokenizer_info`: the tokenizer's configuration.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenizerInfo")]
pub(super) struct TokenizerInfoReply {
    /// The class of the tokenizer in `transformers`.
    pub(super) tokenizer_class: Option<String>,
    /// Source of the chat template, if the model has one.
    pub(super) chat_template: Option<String>,
    /// The other keys of `tokenizer_config.json`, such as `eos_token`; special tokens are text.
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}
