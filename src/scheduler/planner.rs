//! Plans one step's rows: decode rows first, then chunks of begun prompts, then new sequences, each in order;
//! and preempts sequences when no block is left.
//!
//! A preempted sequence is computed again, so reservations bound preemptions. `available >= reserved` always
//! holds, and a sequence takes blocks from its own reservation or from those that no reservation covers. A
//! sequence that reached `max_preemptions` starts again only when all blocks it can need are reserved. It
//! then sorts before all preemptible sequences, never needs a block from another, and is never preempted.
//!
//! So the scheduler cannot deadlock: the first sequence in order has its blocks or takes them from later
//! ones, down to the last. When nothing runs, every block is available and none is reserved, and every
//! waiting sequence fits, since `request_check` refuses requests that do not fit the cache.

use super::blocks::{Block, BlockTable, Pool};
use super::sequence::{Order, PlannedRow, Sequence};
use super::slots::Slot;
use super::step_plan::{BLOCK_TOKENS, Row};
use super::{LeaveReason, Scheduler};

/// A new sequence starts only if one block in this many stays free, so that running sequences are not
/// preempted at once.
const FREE_SHARE: usize = 100;

/// The step that is being planned.
struct Batch {
    rows: Vec<Row>,
    planned: Vec<PlannedRow>,
    /// Tokens that may still be planned.
    budget: usize,
    /// Blocks that leaving sequences will free, less one for each decode row that waits for such a block.
    promised: usize,
}

impl Batch {
    fn add(&mut self, sequence: &mut Sequence) {
        let len = sequence.pending().min(self.budget);
        self.budget -= len;
        let (row, planned) = sequence.row(len);
        self.rows.push(row);
        self.planned.push(planned);
    }
}

impl Scheduler {
    /// Plans the rows of the next step. Empty only if nothing waits or runs, or everything that runs awaits
    /// the step in flight.
    pub(super) fn plan_rows(&mut self) -> (Vec<Row>, Vec<PlannedRow>) {
        let promised = self.leaving.values().map(|leaving| frees(&leaving.sequence)).sum();
        let budget = self.config.max_num_batched_tokens;
        // Most running sequences get a row: with this capacity the lists are not reallocated.
        let capacity = self.running.len() + 8;
        let (rows, planned) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        let mut batch = Batch { rows, planned, budget, promised };
        self.plan_decodes(&mut batch);
        self.plan_prefills(&mut batch);
        self.plan_starts(&mut batch);
        (batch.rows, batch.planned)
    }

    fn plan_decodes(&mut self, batch: &mut Batch) {
        let Some(first) = self.plan_decodes_without_preemption(batch) else { return };
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

    /// Plans decode rows in order, up to the first that needs a block while none is free. Returns that
    /// sequence; `None`, the usual case, if all decode rows are planned.
    fn plan_decodes_without_preemption(&mut self, batch: &mut Batch) -> Option<Order> {
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

    /// Gets the block that a decode row writes to, and preempts the last sequence in order if no block is
    /// free. `false` if the row cannot be in this step: its own sequence was preempted, or it waits for a
    /// block that a leaving sequence frees when its row in flight is committed.
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
            // `last` is preemptible: non-preemptible sequences sort first and never need a block.
            let (&last, _) = self.running.last_key_value().expect("the sequence of `order` runs");
            batch.promised += self.preempt(last);
        }
    }

    /// Preempts a sequence. Returns the number of blocks that become free when its row in flight is
    /// committed; 0 if it has none and they are free now.
    fn preempt(&mut self, order: Order) -> usize {
        let mut sequence = self.running.remove(&order).expect("it was just found there");
        debug_assert!(order.preemptible, "request {} was preempted too often", sequence.id.0);
        sequence.preemptions += 1;
        self.totals.preemptions += 1;
        let later = if sequence.in_flight > 0 { frees(&sequence) } else { 0 };
        self.release(sequence, LeaveReason::Preempted);
        later
    }

    /// Plans chunks of begun prompts. They hold their blocks already, so only the token budget limits them.
    fn plan_prefills(&mut self, batch: &mut Batch) {
        for sequence in self.running.values_mut().filter(|sequence| sequence.pending() > 1) {
            if batch.budget == 0 {
                return;
            }
            batch.add(sequence);
        }
    }

    /// Starts waiting sequences strictly in order. A sequence that does not fit holds back those behind it:
    /// otherwise a long one would never start.
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

    /// Moves a sequence from waiting to running, if blocks are available for its known tokens and for its
    /// reservation: a share of its possible growth, or all of its growth if it may not be preempted again.
    fn start(&mut self, order: Order, class: i64, slot: Slot) -> Option<Order> {
        let cached = self.cached_prefix(order);
        if self.prefix_is_being_computed(order, cached.len()) {
            return None;
        }
        let kept_free = self.kept_free();
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let missing = sequence.len().div_ceil(BLOCK_TOKENS) - cached.len();
        let preemptible = sequence.preemptions < self.config.policy.max_preemptions;
        let kept =
            if preemptible { self.config.policy.share_of(sequence.growth()) } else { sequence.growth() };
        if self.pool.available() < self.reserved + missing + kept + kept_free {
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

    /// Blocks that must stay free when a sequence starts; 0 if nothing runs.
    fn kept_free(&self) -> usize {
        if self.running.is_empty() { 0 } else { self.pool.total() / FREE_SHARE }
    }

    /// Checks whether a running sequence is computing the first block that a waiting sequence did not find in
    /// the prefix cache. If so, the waiting one starts a step later and shares the block. So the choices of
    /// one prompt, and conversations with one system prompt that arrive together, compute their common prefix
    /// once.
    fn prefix_is_being_computed(&mut self, order: Order, block: usize) -> bool {
        if !self.config.prefix_caching {
            return false;
        }
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let Some(key) = sequence.lookup_keys().get(block).copied() else { return false };
        self.running.values().any(|sequence| sequence.is_computing(block, key))
    }

    /// The cached blocks that a waiting sequence's tokens begin with.
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

/// Gives a sequence one more block, from its own reservation or from the unreserved ones. `false` if none is
/// free.
fn grow(sequence: &mut Sequence, pool: &mut Pool, reserved: &mut usize) -> bool {
    let own = sequence.reserved > 0;
    if !own && pool.available() <= *reserved {
        return false;
    }
    sequence.table.push(pool.take().expect("what is reserved is available"));
    sequence.reserved -= usize::from(own);
    *reserved -= usize::from(own);
    true
}

/// Blocks that no other sequence holds.
fn frees(sequence: &Sequence) -> usize {
    sequence.table.blocks().iter().map(Block::holders).filter(|&holders| holders == 1).count()
}
