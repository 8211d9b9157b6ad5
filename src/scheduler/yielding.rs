//! Rules by which sequences of batches give way to live ones.
//!
//! - A live request that waits gets the slot and the blocks of running sequences of batches, last in order
//!   first. They are free at once, or after the step in flight if that has a row of the sequence.
//! - So that this seldom takes a step, one slot and one block in [`SPARE_SHARE`] are kept free of batches.
//! - A batch gets the tokens of a step that live sequences leave. A step that computes a live prompt computes
//!   no prompt of a batch, and none starts while a live request waits.
//! - Beside live sequences, prompts of batches get one token of a step in [`PROMPT_SHARE`]: long steps would
//!   delay the next token of each, and the first one of a request that arrives.
//! - A sequence of a batch takes a block only if no live request waits.
//!
//! A batch that has the device alone may use all slots and blocks but the spare ones, and one sequence alone
//! may use all blocks, so that every request can run at some time.

use super::Scheduler;
use super::planner::Draft;
use super::sequence::{Order, Sequence};
use super::slots::Slot;
use super::step_plan::BLOCK_TOKENS;

/// A new sequence starts only if one block in this many stays free, so that running sequences are not
/// preempted at once.
const FREE_SHARE: usize = 100;
/// One slot and one block in this many are kept free of batches.
const SPARE_SHARE: usize = 16;
/// Beside live sequences, prompts of batches get one token of a step in this many.
const PROMPT_SHARE: usize = 8;

impl Scheduler {
    /// The running live sequences.
    pub(super) fn running_live(&self) -> impl Iterator<Item = &Sequence> {
        self.running.range(..Order::FIRST_OF_BATCHES).map(|(_, sequence)| sequence)
    }

    /// The running sequences of batches.
    pub(super) fn running_batch(&self) -> impl Iterator<Item = &Sequence> {
        self.running.range(Order::FIRST_OF_BATCHES..).map(|(_, sequence)| sequence)
    }

    /// Whether a live sequence waits or runs.
    pub(crate) fn has_live(&self) -> bool {
        !self.waiting.is_empty() || self.running.first_key_value().is_some_and(|(order, _)| !order.batch)
    }

    /// Whether sequences of batches run, and no live one waits or runs.
    pub(super) fn batches_alone(&self) -> bool {
        !self.running.is_empty() && !self.has_live()
    }

    /// The most tokens of a step that are of prompts of batches.
    pub(super) fn batch_prompt_tokens(&self) -> usize {
        let most = self.config.max_num_batched_tokens;
        if self.has_live() { most.div_ceil(PROMPT_SHARE) } else { most }
    }

    fn spare_slots(&self) -> usize {
        let slots = self.config.max_num_seqs;
        slots.div_ceil(SPARE_SHARE).min(slots - 1)
    }

    fn spare_blocks(&self) -> usize {
        self.pool.total() / SPARE_SHARE
    }

    /// Preempts sequences of batches until each waiting live request can have a slot, and the prompts of all
    /// of them blocks, beside the spare ones. Does nothing while there is no live request.
    pub(super) fn yield_to_live(&mut self, draft: &mut Draft) {
        if !self.has_live() {
            return;
        }
        let slots = self.spare_slots() + self.waiting.len();
        let prompts = self.waiting_tokens.div_ceil(BLOCK_TOKENS) + self.waiting.len();
        let blocks = self.spare_blocks() + prompts;
        let short = |this: &Self, promised: usize| {
            this.slots.free() + this.leaving.len() < slots
                || this.pool.available() + promised < this.reserved + blocks
        };
        while short(self, draft.promised) && self.preempt_batch(draft) {}
    }

    /// Preempts the last running sequence of a batch. `false` if none runs.
    fn preempt_batch(&mut self, draft: &mut Draft) -> bool {
        let last = self.running.last_key_value().map(|(order, _)| *order);
        let Some(last) = last.filter(|order| order.batch) else { return false };
        draft.promised += self.preempt(last);
        true
    }

    /// Takes a slot for a sequence that starts: a live one may take that of a batch, and a batch leaves the
    /// spare ones.
    pub(super) fn take_slot(&mut self, batch: bool, draft: &mut Draft) -> Option<Slot> {
        if batch {
            let spare = if self.running.is_empty() { 0 } else { self.spare_slots() };
            return if self.slots.free() > spare { self.slots.take() } else { None };
        }
        loop {
            if let Some(slot) = self.slots.take() {
                return Some(slot);
            }
            if !self.leaving.is_empty() || !self.preempt_batch(draft) {
                return None;
            }
        }
    }

    /// Whether `needed` unreserved blocks are available to a sequence that starts. A live one gets those of
    /// batches; if they come free with the step in flight, it starts after that step.
    pub(super) fn has_blocks(&mut self, needed: usize, order: Order, draft: &mut Draft) -> bool {
        loop {
            let (available, needed) = (self.pool.available(), self.reserved + needed);
            if available >= needed {
                return true;
            }
            if order.batch || available + draft.promised >= needed || !self.preempt_batch(draft) {
                return false;
            }
        }
    }

    /// Blocks that must stay free when this sequence starts; 0 if nothing runs that may need them.
    pub(super) fn kept_free(&self, order: Order) -> usize {
        if order.batch {
            // Twice the spare blocks beside live sequences, or their next block would preempt this one.
            let times = if self.has_live() { 2 } else { 1 };
            return if self.running.is_empty() { 0 } else { times * self.spare_blocks() };
        }
        let alone = self.running_live().next().is_none();
        if alone { 0 } else { self.pool.total() / FREE_SHARE }
    }

    /// Unreserved blocks that this running sequence may not take: none for a live one, all for a batch while
    /// a live request waits, the spare ones for a batch otherwise.
    pub(super) fn kept_from(&self, order: Order) -> usize {
        match (order.batch, self.waiting.is_empty()) {
            (false, _) => 0,
            (true, false) => self.pool.total(),
            (true, true) if self.running.len() == 1 => 0,
            (true, true) => self.spare_blocks(),
        }
    }
}
