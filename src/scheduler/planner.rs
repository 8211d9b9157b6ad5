//! One step's rows: decodes, then prompts begun, then new ones, each in order; and who gives up blocks when none
//! is left.
//!
//! A preempted sequence computes all again, so preemptions are bounded by reservations, blocks that are available and
//! promised: `available >= reserved` always, and only a sequence's own reservation, or what exceeds all of them, is ever
//! taken. One that has been preempted as often as may be starts again only where all it can need is reserved; it is then
//! before all others, never asks for more, and is never the one to give up. So there is no deadlock either: the first in
//! order has what it needs or takes it from those behind it, down to the last; and if nothing runs, everything is
//! available and nothing reserved, and whatever waits fits, or it would not have been taken.

use super::blocks::{Block, Pool, Table};
use super::sequence::{Order, Pending, Sequence};
use super::slots::Slot;
use super::step_plan::{BLOCK_TOKENS, Row};
use super::{Fate, Scheduler};

/// New sequences leave one block in this many free, so that those running do not at once take theirs back.
const RESERVE: usize = 100;

/// A step in the making.
struct Batch {
    rows: Vec<Row>,
    pending: Vec<Pending>,
    /// Tokens that may still be planned.
    budget: usize,
    /// Blocks that leaving sequences will free and no decode row of this step waits for.
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
    /// The rows of the next step, and what to remember of each. Empty only if nothing waits or runs, or all that
    /// runs awaits the step in flight.
    pub(super) fn plan_rows(&mut self) -> (Vec<Row>, Vec<Pending>) {
        let promised = self.leaving.values().map(|leaver| frees(&leaver.sequence)).sum();
        let budget = self.config.max_num_batched_tokens;
        // Most of what runs has a row; a list that grows is copied again and again.
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

    /// Those up to the first for which somebody would have to give up a block, which it returns; mostly that is all.
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

    /// Gets the block that a decode row writes to, taking it from the last in order if there is none. `false` if
    /// the row cannot be in this step: its sequence was preempted itself, or waits for a block that another gives
    /// up once its row in flight is collected.
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
            // It is preemptible, since the one in need is: whoever is not has reserved all it can need.
            let (&last, _) = self.running.last_key_value().expect("the one in need runs");
            batch.promised += self.preempt(last);
        }
    }

    /// Makes a sequence give up its blocks; returns how many that will free later rather than now.
    fn preempt(&mut self, order: Order) -> usize {
        let mut sequence = self.running.remove(&order).expect("it was just found there");
        debug_assert!(order.preemptible, "request {} was preempted too often", sequence.id.0);
        sequence.preemptions += 1;
        self.totals.preemptions += 1;
        let later = if sequence.in_flight > 0 { frees(&sequence) } else { 0 };
        self.depart(sequence, Fate::Requeue);
        later
    }

    /// Prompts begun hold their blocks already, so only the budget limits them.
    fn plan_prefills(&mut self, batch: &mut Batch) {
        for sequence in self.running.values_mut().filter(|sequence| sequence.pending() > 1) {
            if batch.budget == 0 {
                return;
            }
            batch.add(sequence);
        }
    }

    /// Starts sequences strictly in order: one that does not fit holds back those behind it, or it would never fit.
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

    /// Moves the sequence from waiting to running if there are blocks for all its tokens, and for what it is to have
    /// reserved: of what it may grow by a share, or all of it once it may not be preempted again.
    fn start(&mut self, order: Order, class: i64, slot: Slot) -> Option<Order> {
        let cached = self.cached_prefix(order);
        if self.in_the_making(order, cached.len()) {
            return None;
        }
        let reserve = self.reserve();
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let missing = sequence.len().div_ceil(BLOCK_TOKENS) - cached.len();
        let preemptible = sequence.preemptions < self.config.policy.max_preemptions;
        let kept =
            if preemptible { self.config.policy.share_of(sequence.growth()) } else { sequence.growth() };
        if self.pool.available() < self.reserved + missing + kept + reserve {
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

    /// Blocks that a new sequence leaves alone. None where nothing runs.
    pub(super) fn reserve(&self) -> usize {
        if self.running.is_empty() { 0 } else { self.pool.total() / RESERVE }
    }

    /// Whether a running sequence is about to compute the first block that a waiting one did not find: a step later it
    /// is there to be shared. So the choices of one prompt, or conversations under one system prompt, that come
    /// together compute what they have in common once.
    fn in_the_making(&mut self, order: Order, block: usize) -> bool {
        if !self.config.prefix_caching {
            return false;
        }
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let Some(key) = sequence.lookup_keys().get(block).copied() else { return false };
        self.running.values().any(|sequence| sequence.is_computing(block, key))
    }

    /// Shares of the cached blocks that a waiting sequence's tokens begin with.
    fn cached_prefix(&mut self, order: Order) -> Table {
        let mut table = Table::default();
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

/// Gives a sequence one more block, of what is reserved for it or for nobody. `false` if there is none.
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

/// Blocks that nobody else holds.
fn frees(sequence: &Sequence) -> usize {
    sequence.table.blocks().iter().map(Block::holders).filter(|&holders| holders == 1).count()
}
