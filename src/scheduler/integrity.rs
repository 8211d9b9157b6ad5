//! Self-check: recounts all state that the scheduler stores twice. The engine runs it whenever it is idle;
//! tests run it after every step.

use std::collections::BTreeSet;

use super::error::{SchedulerError, broken};
use super::sequence::{Order, Sequence};
use super::step_plan::BLOCK_TOKENS;
use super::{LeaveReason, Scheduler};

impl Scheduler {
    /// Recounts blocks and their handles, slots, queue sums, reservations and rows in flight.
    ///
    /// # Errors
    /// The first two records that do not agree.
    pub fn check_integrity(&self) -> Result<(), SchedulerError> {
        self.check_blocks()?;
        self.check_slots()?;
        self.check_queue_sums()?;
        self.waiting.check()?;
        self.waiting_batch.check()?;
        self.check_reservations()?;
        self.check_rows_in_flight()?;
        if self.is_idle() && self.pool.used() + self.orders.len() + self.leaving.len() != 0 {
            return broken(format!(
                "the scheduler is idle with {} blocks used, {} requests open and {} sequences leaving",
                self.pool.used(),
                self.orders.len(),
                self.leaving.len()
            ));
        }
        Ok(())
    }

    /// All sequences that hold a slot and blocks.
    fn holders(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().chain(self.leaving.values().map(|leaving| &leaving.sequence))
    }

    fn check_blocks(&self) -> Result<(), SchedulerError> {
        let mut held = vec![0; self.pool.total()];
        for sequence in self.holders() {
            if sequence.table.len() * BLOCK_TOKENS < sequence.planned() {
                return broken(format!(
                    "request {} has more planned positions than its blocks hold",
                    sequence.id.0
                ));
            }
            for block in sequence.table.blocks() {
                held[block.id() as usize] += 1;
            }
        }
        self.pool.check(&held)
    }

    fn check_reservations(&self) -> Result<(), SchedulerError> {
        let sum: usize = self.running.values().map(|sequence| sequence.reserved).sum();
        let (reserved, available) = (self.reserved, self.pool.available());
        if sum != reserved || reserved > available {
            return broken(format!(
                "sequences reserve {sum} blocks, the stored total is {reserved}, {available} are available"
            ));
        }
        let misplaced = |(order, sequence): &(&Order, &Sequence)| {
            **order != sequence.order || self.orders.get(&sequence.id) != Some(*order)
        };
        match self.running.iter().find(misplaced) {
            Some((_, sequence)) => {
                broken(format!("request {} is stored under an order that is not its own", sequence.id.0))
            }
            None => Ok(()),
        }
    }

    fn check_slots(&self) -> Result<(), SchedulerError> {
        let held: Vec<u32> = self.holders().filter_map(Sequence::slot).collect();
        let distinct: BTreeSet<u32> = held.iter().copied().collect();
        let (free, all) = (self.slots.free(), self.config.max_num_seqs);
        if held.len() != self.holders().count() || distinct.len() != held.len() || free + held.len() != all {
            return broken(format!(
                "{} slots are held, {} of them distinct, {free} of {all} are free",
                held.len(),
                distinct.len()
            ));
        }
        Ok(())
    }

    fn check_queue_sums(&self) -> Result<(), SchedulerError> {
        let tokens: usize = self.waiting.values().map(Sequence::prompt_len).sum();
        if tokens != self.waiting_tokens {
            return broken(format!(
                "waiting prompts have {tokens} tokens, the stored total is {}",
                self.waiting_tokens
            ));
        }
        let waiting = || self.waiting.values().chain(self.waiting_batch.values());
        if let Some(sequence) = waiting().find(|s| !s.table.is_empty() || s.slot().is_some()) {
            return broken(format!("request {} waits but holds blocks or a slot", sequence.id.0));
        }
        let requeued =
            self.leaving.values().filter(|leaving| leaving.reason == LeaveReason::Preempted).count();
        let misplaced = self.waiting.values().any(|s| s.order.batch)
            || self.waiting_batch.values().any(|s| !s.order.batch);
        if misplaced {
            return broken("a sequence waits in the queue of the other kind".to_owned());
        }
        let owed = waiting().count() + self.running.len() + requeued;
        if owed != self.orders.len() {
            return broken(format!("{owed} requests wait or run, {} are open", self.orders.len()));
        }
        Ok(())
    }

    fn check_rows_in_flight(&self) -> Result<(), SchedulerError> {
        let rows = self.rows_in_flight;
        let held: usize = self.holders().map(|sequence| sequence.in_flight).sum();
        if rows != held {
            return broken(format!(
                "{rows} rows are in flight, the counts of all sequences add up to {held}"
            ));
        }
        match self.leaving.values().find(|leaving| leaving.sequence.in_flight == 0) {
            Some(leaving) => {
                broken(format!("request {} leaves with no row in flight", leaving.sequence.id.0))
            }
            None => Ok(()),
        }
    }
}
