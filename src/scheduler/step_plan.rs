//! One step as plain data: the plan that [`crate::scheduler::Scheduler::plan`] makes and an executor runs,
//! and the output that comes back.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::grammar::{GrammarMatcher, GrammarProgress};
use crate::request::{SampledToken, SamplingParams, TokenLogprob};

/// Tokens per KV block.
pub const BLOCK_TOKENS: usize = 64;

/// One forward pass over rows of several sequences. Decode rows come before prefill rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// The plan's number, counted from 0. An output names its plan by this id.
    pub id: u64,
    /// Rows to run, at most one per sequence.
    pub rows: Vec<Row>,
}

/// The part of one sequence that a step computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Index below `max_num_seqs`. A sequence keeps its slot while it runs; runners keep sampling state per
    /// slot.
    pub slot: u32,
    /// Set in the first row of a slot's new sequence, also when a preempted sequence starts again.
    pub start: Option<Arc<SlotStart>>,
    /// Tokens to feed, at positions `position..position + len`; the last `drafts` of them are drafts.
    pub tokens: TokenSource,
    /// Position of the first token.
    pub position: u32,
    /// Ids of the KV blocks of positions `0..position + len`, in order, with those of proposed drafts.
    pub blocks: Arc<[u32]>,
    /// Whether to sample from the logits after the last token fed.
    pub sample: bool,
    /// Number of drafts at the end of `tokens`. With drafts, `tokens` come from the host and no earlier step
    /// is in flight. The row samples after the token before the drafts, and after each draft as long as the
    /// samples before are equal to the drafts. The executor leaves out drafts from the first one on that the
    /// row's grammar refuses.
    pub drafts: usize,
    /// The most drafts that the executor proposes by its draft model and feeds after `tokens`, as if they
    /// were among them. Without any, 0; otherwise `tokens` come from the host and have no drafts, no earlier
    /// step is in flight, and `blocks` has room for the drafts.
    pub proposals: usize,
    /// Prompt tokens to score: entry i is the token that follows token `score_from` + i of those fed. Empty
    /// unless prompt log-probabilities were asked for.
    pub score: Vec<u32>,
    /// Number of tokens fed before the one whose logits score the first entry of `score`.
    pub score_from: u32,
    /// Whether to compute the reward head after the last token fed, which is the last of the prompt.
    pub reward: bool,
}

impl Row {
    /// The drafts, at the end of the tokens fed.
    pub fn draft_tokens(&self) -> &[u32] {
        match &self.tokens {
            TokenSource::Host(tokens) => &tokens[tokens.len() - self.drafts..],
            TokenSource::LastSampled => &[],
        }
    }

    /// Tokens fed, if the executor proposes all drafts that it may.
    pub(crate) fn most_tokens(&self) -> usize {
        self.tokens.len() + self.proposals
    }

    /// Tokens fed, without drafts.
    pub(crate) fn len_without_drafts(&self) -> usize {
        self.tokens.len() - self.drafts
    }
}

/// The source of a row's tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenSource {
    /// Token ids known to the scheduler; never empty.
    Host(Vec<u32>),
    /// The last token that this slot sampled in the previous step, which may not have been collected yet. If
    /// that step sampled none because its logits were not finite, any valid id will do: this row's output is
    /// discarded.
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

    /// Always `false` in a valid plan.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A sequence's data that a runner needs for as long as the sequence holds its slot.
#[derive(Debug, PartialEq)]
pub struct SlotStart {
    /// Sampling parameters of the sequence.
    pub sampling: Arc<SamplingParams>,
    /// `tokens[..prompt_len]` is the prompt. The rest was generated before a preemption.
    pub prompt_len: usize,
    /// All known tokens.
    pub tokens: Vec<u32>,
    /// Number of alternatives to report with each scored prompt token.
    pub prompt_logprobs: Option<u8>,
    /// The state of the sequence's grammar, which all ranks share.
    pub grammar: Option<GrammarMatcher>,
}

/// The output of one step: one entry per row of its plan, in the same order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// Step number of the plan.
    pub id: u64,
    /// One entry per row.
    pub rows: Vec<RowOutput>,
    /// Time for which the device was idle because a mask of a grammar was late.
    pub mask_wait: Duration,
}

/// The output of one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowOutput {
    /// The tokens sampled: none if the row asked for no sampling or its logits were not finite, otherwise one
    /// and one more for each draft that was accepted. All but the last are equal to the drafts.
    pub tokens: SmallVec<[SampledToken; 1]>,
    /// The drafts that the executor fed: those of the row that its grammar allows, or those that the executor
    /// proposed, at most [`Row::proposals`].
    pub drafts: Vec<u32>,
    /// One entry per entry of [`Row::score`].
    pub scores: Vec<TokenLogprob>,
    /// The values of the reward head, if [`Row::reward`] asks for them.
    pub reward: Option<Arc<[f32]>>,
    /// NaN or infinity in this row's logits or reward: this request fails, other requests do not.
    pub non_finite: bool,
    /// How far the answer has come in its grammar. A row samples no token where the grammar allows none.
    pub grammar: GrammarProgress,
}
