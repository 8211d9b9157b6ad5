//! Plans the rows of one step: first decodes, then prompts already started, then new sequences, each in
//! order. Also decides which sequence is preempted when blocks run out.
//!
//! A preempted sequence recomputes everything, so reservations bound preemptions. A reservation is a number
//! of available blocks promised to one running sequence. `available >= reserved` always holds: a sequence
//! takes blocks only from its own reservation, or from those that no sequence has reserved. A sequence that
//! has been preempted `max_preemptions` times starts again only when all blocks it can ever need are
//! reserved. From then on it sorts before all preemptible sequences, never needs an unreserved block, and is
//! never preempted.
//!
//! There is no deadlock. The first sequence in order has the blocks it needs or takes them from the last one,
//! by preemption. If nothing runs, all blocks are available and none reserved, and every waiting request
//! fits, because longer ones were rejected at submission.

use super::blocks::{Block, BlockPool, BlockTable};
use super::sequence::{Order, Pending, Sequence};
use super::slots::Slot;
use super::step_plan::{BLOCK_TOKENS, Row};
use super::{Fate, Scheduler};

/// A new sequence must leave this fraction of all blocks free (one in `WATERMARK_DIVISOR`), so that running
/// sequences do not preempt it at once to grow. vLLM calls this the watermark.
const WATERMARK_DIVISOR: usize = 100;

/// The step being planned.
struct Batch {
    rows: Vec<Row>,
    pending: Vec<Pending>,
    /// Tokens that this step may still feed.
    budget: usize,
    /// Blocks that leaving sequences will free and that no decode row of this step has been counted against.
    promised: usize,
}

impl Batch {
    fn add(&mut self, sequence: &mut Sequence) {
        let len = sequence.pending().min(self.budget);
        self.budget -= len;
        let (row, pending) = sequence.row(len);
        self.rows.push(row);
        self.pending.push(pending);
    }
}

impl Scheduler {
    /// Plans the rows of the next step, with what to remember of each. Empty only if no request waits or
    /// runs, or if every running sequence awaits the step in flight.
    pub(super) fn plan_rows(&mut self) -> (Vec<Row>, Vec<Pending>) {
        let promised = self.leaving.values().map(|leaver| frees(&leaver.sequence)).sum();
        let budget = self.config.max_num_batched_tokens;
        // Most running sequences get a row; reserving the capacity avoids copies while the lists grow.
        let expected = self.running.len() + 8;
        let (rows, pending) = (Vec::with_capacity(expected), Vec::with_capacity(expected));
        let mut batch = Batch { rows, pending, budget, promised };
        self.plan_decodes(&mut batch);
        self.plan_prefills(&mut batch);
        self.plan_starts(&mut batch);
        (batch.rows, batch.pending)
    }

    fn plan_decodes(&mut self, batch: &mut Batch) {
        let Some(first) = self.plan_easy_decodes(batch) else { return };
        let decoding = |sequence: &&Sequence| sequence.pending() == 1;
        let rest = self.running.range(first..).map(|(_, sequence)| sequence);
        let orders: Vec<Order> = rest.filter(decoding).map(|s| s.order).collect();
        for order in orders {
            if batch.budget == 0 {
                return;
            }
            if self.make_room(order, batch) {
                let sequence = self.running.get_mut(&order).expect("room was made for it");
                batch.add(sequence);
            }
        }
    }

    /// Plans decode rows in order until one needs a block that only a preemption could free, and returns that
    /// sequence's order. In most steps all rows are planned here.
    fn plan_easy_decodes(&mut self, batch: &mut Batch) -> Option<Order> {
        for (order, sequence) in &mut self.running {
            if sequence.pending() != 1 {
                continue;
            }
            if batch.budget == 0 {
                return None;
            }
            if sequence.needs_block() && !grow(sequence, &mut self.pool, &mut self.reserved) {
                return Some(*order);
            }
            batch.add(sequence);
        }
        None
    }

    /// Gets the block that a decode row writes to, preempting the last sequence in order if there is none.
    /// Returns `false` if the row cannot be in this step: its sequence was itself preempted, or it waits for
    /// a block that is freed when a row in flight is committed.
    fn make_room(&mut self, order: Order, batch: &mut Batch) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(&order) else { return false };
            if !sequence.needs_block() {
                return true;
            }
            if grow(sequence, &mut self.pool, &mut self.reserved) {
                return true;
            }
            if batch.promised > 0 {
                batch.promised -= 1;
                return false;
            }
            // `last` is preemptible: non-preemptible sequences sort first and never need an unreserved block.
            let (&last, _) = self.running.last_key_value().expect("the one in need runs");
            batch.promised += self.preempt(last);
        }
    }

    /// Preempts a sequence. Returns the number of blocks that this will free later instead of now, because
    /// the sequence has a row in flight.
    fn preempt(&mut self, order: Order) -> usize {
        let mut sequence = self.running.remove(&order).expect("it was just found there");
        debug_assert!(order.preemptible, "request {} was preempted too often", sequence.id.0);
        sequence.preemptions += 1;
        self.totals.preemptions += 1;
        let later = if sequence.in_flight > 0 { frees(&sequence) } else { 0 };
        self.depart(sequence, Fate::Requeue);
        later
    }

    /// Plans the next chunk of each prompt already started. Their blocks are held, so only the token budget
    /// limits them.
    fn plan_prefills(&mut self, batch: &mut Batch) {
        for sequence in self.running.values_mut().filter(|sequence| sequence.pending() > 1) {
            if batch.budget == 0 {
                return;
            }
            batch.add(sequence);
        }
    }

    /// Starts waiting sequences strictly in order. A sequence that does not fit blocks those behind it;
    /// otherwise a long one might never start.
    fn plan_starts(&mut self, batch: &mut Batch) {
        while batch.budget > 0
            && let Some((order, class)) =
                self.waiting.first(self.totals.steps, self.config.policy.ageing_steps)
            && let Some(slot) = self.slots.take()
        {
            let Some(order) = self.start(order, class, slot) else { return };
            let sequence = self.running.get_mut(&order).expect("it has just started");
            batch.add(sequence);
        }
    }

    /// Moves a sequence from waiting to running if blocks are available for all its tokens, its reservation
    /// and the watermark. The reservation is the share `kv_reserve` of the blocks it may still need, or all
    /// of them once it must not be preempted again.
    fn start(&mut self, order: Order, class: i64, slot: Slot) -> Option<Order> {
        let cached = self.cached_prefix(order);
        if self.is_being_computed(order, cached.len()) {
            return None;
        }
        let watermark = self.watermark();
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let missing = sequence.len().div_ceil(BLOCK_TOKENS) - cached.len();
        let preemptible = sequence.preemptions < self.config.policy.max_preemptions;
        let kept =
            if preemptible { self.config.policy.share_of(sequence.growth()) } else { sequence.growth() };
        if self.pool.available() < self.reserved + missing + kept + watermark {
            return None;
        }
        if self.config.prefix_caching {
            self.totals.prefix_queries += sequence.len() as u64;
            self.totals.prefix_hits += (cached.len() * BLOCK_TOKENS) as u64;
        }
        let computed = cached.len() * BLOCK_TOKENS;
        let mut table = cached;
        for _ in 0..missing {
            table.push(self.pool.take().expect("they have just been counted"));
        }
        let mut sequence = self.waiting.remove(&order).expect("it was just found there");
        self.waiting_tokens -= sequence.prompt_len();
        if !sequence.has_started() {
            self.waiting.charge_prompt(sequence.tenant(), sequence.prompt_len());
        }
        let order = Order { preemptible, class, ..order };
        self.orders.insert(sequence.id, order);
        self.reserved += kept;
        sequence.reserved = kept;
        sequence.start(order, slot, table, computed);
        self.running.insert(order, sequence);
        Some(order)
    }

    /// Blocks that a new sequence must leave available; 0 if nothing runs.
    fn watermark(&self) -> usize {
        if self.running.is_empty() { 0 } else { self.pool.total() / WATERMARK_DIVISOR }
    }

    /// Whether a running sequence is computing the first block that a waiting one did not find in the prefix
    /// cache. One step later the block can be shared. Choices of one prompt, or conversations with the same
    /// system prompt, that arrive together therefore compute their common prefix once.
    fn is_being_computed(&mut self, order: Order, block: usize) -> bool {
        if !self.config.prefix_caching {
            return false;
        }
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let Some(key) = sequence.lookup_keys().get(block).copied() else { return false };
        self.running.values().any(|sequence| sequence.is_computing(block, key))
    }

    /// Handles to the cached blocks of the longest cached prefix of a waiting sequence.
    fn cached_prefix(&mut self, order: Order) -> BlockTable {
        let mut table = BlockTable::default();
        if !self.config.prefix_caching {
            return table;
        }
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        for key in sequence.lookup_keys() {
            match self.pool.find(key) {
                Some(block) => table.push(block),
                None => break,
            }
        }
        table
    }
}

/// Adds a block to a sequence, from its reservation or from the unreserved blocks. Returns `false` if there
/// is none.
fn grow(sequence: &mut Sequence, pool: &mut BlockPool, reserved: &mut usize) -> bool {
    let own = sequence.reserved > 0;
    if !own && pool.available() <= *reserved {
        return false;
    }
    sequence.table.push(pool.take().expect("what is reserved is available"));
    sequence.reserved -= usize::from(own);
    *reserved -= usize::from(own);
    true
}

/// Number of blocks that only this sequence holds, which preempting it would free.
fn frees(sequence: &Sequence) -> usize {
    sequence.table.blocks().iter().map(Block::holders).filter(|&holders| holders == 1).count()
}
