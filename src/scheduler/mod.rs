//! Which tokens run next, in which KV blocks.

pub mod plan;

use crate::request::{Reject, Request, Update};
use plan::{StepOutput, StepPlan};

/// Names one request for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The limits within which the scheduler decides.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Slots: sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens per step.
    pub max_num_batched_tokens: usize,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
    /// KV blocks of [`plan::BLOCK_TOKENS`] tokens.
    pub num_blocks: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Requests that may wait. An empty queue takes any one group, whatever its size.
    pub max_queue_requests: usize,
    /// Prompt tokens that may wait. An empty queue takes any one group, whatever its length.
    pub max_queue_tokens: usize,
    /// Whether requests share the KV blocks of equal prefixes.
    pub prefix_caching: bool,
}

impl SchedulerConfig {
    /// # Panics
    /// If a limit that must be positive is 0.
    pub fn assert_sound(&self) {
        assert!(self.max_num_seqs > 0, "max_num_seqs must be positive");
        assert!(self.max_num_batched_tokens > 0, "max_num_batched_tokens must be positive");
        assert!(self.max_model_len > 0, "max_model_len must be positive");
        assert!(self.num_blocks > 0, "num_blocks must be positive");
        assert!(self.vocab_size > 0, "vocab_size must be positive");
    }
}

/// How things stand. Totals count up from the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Sequences that hold a slot.
    pub running: usize,
    /// Sequences that wait, preempted ones among them.
    pub waiting: usize,
    /// Prompt tokens of those that wait.
    pub waiting_tokens: usize,
    /// KV blocks that hold nothing.
    pub blocks_free: usize,
    /// KV blocks that a sequence holds.
    pub blocks_used: usize,
    /// KV blocks that hold a cached prefix and nobody holds: free when needed.
    pub blocks_cached: usize,
    /// All KV blocks: the sum of the three.
    pub blocks_total: usize,
    /// Total: steps planned.
    pub steps: u64,
    /// Total: preemptions.
    pub preemptions: u64,
    /// Total: tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Total: tokens found there.
    pub prefix_hits: u64,
    /// Total: prompt tokens of requests whose answer has begun.
    pub prompt_tokens: u64,
    /// Total: tokens generated.
    pub generated_tokens: u64,
}

/// An output that does not fit the plan it answers: the executor is broken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the executor answered step {got_id} with {got_rows} rows; expected step {want_id} with {want_rows}")]
pub struct Mismatch {
    /// The id of the output.
    pub got_id: u64,
    /// Its rows.
    pub got_rows: usize,
    /// The id of the earliest plan not collected.
    pub want_id: u64,
    /// Its rows.
    pub want_rows: usize,
}

/// Decides what each step computes.
pub struct Scheduler {
    config: SchedulerConfig,
}

impl Scheduler {
    /// With nothing running and all blocks free.
    pub fn new(config: SchedulerConfig) -> Self {
        config.assert_sound();
        Self { config }
    }

    /// Takes a group into the queue, all or none.
    pub fn submit(&mut self, group: Vec<(RequestId, Request)>) -> Result<(), Reject> {
        let _ = group;
        Err(Reject::Draining)
    }

    /// Forgets a request; no further update names it.
    pub fn abort(&mut self, id: RequestId) {
        let _ = id;
    }

    /// The next step, or `None` if there is nothing to compute now.
    pub fn plan(&mut self) -> Option<StepPlan> {
        None
    }

    /// Takes in what the earliest uncollected step computed.
    pub fn commit(&mut self, output: &StepOutput) -> Result<Vec<(RequestId, Update)>, Mismatch> {
        let _ = output;
        Ok(Vec::new())
    }

    /// Whether there is no request at all.
    pub fn is_idle(&self) -> bool {
        true
    }

    /// How things stand.
    pub fn counts(&self) -> Counts {
        Counts { blocks_total: self.config.num_blocks, ..Counts::default() }
    }

    /// Recounts everything; the error says what does not add up.
    pub fn check_integrity(&self) -> Result<(), String> {
        Ok(())
    }
}
