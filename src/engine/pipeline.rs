//! The scheduler with its steps in flight, and a record of every call.
//!
//! The order of a turn is the engine's: take what clients ask, start steps until as many are in flight as may be, commit
//! the earliest. Whoever else drives a scheduler, on a clock of its own, drives this one.

use super::forecast::Load;
use super::recorder::{Event, Recorder};
use crate::request::{Reject, Request, Update};
use crate::scheduler::step_plan::{BLOCK_TOKENS, StepOutput, StepPlan};
use crate::scheduler::{Mismatch, RequestId, Scheduler, SchedulerConfig};

/// A scheduler, and how many of its steps are in flight.
pub struct Pipeline {
    scheduler: Scheduler,
    max_in_flight: usize,
    in_flight: usize,
    recorder: Option<Recorder>,
}

impl Pipeline {
    /// With nothing to do. Every call that changes the scheduler is told to the recorder.
    ///
    /// # Panics
    /// If `max_in_flight` is neither 1 nor 2, or a limit of `config` is 0.
    pub fn new(config: SchedulerConfig, max_in_flight: usize, recorder: Option<Recorder>) -> Self {
        assert!((1..=2).contains(&max_in_flight), "one or two steps in flight, got {max_in_flight}");
        Self { scheduler: Scheduler::new(config), max_in_flight, in_flight: 0, recorder }
    }

    /// Takes a group into the queue, all or none.
    pub fn submit(&mut self, group: Vec<(RequestId, Request)>) -> Result<(), Reject> {
        // A refusal changes nothing, and so is not recorded.
        let copy = self.recorder.is_some().then(|| group.clone());
        self.scheduler.submit(group)?;
        if let Some(group) = copy {
            self.record(|| Event::Submit(group));
        }
        Ok(())
    }

    /// Forgets a request.
    pub fn abort(&mut self, id: RequestId) {
        self.scheduler.abort(id);
        self.record(|| Event::Abort(id));
    }

    /// The next step to enqueue, if another may be in flight and there is something to compute.
    pub fn start(&mut self) -> Option<StepPlan> {
        if self.in_flight == self.max_in_flight {
            return None;
        }
        let Some(plan) = self.scheduler.plan() else {
            self.record(|| Event::NoPlan);
            return None;
        };
        self.in_flight += 1;
        self.record(|| Event::Plan { id: plan.id, fingerprint: plan.fingerprint() });
        Some(plan)
    }

    /// Takes in the output of the earliest step in flight.
    pub fn commit(&mut self, output: &StepOutput) -> Result<Vec<(RequestId, Update)>, Mismatch> {
        let updates = self.scheduler.commit(output)?;
        self.in_flight -= 1;
        self.record(|| Event::commit(output));
        Ok(updates)
    }

    fn record(&mut self, event: impl FnOnce() -> Event) {
        if let Some(recorder) = &mut self.recorder {
            recorder.tell(event());
        }
    }

    /// Steps started and not committed.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What a request that came now would find.
    pub fn load(&self, request: &Request) -> Load {
        let (counts, config) = (self.scheduler.counts(), self.scheduler.config());
        let ahead = self.scheduler.ahead(&request.tenant, request.priority);
        // Sequences like those that wait find room in the cache for so many.
        let each = (ahead.tokens + request.prompt.len()).div_ceil(ahead.requests + 1).div_ceil(BLOCK_TOKENS);
        let available = counts.blocks_total - counts.blocks_used - counts.blocks_reserved;
        let places = (config.max_num_seqs.saturating_sub(counts.running)).min(available / each.max(1));
        Load {
            ahead: ahead.requests,
            tokens: ahead.tokens + self.scheduler.unfed_tokens(),
            prompt: request.prompt.len(),
            running: counts.running,
            places,
            step_tokens: config.max_num_batched_tokens,
            in_flight: self.in_flight,
        }
    }

    /// What any request that came now would find at least, whatever its length, tenant and priority: nobody goes before it,
    /// and the earliest step in flight ends this moment.
    pub fn least_load(&self) -> Load {
        let (counts, config) = (self.scheduler.counts(), self.scheduler.config());
        let available = counts.blocks_total - counts.blocks_used - counts.blocks_reserved;
        Load {
            running: counts.running,
            places: config.max_num_seqs.saturating_sub(counts.running).min(available),
            step_tokens: config.max_num_batched_tokens,
            in_flight: self.in_flight.saturating_sub(1),
            ..Load::default()
        }
    }

    /// How things stand.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }
}
