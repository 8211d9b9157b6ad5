//! What the engine does, without its thread: no clock, no channel of commands, nothing that waits but the executor.
//!
//! The order of things is here and nowhere else. Between turns commands are taken: requests come, clients leave. A turn
//! starts steps until as many are in flight as may be, tells clients what the step before yielded, and takes in the
//! earliest output. The engine's thread drives turns, and so does whoever simulates the engine in a time of its own.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Executor, OpenRequests, Pipeline};
use crate::request::{Cost, Finish, Reject, Request, Update};
use crate::scheduler::RequestId;
use crate::scheduler::step_plan::StepPlan;

/// One request of a group, and where its updates go.
pub struct Submission {
    /// Never used before.
    pub id: RequestId,
    /// What is asked.
    pub request: Request,
    /// Bounded in fact by the request's `max_tokens`.
    pub updates: mpsc::UnboundedSender<Update>,
    /// Whether each update is told as soon as it is there, whatever the interval.
    pub each: bool,
}

/// What whoever drives a turn may want to know of it, or of the time at which it is.
pub enum StepEvent<'a> {
    /// The executor is about to be given a step.
    Launching,
    /// It has been given this one, which should take so long, if it can tell.
    Launched(&'a StepPlan, Option<Duration>),
    /// It has all the steps that it can have, and clients are told this next. Whoever has read a finish finds its blocks
    /// free in what is published now.
    Telling(&'a mut [(RequestId, Update)]),
    /// The results of the earliest step are there. The device may be waiting: what can be done later is done later.
    Results,
}

/// Scheduler, accounts, and what has been committed but not said.
pub struct EngineCore {
    pipeline: Pipeline,
    ledger: OpenRequests,
    /// Committed, and not said yet.
    updates: Vec<(RequestId, Update)>,
}

impl EngineCore {
    /// With nobody served yet. A client is told `interval` updates at a time.
    pub fn new(pipeline: Pipeline, interval: usize) -> Self {
        Self { pipeline, ledger: OpenRequests::new(interval), updates: Vec::new() }
    }

    /// Takes a group into the queue, all or none. Accounts are opened for a group that is taken only.
    ///
    /// # Errors
    /// The scheduler's refusal.
    pub fn submit(&mut self, group: Vec<Submission>) -> Result<(), Reject> {
        let (accounts, requests): (Vec<_>, Vec<_>) =
            group.into_iter().map(|s| ((s.id, s.updates, s.each), (s.id, s.request))).unzip();
        self.pipeline.submit(requests)?;
        for (id, updates, each) in accounts {
            self.ledger.open(id, updates, each);
        }
        Ok(())
    }

    /// Its client has gone, and it has cost so much. A request that has been answered, or was never taken, has nothing to
    /// abort.
    pub fn abort(&mut self, id: RequestId, cost: Cost) {
        if self.ledger.abandon(id, cost) {
            self.updates.retain(|(of, _)| *of != id);
            self.pipeline.abort(id);
        }
    }

    /// Its time is up: the last that its client hears is that, and it hears it next; unless it has ended just now.
    pub fn expire(&mut self, id: RequestId) {
        let ended = self.updates.iter().any(|(of, update)| *of == id && update.finish.is_some());
        if !ended {
            self.pipeline.abort(id);
            self.updates.push((id, Update { finish: Some(Finish::Late), ..Update::default() }));
        }
    }

    /// One turn. The executor has its next step before anyone is told of the last: what the host does meanwhile costs
    /// no time of the device. Says whether a step was taken in; if not, there is nothing to do.
    ///
    /// # Errors
    /// Why the engine cannot go on. What was committed before may still have to be said ([`EngineCore::answer`]).
    pub fn turn(
        &mut self,
        executor: &mut dyn Executor,
        watch: &mut dyn FnMut(&Pipeline, StepEvent<'_>),
    ) -> Result<bool, String> {
        while let Some(plan) = self.pipeline.start() {
            watch(&self.pipeline, StepEvent::Launching);
            executor.enqueue(&plan).map_err(|e| e.message)?;
            watch(&self.pipeline, StepEvent::Launched(&plan, executor.predict(&plan)));
        }
        self.answer(watch);
        if self.pipeline.in_flight() == 0 {
            return match self.is_idle() {
                true => Ok(false),
                false => Err("the scheduler has work and plans none".to_owned()),
            };
        }
        let output = executor.collect().map_err(|e| e.message)?;
        watch(&self.pipeline, StepEvent::Results);
        self.updates = self.pipeline.commit(&output).map_err(|e| e.to_string())?;
        Ok(true)
    }

    /// Says what the last step yielded.
    pub fn answer(&mut self, watch: &mut dyn FnMut(&Pipeline, StepEvent<'_>)) {
        watch(&self.pipeline, StepEvent::Telling(&mut self.updates));
        for (id, update) in self.updates.drain(..) {
            self.ledger.post(id, update);
        }
        self.ledger.step();
    }

    /// Idle is when every block must be back, and every request answered, so that is when they are counted.
    ///
    /// # Errors
    /// What does not add up.
    pub fn rest(&mut self) -> Result<(), String> {
        self.pipeline.scheduler().check_integrity()?;
        match self.ledger.len() {
            0 => Ok(()),
            open => Err(format!("{open} requests were never answered")),
        }
    }

    /// Ends every open request with an error, and what it has cost. Nothing can be taken after that.
    pub fn fail(&mut self, reason: &str, cost: impl FnMut(RequestId) -> Cost) {
        self.ledger.fail_all(reason, cost);
    }

    /// Whether there is no request, and no step in flight. The last updates may still have to be said.
    pub fn is_idle(&self) -> bool {
        self.pipeline.scheduler().is_idle()
    }

    /// Requests whose last update has not been said.
    pub fn open(&self) -> usize {
        self.ledger.len()
    }

    /// Updates committed and not said yet.
    pub fn unsaid(&self) -> usize {
        self.updates.len()
    }

    /// The scheduler, with its steps in flight.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }
}
