//! What the engine is asked and what it answers: plain data, tokens only, nothing optional left unresolved.
//!
//! A [`Request`] has been validated by the server and is validated again by the scheduler, since one out-of-range
//! id must never reach a device. Its answer is a stream of [`Update`]s, of which exactly the last has a [`Finish`].

use std::sync::Arc;
use std::time::{Duration, Instant};

/// One sequence to generate. A wire request with `n` choices becomes `n` of these, admitted together or not at all.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// Token ids of the prompt; at least one, each below the model's vocabulary size.
    pub prompt: Arc<[u32]>,
    /// How the next token is chosen.
    pub sampling: Arc<SamplingParams>,
    /// When generation ends.
    pub stop: StopRules,
    /// Smaller runs first, as in vLLM; ties go to whose tenant has been served least, then to the earlier arrival.
    pub priority: i32,
    /// For whom.
    pub tenant: Tenant,
    /// Requests share cached prefixes only with requests of the same salt.
    pub cache_salt: Option<Arc<str>>,
    /// `Some(k)`: report each prompt token's log-probability and `k` alternatives (`echo` with `logprobs`).
    pub prompt_logprobs: Option<u8>,
}

/// What the priority of a request may be, and of a key, from minus this to this: what low priorities wait is bounded by how
/// far apart they can be.
pub const MAX_PRIORITY: i32 = 100;

/// Whose requests they are, among whom the server is shared fairly.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tenant {
    /// A key's name, or a user's; empty for those who have none, who are one tenant.
    pub name: Arc<str>,
    /// At least 1. Where all have requests waiting, each is served in proportion to its weight.
    pub weight: u32,
}

impl Default for Tenant {
    fn default() -> Self {
        Self { name: Arc::from(""), weight: 1 }
    }
}

/// How the next token is chosen, in the order in which it is applied to a row of logits:
/// bias, minimum-length mask, penalties, temperature, top-k, top-p, min-p, draw.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy (argmax, the lowest id on ties); otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it occurs in the output; 0 is off.
    pub frequency_penalty: f32,
    /// (token id, added to its logit).
    pub logit_bias: Vec<(u32, f32)>,
    /// The draw for the token at position p depends on (seed, p) alone.
    pub seed: u64,
    /// Report the chosen token's log-probability and this many alternatives.
    pub logprobs: Option<u8>,
    /// Tokens of [`SamplingParams::barred`] are masked until this many tokens have been generated.
    pub min_tokens: u32,
    /// The ids that may not be drawn before `min_tokens`: end-of-sequence and stop ids.
    pub barred: Vec<u32>,
}

impl SamplingParams {
    /// The most probable token, always; everything else off.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
            min_tokens: 0,
            barred: Vec::new(),
        }
    }
}

/// When generation ends. Stop strings are text and are handled above the engine.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StopRules {
    /// At most this many tokens are generated; at least 1 and prompt + max_tokens ≤ the model's context. 0 is
    /// allowed together with `prompt_logprobs` only: the prompt is scored and nothing generated.
    pub max_tokens: u32,
    /// Generation ends with [`Finish::Stop`] after any of these.
    pub stop_ids: Vec<u32>,
}

/// A token with its log-probability under the model's raw logits (before bias, penalties and temperature).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token chosen, or the prompt token scored.
    pub token: u32,
    /// Natural logarithm of its probability; never -inf or NaN.
    pub logprob: f32,
    /// The most probable tokens, most probable first, lowest id first on ties.
    pub top: Vec<(u32, f32)>,
}

/// What one step yielded for one request.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The token generated, if any.
    pub token: Option<u32>,
    /// Its log-probability, if asked for.
    pub logprob: Option<TokenLogprob>,
    /// Scores of the prompt tokens 1.. that this step computed, if asked for; the first token has none.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// Prompt tokens found in the prefix cache; said once, with the first update.
    pub cached_tokens: Option<u32>,
    /// Set on the last update and on no other.
    pub finish: Option<Finish>,
    /// What the request has cost so far, this update's step included; on the last one all of it.
    pub cost: Cost,
    /// When its step's results came, where anybody has a clock.
    pub made: Option<Instant>,
}

/// What a request has cost. Times are in seconds; how a step's time is divided is told in the engine's account.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// From its submission to its first row in a step.
    pub queue: f64,
    /// Its share of the device's time for rows that feed its prompt, or feed tokens again.
    pub prefill: f64,
    /// Its share of the device's time for rows that feed what was drawn last.
    pub decode: f64,
    /// KV blocks held times seconds; a block that several hold is divided between them.
    pub kv_block_seconds: f64,
    /// Prompt tokens found in the prefix cache at its first start.
    pub cached_tokens: u64,
    /// Tokens fed to the model for the first time.
    pub computed_tokens: u64,
    /// Tokens fed again after a preemption.
    pub recomputed_tokens: u64,
}

impl Cost {
    /// Both together: of the choices of a request, or of a key's requests.
    pub fn and(self, other: Self) -> Self {
        Self {
            queue: self.queue + other.queue,
            prefill: self.prefill + other.prefill,
            decode: self.decode + other.decode,
            kv_block_seconds: self.kv_block_seconds + other.kv_block_seconds,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            computed_tokens: self.computed_tokens + other.computed_tokens,
            recomputed_tokens: self.recomputed_tokens + other.recomputed_tokens,
        }
    }
}

/// Why a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// A stop id, which is the last token.
    Stop(u32),
    /// `max_tokens` were generated.
    Length,
    /// The request failed through no fault of its own; the text says why.
    Error(String),
    /// The client's deadline has passed.
    Late,
}

/// The engine's refusal of a request, before anything was done for it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Reject {
    /// A field that the door should have caught.
    #[error("{field}: {message}")]
    Invalid {
        /// The wire name of the field.
        field: &'static str,
        /// Expected versus got.
        message: String,
    },
    /// Prompt and `max_tokens` exceed the context, or need more KV blocks than exist.
    #[error("prompt of {prompt} and {max_tokens} new tokens exceed the limit of {limit} tokens")]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// New tokens asked for.
        max_tokens: u32,
        /// The most that fits.
        limit: usize,
    },
    /// The queue is full, counted in requests.
    #[error("the queue is full: {waiting} requests waiting, at most {limit}")]
    QueueFull {
        /// Requests waiting now.
        waiting: usize,
        /// The bound.
        limit: usize,
    },
    /// The queue is full, counted in prompt tokens.
    #[error("the queue is full: {waiting} prompt tokens waiting, at most {limit}")]
    QueueTokensFull {
        /// Prompt tokens waiting now.
        waiting: usize,
        /// The bound.
        limit: usize,
    },
    /// The first token would come later than the operator lets anyone wait.
    #[error(
        "the server is busy: the first token is expected in {predicted:.1?}, and nobody is to wait longer than {limit:.1?}"
    )]
    Busy {
        /// Until the first token.
        predicted: Duration,
        /// The bound.
        limit: Duration,
    },
    /// The answer cannot be there by the client's deadline.
    #[error(
        "the answer is expected in {predicted:.1?} at the earliest, after the request's deadline in {left:.1?}"
    )]
    DeadlineUnmet {
        /// Until the last choice has its first token, and as many more as it must have.
        predicted: Duration,
        /// Until the deadline.
        left: Duration,
        /// Whether a server with nothing else to do could meet it.
        ever: bool,
    },
    /// The server drains and takes no new work.
    #[error("the server is draining")]
    Draining,
    /// The device failed; the process is about to exit.
    #[error("the engine has stopped: {0}")]
    EngineDown(String),
}
