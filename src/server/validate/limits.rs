//! Limits and defaults that requests are validated against.

use crate::tools::ToolSupport;

/// Most stop strings per request.
pub(super) const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string, in bytes.
pub(super) const MAX_STOP_BYTES: usize = 1024;
/// Most ids in `stop_token_ids`.
pub(super) const MAX_STOP_IDS: usize = 64;
/// Most entries in `logit_bias`.
pub(super) const MAX_LOGIT_BIAS: usize = 1024;
/// Most choices per prompt.
pub(super) const MAX_N: u32 = 128;
/// Most sequences per request: prompts times choices.
pub(super) const MAX_SEQUENCES: usize = 256;
/// Most messages in a conversation.
pub(super) const MAX_MESSAGES: usize = 2048;
/// Most alternatives reported per token.
pub(super) const MAX_TOP_LOGPROBS: u8 = 20;
/// Longest `cache_salt`, in characters.
pub(super) const MAX_SALT_CHARS: usize = 1024;
/// Longest `user`, in bytes.
pub(super) const MAX_USER_BYTES: usize = 512;
/// Longest `timeout` and `x-request-deadline-ms`, in seconds: one day.
pub(crate) const MAX_TIMEOUT: f64 = 86_400.0;
/// Most ids in one `/detokenize` request.
pub(super) const MAX_DETOKENIZE: usize = 1 << 20;

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
    /// Whether an unknown field is an error.
    pub reject_unknown_fields: bool,
    /// Whether the operator gave API keys priorities. If so, a request's own `priority` cannot be negative,
    /// that is, it cannot go before other requests of its key.
    pub keys_have_priorities: bool,
}
