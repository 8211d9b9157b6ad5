//! Steps of synthetic sequences through a runner, without scheduler or HTTP.

use std::sync::Arc;
use std::time::Instant;

use crate::device::BLOCK_TOKENS;
use crate::engine::Executor;
use crate::request::SamplingParams;
use crate::runner::Runner;
use crate::scheduler::step_plan::{Row, SlotStart, StepPlan, TokenSource};

/// A runner with a counter of its steps and a fixed block layout: each slot owns consecutive blocks.
pub struct Steps {
    runner: Runner,
    next_id: u64,
    /// Token ids are below this.
    vocab: usize,
    /// Blocks of the cache.
    blocks: usize,
    /// Blocks of a sequence: slot `s` has the blocks from `s × blocks_per_slot` on.
    blocks_per_slot: usize,
}

/// Decode steps to time: `batch` sequences generate one token each per step.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRun {
    /// Sequences.
    pub batch: usize,
    /// Tokens before the first step. Their keys and values are whatever the cache holds.
    pub context: usize,
    /// Untimed steps.
    pub warm_up: usize,
    /// Timed steps.
    pub reps: usize,
}

impl Steps {
    /// Uses a runner whose cache has `blocks` blocks.
    pub fn new(runner: Runner, vocab: usize, blocks: usize) -> Self {
        Self { runner, next_id: 0, vocab, blocks, blocks_per_slot: blocks }
    }

    /// Whether the cache holds `batch` sequences of `tokens` tokens.
    pub fn fits(&self, batch: usize, tokens: usize) -> bool {
        batch * tokens.div_ceil(BLOCK_TOKENS) <= self.blocks
    }

    /// Seconds of one step over one prompt of `tokens` tokens.
    pub fn prefill(&mut self, slot: usize, tokens: usize) -> anyhow::Result<f64> {
        let row = self.start(slot, tokens);
        self.step(vec![row])
    }

    /// Seconds of each timed step.
    pub fn decode(&mut self, run: DecodeRun) -> anyhow::Result<Vec<f64>> {
        let DecodeRun { batch, context, warm_up, reps } = run;
        self.blocks_per_slot = (context + warm_up + reps).div_ceil(BLOCK_TOKENS);
        let starts = (0..batch).map(|slot| self.start(slot, 1)).collect();
        self.step(starts)?;
        let mut times = Vec::with_capacity(reps);
        for i in 0..warm_up + reps {
            let rows = (0..batch).map(|slot| self.row(slot, None, TokenSource::LastSampled, context + i));
            times.push(self.step(rows.collect())?);
        }
        Ok(times.split_off(warm_up))
    }

    fn start(&self, slot: usize, tokens: usize) -> Row {
        let prompt: Vec<u32> =
            (0..tokens).map(|i| ((i * 7919 + slot * 104_729 + 17) % self.vocab) as u32).collect();
        let start = SlotStart {
            sampling: Arc::new(SamplingParams::greedy()),
            prompt_len: 1,
            tokens: prompt.clone(),
            prompt_logprobs: None,
            grammar: None,
        };
        self.row(slot, Some(Arc::new(start)), TokenSource::Host(prompt), 0)
    }

    fn row(&self, slot: usize, start: Option<Arc<SlotStart>>, tokens: TokenSource, position: usize) -> Row {
        let first = slot * self.blocks_per_slot;
        let blocks = (position + tokens.len()).div_ceil(BLOCK_TOKENS);
        Row {
            slot: slot as u32,
            start,
            tokens,
            position: position as u32,
            blocks: (first..first + blocks).map(|b| b as u32).collect(),
            sample: true,
            drafts: 0,
            proposals: 0,
            score: Vec::new(),
            score_from: 0,
            reward: false,
        }
    }

    fn step(&mut self, rows: Vec<Row>) -> anyhow::Result<f64> {
        let plan = Arc::new(StepPlan { id: self.next_id, rows });
        self.next_id += 1;
        let start = Instant::now();
        self.runner.enqueue(&plan)?;
        let output = self.runner.collect()?;
        let seconds = start.elapsed().as_secs_f64();
        anyhow::ensure!(output.rows.iter().all(|row| !row.non_finite), "a row computed NaN or infinity");
        Ok(seconds)
    }
}
