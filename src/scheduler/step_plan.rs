//! One step as plain data: what [`crate::scheduler::Scheduler::plan`] decides, and what a runner returns for
//! it.

use std::sync::Arc;

use crate::request::{SamplingParams, TokenLogprob};

/// Tokens per KV block.
pub const BLOCK_TOKENS: usize = 64;

/// One forward pass over rows of several sequences. Decode rows come before prefill rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// Step number, counted from 0. A runner's output carries the number of its plan.
    pub id: u64,
    /// At most one row per sequence.
    pub rows: Vec<Row>,
}

/// The part of one sequence that a step computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Slot index below `max_num_seqs`. A sequence keeps its slot while it runs; runners keep sampling state
    /// by slot.
    pub slot: u32,
    /// Present in the first row after a sequence has taken the slot, also after a preemption.
    pub start: Option<Arc<SlotStart>>,
    /// Tokens to feed, at positions `position..position + len`.
    pub tokens: TokenSource,
    /// Position of the first token.
    pub position: u32,
    /// Ids of the KV blocks that hold the positions `0..position + len`, in order.
    pub blocks: Vec<u32>,
    /// Whether to sample a token from the logits of the last token fed.
    pub sample: bool,
    /// Prompt tokens to score: entry i is the token after the i-th token fed. Shorter than the tokens fed
    /// where the prompt ends; empty unless the request wants prompt log-probabilities.
    pub score: Vec<u32>,
}

/// Source of a row's tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenSource {
    /// Tokens known to the scheduler; never empty.
    Host(Vec<u32>),
    /// The token that this slot sampled in the previous step, which may not have been committed yet. If that
    /// step sampled none because its logits were not finite, any valid id may be fed: the output of this row
    /// is then discarded.
    LastSampled,
}

impl TokenSource {
    /// Number of tokens fed; at least 1.
    pub fn len(&self) -> usize {
        match self {
            TokenSource::Host(tokens) => tokens.len(),
            TokenSource::LastSampled => 1,
        }
    }

    /// Whether the row feeds no tokens; never true in a valid plan.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a runner needs to know of a sequence while it holds its slot.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotStart {
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
    /// `tokens[..prompt_len]` is the prompt. The rest was generated before a preemption.
    pub prompt_len: usize,
    /// All known tokens.
    pub tokens: Vec<u32>,
    /// Number of alternatives to report with each scored prompt token.
    pub prompt_logprobs: Option<u8>,
}

/// The output of a step: one entry per row of its plan, in the same order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// Step number of the plan.
    pub id: u64,
    /// One entry per row.
    pub rows: Vec<RowOutput>,
}

/// The output of a step for one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// The sampled token, if the row asked for one and its logits were finite.
    pub token: Option<u32>,
    /// Log-probability of the sampled token, if the sampling parameters ask for it.
    pub logprob: Option<TokenLogprob>,
    /// One entry per entry of [`Row::score`].
    pub scores: Vec<TokenLogprob>,
    /// Whether this row's logits contain NaN or infinity. Only this request fails; the other rows are not
    /// affected.
    pub non_finite: bool,
}
