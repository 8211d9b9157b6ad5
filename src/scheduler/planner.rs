//! Plans one step's rows: decode rows first, then chunks of begun prompts, then new sequences, each in order;
//! and preempts sequences when no block is left. Sequences of batches come after all live ones, in the same
//! order, with the tokens that these leave (`yielding` has their rules).
//!
//! A preempted sequence is computed again, so reservations bound preemptions. `available >= reserved` always
//! holds, and a sequence takes blocks from its own reservation or from those that no reservation covers. A
//! sequence that reached `max_preemptions` starts again only when all blocks it can need are reserved. It
//! then sorts before all preemptible sequences, never needs a block from another, and is never preempted.
//!
//! So the scheduler cannot deadlock: the first sequence in order has its blocks or takes them from later
//! ones, down to the last. When nothing runs, every block is available and none is reserved, and every
//! waiting sequence fits, since `request_check` refuses requests that do not fit the cache.

use std::ops::Bound;

use super::blocks::{Block, BlockTable, Pool};
use super::sequence::{Order, PlannedRow, Sequence};
use super::slots::Slot;
use super::speculation::fitting_drafts;
use super::step_plan::{BLOCK_TOKENS, Row};
use super::{LeaveReason, Scheduler};

/// A range of [`Order`].
type Kind = (Bound<Order>, Bound<Order>);
/// The live sequences.
const LIVE: Kind = (Bound::Unbounded, Bound::Excluded(Order::FIRST_OF_BATCHES));
/// The sequences of batches.
const OF_BATCHES: Kind = (Bound::Included(Order::FIRST_OF_BATCHES), Bound::Unbounded);

/// The step that is being planned.
pub(super) struct Draft {
    rows: Vec<Row>,
    planned: Vec<PlannedRow>,
    /// Tokens that may still be planned.
    budget: usize,
    /// Tokens of prompts that may still be planned, if the budget allows.
    prompt_budget: usize,
    /// Blocks that leaving sequences will free, less one for each decode row that waits for such a block.
    pub(super) promised: usize,
}

impl Draft {
    /// Tokens of prompts that may still be planned.
    fn prompt_tokens_left(&self) -> usize {
        self.budget.min(self.prompt_budget)
    }

    /// Adds a chunk of a prompt.
    fn add_prompt(&mut self, sequence: &mut Sequence) {
        let len = sequence.pending().min(self.prompt_tokens_left());
        self.prompt_budget -= len;
        self.add(sequence, len, 0);
    }

    /// Adds a decode row with at most `drafts` drafts, for which there are tokens and blocks.
    fn add_decode(&mut self, sequence: &mut Sequence, drafts: usize) {
        self.add(sequence, 1, drafts);
    }

    fn add(&mut self, sequence: &mut Sequence, len: usize, drafts: usize) {
        let (row, planned) = sequence.row(len, drafts);
        self.budget -= row.tokens.len() + row.proposals;
        self.rows.push(row);
        self.planned.push(planned);
    }
}

impl Scheduler {
    /// Plans the rows of the next step. Empty only if nothing waits or runs, or everything that runs awaits
    /// the step in flight.
    pub(super) fn plan_rows(&mut self, prompt_tokens: Option<usize>) -> (Vec<Row>, Vec<PlannedRow>) {
        let promised = self.leaving.values().map(|leaving| frees(&leaving.sequence)).sum();
        let budget = self.config.max_num_batched_tokens;
        // Most running sequences get a row: with this capacity the lists are not reallocated.
        let capacity = self.running.len() + 8;
        let (rows, planned) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        let prompt_budget = prompt_tokens.filter(|_| self.streams_run()).unwrap_or(budget);
        let mut draft = Draft { rows, planned, budget, prompt_budget, promised };
        self.yield_to_live(&mut draft);
        self.choose_drafts();
        self.plan_decodes(&mut draft, LIVE);
        let decodes = draft.rows.len();
        self.plan_prefills(&mut draft, LIVE);
        self.plan_starts(&mut draft, false);
        let live_prompts = draft.rows.len() > decodes;
        self.plan_decodes(&mut draft, OF_BATCHES);
        // A first token of a live request does not wait for a batch's prompt.
        if !live_prompts {
            draft.prompt_budget = draft.prompt_budget.min(self.batch_prompt_tokens());
            self.plan_prefills(&mut draft, OF_BATCHES);
            if self.waiting.is_empty() {
                self.plan_starts(&mut draft, true);
            }
        }
        (draft.rows, draft.planned)
    }

    fn plan_decodes(&mut self, draft: &mut Draft, kind: Kind) {
        let Some(first) = self.plan_decodes_without_preemption(draft, kind) else { return };
        let decoding = |sequence: &&Sequence| sequence.pending() == 1;
        let rest = self.running.range((Bound::Included(first), kind.1)).map(|(_, sequence)| sequence);
        let orders: Vec<Order> = rest.filter(decoding).map(|s| s.order).collect();
        for order in orders {
            if draft.budget == 0 {
                return;
            }
            if self.make_room(order, draft) {
                let sequence = self.running.get_mut(&order).expect("room was made for it");
                draft.add_decode(sequence, 0);
            }
        }
    }

    /// Whether a live sequence generates: its next token waits for every step.
    fn streams_run(&self) -> bool {
        self.running_live().any(|sequence| sequence.pending() <= 1)
    }

    /// Plans decode rows in order, up to the first that needs a block while none is free. Returns that
    /// sequence; `None`, the usual case, if all decode rows are planned.
    fn plan_decodes_without_preemption(&mut self, draft: &mut Draft, kind: Kind) -> Option<Order> {
        for (order, sequence) in self.running.range_mut(kind) {
            if sequence.pending() != 1 {
                continue;
            }
            if draft.budget == 0 {
                return None;
            }
            // `make_room` decides whether a batch may grow.
            if sequence.needs_block()
                && (order.batch || !grow(sequence, &mut self.pool, &mut self.reserved, 0))
            {
                return Some(*order);
            }
            let drafts = fitting_drafts(sequence, draft.budget, &mut self.pool, &mut self.reserved);
            draft.add_decode(sequence, drafts);
        }
        None
    }

    /// Gets the block that a decode row writes to, and preempts the last sequence in order if no block is
    /// free. `false` if the row cannot be in this step: its own sequence was preempted, or it waits for a
    /// block that a leaving sequence frees when its row in flight is committed.
    fn make_room(&mut self, order: Order, draft: &mut Draft) -> bool {
        loop {
            let kept = self.kept_from(order);
            let Some(sequence) = self.running.get_mut(&order) else { return false };
            if !sequence.needs_block() {
                return true;
            }
            if grow(sequence, &mut self.pool, &mut self.reserved, kept) {
                return true;
            }
            if order.batch && !self.waiting.is_empty() {
                return false;
            }
            if draft.promised > 0 {
                draft.promised -= 1;
                return false;
            }
            // `last` is preemptible, or of a batch while `order` is live: non-preemptible sequences sort
            // first in their kind and never need a block.
            let (&last, _) = self.running.last_key_value().expect("the sequence of `order` runs");
            draft.promised += self.preempt(last);
        }
    }

    /// Preempts a sequence. Returns the number of blocks that become free when its row in flight is
    /// committed; 0 if it has none and they are free now.
    pub(super) fn preempt(&mut self, order: Order) -> usize {
        let mut sequence = self.running.remove(&order).expect("it was just found there");
        debug_assert!(order.preemptible || order.batch, "request {} was preempted too often", sequence.id.0);
        sequence.preemptions += 1;
        self.totals.preemptions += 1;
        let later = if sequence.in_flight > 0 { frees(&sequence) } else { 0 };
        self.release(sequence, LeaveReason::Preempted);
        later
    }

    /// Plans chunks of begun prompts. They hold their blocks already, so only the token budget limits them.
    fn plan_prefills(&mut self, draft: &mut Draft, kind: Kind) {
        let sequences = self.running.range_mut(kind).map(|(_, sequence)| sequence);
        for sequence in sequences.filter(|sequence| sequence.pending() > 1) {
            if draft.prompt_tokens_left() == 0 {
                return;
            }
            draft.add_prompt(sequence);
        }
    }

    /// Starts waiting sequences strictly in order. A sequence that does not fit holds back those behind it:
    /// otherwise a long one would never start.
    fn plan_starts(&mut self, draft: &mut Draft, batch: bool) {
        // Requests of batches do not age.
        let ageing = if batch { 0 } else { self.config.policy.ageing_steps };
        let step = self.totals.steps;
        while draft.prompt_tokens_left() > 0
            && let Some((order, class)) = self.queue(batch).first(step, ageing)
            && let Some(slot) = self.take_slot(batch, draft)
        {
            let order = Order { class, ..order };
            let Some(order) = self.start(order, slot, draft) else { return };
            let sequence = self.running.get_mut(&order).expect("it has just started");
            draft.add_prompt(sequence);
        }
    }

    /// Moves a sequence from waiting to running, if blocks are available for its known tokens and for its
    /// reservation: a share of its possible growth, or all of its growth if it may not be preempted again.
    fn start(&mut self, order: Order, slot: Slot, draft: &mut Draft) -> Option<Order> {
        let cached = self.cached_prefix(order);
        if self.prefix_is_being_computed(order, cached.len()) {
            return None;
        }
        let kept_free = self.kept_free(order);
        let sequence = self.queue(order.batch).get_mut(&order).expect("it was just found there");
        let (len, growth, preemptions) = (sequence.len(), sequence.growth(), sequence.preemptions);
        let missing = len.div_ceil(BLOCK_TOKENS) - cached.len();
        let preemptible = preemptions < self.config.policy.max_preemptions;
        let kept = if preemptible { self.config.policy.share_of(growth) } else { growth };
        if !self.has_blocks(missing + kept + kept_free, order, draft) {
            return None;
        }
        if self.config.prefix_caching {
            self.totals.prefix_queries += len as u64;
            self.totals.prefix_hits += (cached.len() * BLOCK_TOKENS) as u64;
        }
        let computed = cached.len() * BLOCK_TOKENS;
        let mut table = cached;
        for _ in 0..missing {
            table.push(self.pool.take().expect("they have just been counted"));
        }
        let mut sequence = self.dequeue(&order).expect("it was just found there");
        if !sequence.has_started() {
            self.queue(order.batch).charge_prompt(sequence.tenant(), sequence.prompt_len());
        }
        let order = Order { preemptible, ..order };
        self.orders.insert(sequence.id, order);
        self.reserved += kept;
        sequence.reserved = kept;
        sequence.start(order, slot, table, computed);
        self.running.insert(order, sequence);
        Some(order)
    }

    /// Checks whether a running sequence is computing the first block that a waiting sequence did not find in
    /// the prefix cache. If so, the waiting one starts a step later and shares the block. So the choices of
    /// one prompt, and conversations with one system prompt that arrive together, compute their common prefix
    /// once.
    fn prefix_is_being_computed(&mut self, order: Order, block: usize) -> bool {
        if !self.config.prefix_caching {
            return false;
        }
        let sequence = self.queue(order.batch).get_mut(&order).expect("it was just found there");
        let Some(key) = sequence.lookup_keys().get(block).copied() else { return false };
        // A live sequence does not wait for one of a batch.
        let until = if order.batch { Bound::Unbounded } else { LIVE.1 };
        let mut running = self.running.range((Bound::Unbounded, until));
        running.any(|(_, sequence)| sequence.is_computing(block, key))
    }

    /// The cached blocks that a waiting sequence's tokens begin with.
    fn cached_prefix(&mut self, order: Order) -> BlockTable {
        let mut table = BlockTable::default();
        if !self.config.prefix_caching {
            return table;
        }
        let batch = order.batch;
        let queue = if batch { &mut self.waiting_batch } else { &mut self.waiting };
        let sequence = queue.get_mut(&order).expect("it was just found there");
        for key in sequence.lookup_keys() {
            match self.pool.find(key) {
                Some(block) => table.push(block),
                None => break,
            }
        }
        table
    }
}

/// Gives a sequence one more block, from its own reservation, or from the unreserved ones if more than `kept`
/// of them are available.
pub(super) fn grow(sequence: &mut Sequence, pool: &mut Pool, reserved: &mut usize, kept: usize) -> bool {
    let own = sequence.reserved > 0;
    if !own && pool.available() <= *reserved + kept {
        return false;
    }
    sequence.table.push(pool.take().expect("what is reserved is available"));
    sequence.reserved -= usize::from(own);
    *reserved -= usize::from(own);
    true
}

/// Blocks that no other sequence holds.
pub(super) fn frees(sequence: &Sequence) -> usize {
    sequence.table.blocks().iter().map(Block::holders).filter(|&holders| holders == 1).count()
}
