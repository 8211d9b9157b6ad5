//! One step's rows: decodes, then prompts begun, then new ones, each in order; and who gives up blocks when none
//! is left.

use super::blocks::{Block, Table};
use super::plan::{BLOCK_TOKENS, Row};
use super::sequence::{Order, Pending, Sequence};
use super::slots::Slot;
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
        let mut batch = Batch { rows: Vec::new(), pending: Vec::new(), budget, promised };
        self.plan_decodes(&mut batch);
        self.plan_prefills(&mut batch);
        self.plan_starts(&mut batch);
        (batch.rows, batch.pending)
    }

    fn plan_decodes(&mut self, batch: &mut Batch) {
        let decoding = |sequence: &&Sequence| sequence.pending() == 1;
        let orders: Vec<Order> = self.running.values().filter(decoding).map(|s| s.order).collect();
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

    /// Gets the block that a decode row writes to, taking it from the last in order if there is none. `false` if
    /// the row cannot be in this step: its sequence was preempted itself, or waits for a block that another gives
    /// up once its row in flight is collected.
    fn make_room(&mut self, order: Order, batch: &mut Batch) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(&order) else { return false };
            if !sequence.needs_block() {
                return true;
            }
            if let Some(block) = self.pool.take() {
                sequence.table.push(block);
                return true;
            }
            if batch.promised > 0 {
                batch.promised -= 1;
                return false;
            }
            let (&last, _) = self.running.last_key_value().expect("the one in need runs");
            batch.promised += self.preempt(last);
        }
    }

    /// Makes a sequence give up its blocks; returns how many that will free later rather than now.
    fn preempt(&mut self, order: Order) -> usize {
        let sequence = self.running.remove(&order).expect("it was just found there");
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
            && let Some((&order, _)) = self.waiting.first_key_value()
            && let Some(slot) = self.slots.take()
        {
            if !self.start(order, slot) {
                return;
            }
            let sequence = self.running.get_mut(&order).expect("it has just started");
            batch.add(sequence);
        }
    }

    /// Moves the sequence from waiting to running if there are blocks for all its tokens.
    fn start(&mut self, order: Order, slot: Slot) -> bool {
        let cached = self.cached_prefix(order);
        if self.in_the_making(order, cached.len()) {
            return false;
        }
        let reserve = self.reserve();
        let sequence = self.waiting.get_mut(&order).expect("it was just found there");
        let missing = sequence.len().div_ceil(BLOCK_TOKENS) - cached.len();
        if self.pool.available() < missing + reserve {
            return false;
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
        sequence.start(slot, table, computed);
        self.running.insert(order, sequence);
        true
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
        self.running.values().any(|sequence| sequence.is_making(block, key))
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

/// Blocks that nobody else holds.
fn frees(sequence: &Sequence) -> usize {
    sequence.table.blocks().iter().map(Block::holders).filter(|&holders| holders == 1).count()
}
