//! The engine's requests and answers: plain data of tokens, with every default resolved.
//!
//! The server validates a [`Request`], and the scheduler validates it again: an id out of range must never
//! reach a device. The answer is a stream of [`Update`]s; the last one, and no other, has a [`Finish`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::grammar::Grammar;

/// One sequence to generate, or to score. A wire request with `n` choices becomes `n` of these, admitted
/// together or not at all.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// Token ids of the prompt; at least one, each below the model's vocabulary size.
    pub prompt: Arc<[u32]>,
    /// How the next token is chosen.
    pub sampling: Arc<SamplingParams>,
    /// Rules for the end of generation.
    pub stop: StopRules,
    /// A smaller priority runs first, as in vLLM. Among equal ones the tenant that was served least comes
    /// first, then the earlier request.
    pub priority: i32,
    /// The tenant of the request.
    pub tenant: Tenant,
    /// Requests share cached prefixes only within one salt.
    pub cache_salt: Option<Arc<str>>,
    /// `Some(k)`: report each prompt token's log-probability and `k` alternatives (`echo` with `logprobs`).
    pub prompt_logprobs: Option<u8>,
    /// Index of the first prompt token that is reported, below the prompt's length; 0 without
    /// `prompt_logprobs`. What lies before the token ahead of it may come from the prefix cache.
    pub prompt_logprobs_start: u32,
    /// Report the values of the reward head at the last prompt token and generate nothing. Set in every
    /// request to a model with a reward head, and in no other.
    pub reward: bool,
    /// Whether the request is a line of a batch, which its permit for the queue decides. Such a request runs
    /// behind all live requests: it gives up slot and KV blocks to a live request that waits for them, and
    /// never ages.
    pub batch: bool,
}

impl Request {
    /// A request for the values of the reward head at the end of a prompt.
    pub fn score(prompt: &[u32]) -> Self {
        Self {
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams::greedy()),
            stop: StopRules { max_tokens: 0, stop_ids: Vec::new() },
            priority: 0,
            tenant: Tenant::default(),
            cache_salt: None,
            prompt_logprobs: None,
            prompt_logprobs_start: 0,
            reward: true,
            batch: false,
        }
    }
}

/// The greatest priority of a request and of a key; the smallest is its negative. The range bounds how long a
/// request of low priority waits.
pub(crate) const MAX_PRIORITY: i32 = 100;

/// A group of requests that share the server fairly with other tenants.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tenant {
    /// The name of a key or of a user. All requests without one belong to the tenant with the empty name.
    pub name: Arc<str>,
    /// Weight, at least 1. Tenants that have waiting requests are served in proportion to their weights.
    pub weight: u32,
}

impl Default for Tenant {
    fn default() -> Self {
        Self { name: Arc::from(""), weight: 1 }
    }
}

/// How the next token is chosen. A row of logits undergoes, in this order: bias, penalties, the masks of the
/// least length and of the grammar, temperature, top-k, top-p, min-p, random choice.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy decoding (argmax, the lowest id on ties); otherwise the divisor of the logits.
    pub temperature: f32,
    /// Keeps the smallest set of most probable tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens whose probability is at least this fraction of the greatest one; 0 keeps all.
    pub min_p: f32,
    /// Factor for tokens in the prompt or the output: their positive logits are divided by it, and their
    /// negative logits are multiplied by it; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it occurs in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Pairs of a token id and the value that is added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random choice. The choice at position p depends on (seed, p) alone.
    pub seed: u64,
    /// Reports the chosen token's log-probability and this many alternatives.
    pub logprobs: Option<u8>,
    /// Tokens of [`SamplingParams::barred`] are masked until this many tokens have been generated.
    pub min_tokens: u32,
    /// The ids that may not be sampled before `min_tokens`: end-of-sequence and stop ids.
    pub barred: Vec<u32>,
    /// The grammar that the answer follows. A recording does not keep it, only the tokens that it allowed.
    #[serde(skip)]
    pub grammar: Option<Arc<Grammar>>,
}

impl SamplingParams {
    /// Greedy decoding with everything else off.
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
            grammar: None,
        }
    }
}

/// Rules for the end of generation. Stop strings are text and are handled by [`crate::generation`].
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StopRules {
    /// The most tokens to generate; at least 1, and prompt + max_tokens ≤ the model's context. 0 is allowed
    /// together with `prompt_logprobs` and required together with `reward`: the prompt is scored and nothing
    /// is generated.
    pub max_tokens: u32,
    /// Generation ends with [`Finish::Stop`] after any of these.
    pub stop_ids: Vec<u32>,
}

/// A token with its log-probability under the raw logits, before bias, penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The sampled token, or the scored prompt token.
    pub token: u32,
    /// Natural logarithm of the token's probability; never -inf or NaN.
    pub logprob: f32,
    /// The token's place among all tokens, 1 for the most probable one. Of equally probable ones the lowest
    /// id is first.
    pub rank: u32,
    /// The most probable tokens, most probable first, lowest id first on ties.
    pub top: Vec<(u32, f32)>,
}

/// A token that a step sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The token's id.
    pub id: u32,
    /// Its log-probability, if the request asks for it. It is boxed because most tokens
    /// have none, and a step copies a token several times.
    pub logprob: Option<Box<TokenLogprob>>,
}

impl SampledToken {
    /// A token without its log-probability.
    pub fn new(id: u32) -> Self {
        Self { id, logprob: None }
    }
}

/// The result of one step for one request.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// The tokens generated, in order; at most one without speculative decoding.
    pub tokens: SmallVec<[SampledToken; 1]>,
    /// Log-probabilities of the prompt tokens that this step scored, if the request asks for them, from
    /// its first one to report on. Prompt token 0 has none.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// The values of the reward head in the order of its rows, neither scaled nor weighted. Set on the last
    /// update of a request that asks for them, unless it failed.
    pub reward: Option<Arc<[f32]>>,
    /// Prompt tokens found in the prefix cache. Set on the first update only.
    pub cached_tokens: Option<u32>,
    /// Set on the last update and on no other.
    pub finish: Option<Finish>,
    /// The request's cost so far, including the update's step. On the last update, the total cost.
    pub cost: Cost,
    /// Time at which the engine received the step's results; `None` outside the engine.
    pub made: Option<Instant>,
}

/// The cost of a request. Times are in seconds. The engine's `usage` module defines how a step's time is
/// divided.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Time from the request's submission to its first row in a step.
    pub queue: f64,
    /// Device time of the request's rows that feed its prompt or, after a preemption, feed its tokens again.
    pub prefill: f64,
    /// Device time of the request's rows that feed the last sampled token.
    pub decode: f64,
    /// KV blocks held times seconds. A shared block is divided equally between its holders.
    pub kv_block_seconds: f64,
    /// Prompt tokens found in the prefix cache when the request first started.
    pub cached_tokens: u64,
    /// Tokens fed to the model for the first time.
    pub computed_tokens: u64,
    /// Tokens fed again after a preemption.
    pub recomputed_tokens: u64,
}

impl Cost {
    /// The sum of two costs, for instance of two choices of one request.
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
    /// A stop id was sampled; it is the last token of the output.
    Stop(u32),
    /// The grammar allows no further text after the last token, which is part of the output.
    Complete,
    /// `max_tokens` were generated, or the grammar allows no token of the vocabulary.
    Length,
    /// The next step of the grammar takes more work than is allowed; the text says which.
    TooComplex(String),
    /// The server failed; the text says why.
    Error(String),
    /// The client's deadline passed.
    Late,
}

/// A refusal of a request before anything was computed for it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Reject {
    /// A field has an invalid value, which the server's validation should have refused.
    #[error("{field}: {message}")]
    Invalid {
        /// The wire name of the field.
        field: &'static str,
        /// The expected and the actual value.
        message: String,
    },
    /// Prompt and `max_tokens` exceed the context, or need more KV blocks than exist.
    #[error("prompt of {prompt} and {max_tokens} new tokens exceed the limit of {limit} tokens")]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// New tokens asked for.
        max_tokens: u32,
        /// The most tokens, of prompt and answer together, that fit.
        limit: usize,
    },
    /// The queue has no room for another request.
    #[error("the queue is full: {waiting} requests waiting, at most {limit}")]
    QueueFull {
        /// Waiting requests.
        waiting: usize,
        /// The most requests that may wait.
        limit: usize,
    },
    /// The queue has no room for more prompt tokens.
    #[error("the queue is full: {waiting} prompt tokens waiting, at most {limit}")]
    QueueTokensFull {
        /// Waiting prompt tokens.
        waiting: usize,
        /// The most prompt tokens that may wait.
        limit: usize,
    },
    /// The predicted time to the first token exceeds the operator's limit.
    #[error("the server is busy: the first token takes {predicted:.1?}, more than the limit of {limit:.1?}")]
    Busy {
        /// Predicted time to the first token.
        predicted: Duration,
        /// The operator's `--max-ttft`.
        limit: Duration,
    },
    /// The answer cannot be complete by the client's deadline.
    #[error("the answer takes at least {predicted:.1?}, but the request's deadline is in {left:.1?}")]
    DeadlineUnmet {
        /// Predicted time until the last choice has its first token and `min_tokens` - 1 more.
        predicted: Duration,
        /// Time left until the deadline.
        left: Duration,
        /// Whether an idle server could meet the deadline.
        ever: bool,
    },
    /// The server is draining and takes no new requests.
    #[error("the server is draining")]
    Draining,
    /// The engine has failed or was stopped; the process is about to exit.
    #[error("the engine has stopped: {0}")]
    EngineDown(String),
}
