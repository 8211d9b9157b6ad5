//! One step as plain data: what [`crate::scheduler::Scheduler::plan`] decides and a runner executes, and what comes
//! back from it.

use std::sync::Arc;

use crate::request::{SamplingParams, TokenLogprob};

/// Tokens per KV block.
pub const BLOCK_TOKENS: usize = 64;

/// One forward pass over rows of several sequences. Decode rows come before prefill rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// Counts up from 0; outputs are matched to plans by it.
    pub id: u64,
    /// At most one row per sequence.
    pub rows: Vec<Row>,
}

/// The part of one sequence that a step computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Index below `max_num_seqs`, the sequence's own while it runs; runners keep per-sequence sampling state in it.
    pub slot: u32,
    /// Present in the first row of a slot's new occupant, and when a preempted sequence starts again.
    pub start: Option<Arc<SlotStart>>,
    /// Tokens to feed, at positions `position..position + len`.
    pub tokens: TokenSource,
    /// Position of the first token.
    pub position: u32,
    /// KV block ids that hold positions `0..position + len`, in order.
    pub blocks: Vec<u32>,
    /// Whether a token is drawn from the logits after the last token fed.
    pub sample: bool,
    /// Prompt tokens to score: entry i is the token that follows the i-th token fed. Shorter than the tokens fed
    /// where the prompt ends; empty unless asked for.
    pub score: Vec<u32>,
}

/// Where a row's tokens come from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenSource {
    /// Known to the scheduler; never empty.
    Host(Vec<u32>),
    /// The one token that this slot sampled in the step before, which may not have been collected yet. If that step
    /// drew none because its logits were not finite, any valid id will do: this row's output will be discarded.
    LastSampled,
}

impl TokenSource {
    /// How many tokens are fed; at least 1.
    pub fn len(&self) -> usize {
        match self {
            TokenSource::Host(tokens) => tokens.len(),
            TokenSource::LastSampled => 1,
        }
    }

    /// Never, in a valid plan.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a runner must know of a sequence for as long as it holds its slot.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotStart {
    /// How its tokens are drawn.
    pub sampling: Arc<SamplingParams>,
    /// `tokens[..prompt_len]` is the prompt. The rest was generated before a preemption.
    pub prompt_len: usize,
    /// All known tokens.
    pub tokens: Vec<u32>,
    /// Alternatives to report with each scored prompt token.
    pub prompt_logprobs: Option<u8>,
}

/// What a step computed: one entry per row of its plan, in the same order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// Step number of the plan.
    pub id: u64,
    /// One per row.
    pub rows: Vec<RowOutput>,
}

/// What a step computed for one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// The token drawn, where the row asked for one and its logits were finite.
    pub token: Option<u32>,
    /// Present if the sampling parameters ask for it.
    pub logprob: Option<TokenLogprob>,
    /// One per entry of [`Row::score`].
    pub scores: Vec<TokenLogprob>,
    /// NaN or infinity in this row's logits: this request fails, its neighbours do not.
    pub non_finite: bool,
}
