//! Properties of the server that requests are validated against. Fixed limits are in the tables of fields.

use std::sync::Arc;

use crate::server::error::ApiError;
use crate::server::reward::scoring::Scoring;
use crate::tools::ToolSupport;

/// Fields that are variables of chat templates.
pub(crate) const TEMPLATE_FIELDS: [&str; 2] = ["reasoning_effort", "verbosity"];

/// Sampling values for fields that the client leaves out, from the model's `generation_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// 1 if the model sets none.
    pub temperature: f32,
    /// 1 if the model sets none; 0 means greedy decoding.
    pub top_p: f32,
    /// 0, which means all tokens, if the model sets none.
    pub top_k: u32,
    /// 0 if the model sets none.
    pub min_p: f32,
    /// 1 if the model sets none.
    pub repetition_penalty: f32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// Properties of the server that requests are validated against.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Names that the model is served under. The first is used if the client names none.
    pub models: Vec<String>,
    /// Paths of the model's directory, without a slash at the end, which requests may give instead of a name.
    pub model_paths: Vec<String>,
    /// Valid token ids are below this.
    pub vocab_size: usize,
    /// Token ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// How the model calls tools; `None` if it has no chat template.
    pub tools: Option<ToolSupport>,
    /// Values for fields that the client leaves out.
    pub defaults: Defaults,
    /// Those of [`TEMPLATE_FIELDS`] that the chat template reads.
    pub template_fields: Vec<&'static str>,
    /// The values and weights of a model that scores; `None` if the model generates.
    pub scoring: Option<Arc<Scoring>>,
    /// Whether the chat template takes a system message.
    pub takes_system: bool,
    /// Turn markers of any model that the tokenizer knows as tokens.
    pub own_markers: Vec<&'static str>,
    /// Whether an unknown field is an error.
    pub reject_unknown_fields: bool,
    /// Whether the operator gave API keys priorities. If so, a request's own `priority` cannot be negative,
    /// that is, it cannot go before other requests of its key.
    pub keys_have_priorities: bool,
}

impl Limits {
    /// Refuses a request for an answer to a model that scores.
    ///
    /// # Errors
    /// 400.
    pub(super) fn must_generate(&self) -> Result<(), ApiError> {
        let text = "this model scores answers and does not generate; expected a request to \
                    /v1/chat/completions, /v1/reward, /pooling, /classify or /get_reward";
        self.scoring.as_ref().map_or(Ok(()), |_| Err(ApiError::unsupported("model", text)))
    }

    /// The values of a model that scores.
    ///
    /// # Errors
    /// 400 if the model generates.
    pub(super) fn must_score(&self) -> Result<Arc<Scoring>, ApiError> {
        let text = "this model generates and has no reward head; scores need a model with one";
        self.scoring.clone().ok_or_else(|| ApiError::unsupported("model", text))
    }
}
