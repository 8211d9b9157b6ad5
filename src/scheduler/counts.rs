//! The scheduler's numbers, as the engine publishes them.

use super::{MAX_DRAFTS, SchedulerConfig};

/// Current numbers of sequences and blocks, and totals since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Running live sequences.
    pub running: usize,
    /// Waiting live sequences, preempted ones included.
    pub waiting: usize,
    /// Prompt tokens of waiting live sequences.
    pub waiting_tokens: usize,
    /// Running sequences of batches.
    pub batch_running: usize,
    /// Waiting sequences of batches, preempted ones included.
    pub batch_waiting: usize,
    /// KV blocks that sequences of batches hold or have reserved, which live sequences get when they need
    /// them. A block that several of them share counts for each.
    pub batch_blocks: usize,
    /// Empty KV blocks.
    pub blocks_free: usize,
    /// KV blocks that sequences hold.
    pub blocks_used: usize,
    /// KV blocks of cached prefixes that no sequence holds: evicted when needed.
    pub blocks_cached: usize,
    /// All KV blocks: free, used and cached.
    pub blocks_total: usize,
    /// Free or cached KV blocks that are reserved for running sequences.
    pub blocks_reserved: usize,
    /// Total: planned steps.
    pub steps: u64,
    /// Total: preemptions.
    pub preemptions: u64,
    /// Total: tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Total: tokens found in the prefix cache.
    pub prefix_hits: u64,
    /// Total: prompt tokens of requests that had their first update.
    pub prompt_tokens: u64,
    /// Total: generated tokens.
    pub generated_tokens: u64,
    /// Totals of speculative decoding.
    pub speculation: SpeculationCounts,
}

/// Totals of speculative decoding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SpeculationCounts {
    /// Rows that fed drafts.
    pub rows: u64,
    /// Drafts fed.
    pub drafts: u64,
    /// Drafts accepted, by their place in the row.
    pub accepted: [u64; MAX_DRAFTS],
}

impl SpeculationCounts {
    /// Counts a row of `drafts` drafts that yielded `tokens` tokens.
    pub(super) fn add(&mut self, drafts: usize, tokens: usize) {
        self.rows += u64::from(drafts > 0);
        self.drafts += drafts as u64;
        let accepted = tokens.saturating_sub(1).min(drafts);
        self.accepted.iter_mut().take(accepted).for_each(|count| *count += 1);
    }

    /// Drafts accepted.
    pub fn all_accepted(&self) -> u64 {
        self.accepted.iter().sum()
    }
}

impl Counts {
    /// The counts of a scheduler without requests.
    pub fn empty(config: &SchedulerConfig) -> Self {
        Self { blocks_free: config.num_blocks, blocks_total: config.num_blocks, ..Self::default() }
    }
}
