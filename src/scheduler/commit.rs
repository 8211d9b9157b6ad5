//! Commits the rows of a step: their outputs go to the sequences, and sequences that have left release what
//! they hold.

use super::blocks::Pool;
use super::sequence::{PlannedRow, Sequence};
use super::step_plan::RowOutput;
use super::{LeaveReason, LeavingSequence, RequestId, Scheduler, SchedulerConfig};
use crate::request::{Finish, Update};

impl Scheduler {
    /// Applies one row's output to its sequence. Adds the update for the client, if the output has one.
    pub(super) fn commit_row(
        &mut self,
        row: &PlannedRow,
        output: RowOutput,
        updates: &mut Vec<(RequestId, Update)>,
    ) {
        let Some(sequence) = self.running.get_mut(&row.order) else {
            return self.commit_leaving_row(row, output, updates);
        };
        let first = updates.len();
        apply_output(sequence, row, output, &self.pool, &self.config, updates);
        let Some((id, update)) = updates.get(first) else { return };
        let queue = if row.order.batch { &mut self.waiting_batch } else { &mut self.waiting };
        queue.charge_output(sequence.tenant(), update.tokens.len());
        let prompt = sequence.prompt_len();
        if update.finish.is_some() {
            let sequence = self.running.remove(&row.order).expect("it was there a moment ago");
            self.draft_model.answered(sequence.generated());
            self.release(sequence, LeaveReason::Ended);
        }
        self.count_update(*id, prompt, update);
    }

    /// Applies the output of a row whose sequence left while the row was in flight.
    fn commit_leaving_row(
        &mut self,
        row: &PlannedRow,
        output: RowOutput,
        updates: &mut Vec<(RequestId, Update)>,
    ) {
        let leaving =
            self.leaving.remove(&row.order).expect("a sequence with a row in flight runs or leaves");
        let LeavingSequence { mut sequence, mut reason } = leaving;
        let first = updates.len();
        match reason {
            LeaveReason::Preempted => {
                apply_output(&mut sequence, row, output, &self.pool, &self.config, updates);
            }
            LeaveReason::Ended => sequence.discard(),
        }
        let prompt = sequence.prompt_len();
        if let Some((id, update)) = updates.get(first) {
            self.queue(row.order.batch).charge_output(sequence.tenant(), update.tokens.len());
            self.count_update(*id, prompt, update);
            if update.finish.is_some() {
                reason = LeaveReason::Ended;
            }
        }
        self.release(sequence, reason);
    }

    /// Releases the blocks and the slot of a sequence that no longer runs, now or when its last row in flight
    /// is committed.
    pub(super) fn release(&mut self, mut sequence: Sequence, reason: LeaveReason) {
        self.reserved -= std::mem::take(&mut sequence.reserved);
        if sequence.in_flight > 0 {
            self.leaving.insert(sequence.order, LeavingSequence { sequence, reason });
        } else if reason == LeaveReason::Preempted {
            sequence.give_up();
            self.enqueue(sequence);
        }
    }

    fn count_update(&mut self, id: RequestId, prompt: usize, update: &Update) {
        self.totals.generated_tokens += update.tokens.len() as u64;
        if update.cached_tokens.is_some() {
            self.totals.prompt_tokens += prompt as u64;
        }
        if update.finish.is_some() {
            self.orders.remove(&id);
        }
    }
}

/// Applies a row's output to its sequence and caches the blocks that it completes. If the output is faulty,
/// all blocks of the sequence leave the prefix cache: a prefill chunk that samples no token does not show
/// whether its KV values are finite. Adds the update to `updates`, so that it is not copied again.
fn apply_output(
    sequence: &mut Sequence,
    row: &PlannedRow,
    output: RowOutput,
    pool: &Pool,
    config: &SchedulerConfig,
    updates: &mut Vec<(RequestId, Update)>,
) {
    let (computed, first) = (sequence.computed(), updates.len());
    sequence.apply_output(row, output, config, updates);
    if let Some((_, Update { finish: Some(Finish::Error(_)), .. })) = updates.get(first) {
        sequence.table.blocks().iter().for_each(|block| pool.forget(block));
    } else if config.prefix_caching {
        sequence.publish(computed, pool);
    }
}
