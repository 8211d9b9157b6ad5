//! The engine without its thread: the scheduler, the steps in flight, the open requests and their costs.
//!
//! Between two calls of [`EngineCore::step`] the caller submits, aborts and expires requests. The engine's
//! thread does so with the system's clock, and tests with a virtual one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::admission::{QueueSnapshot, WaitEstimate, WaitLimits, prompt_load, queue_state};
use super::deadlines::Deadlines;
use super::executor::{EngineError, Executor};
use super::forecast::{Forecast, QueueState};
use super::metrics::KeyCounters;
use super::open_requests::OpenRequests;
use super::options::{Clock, EngineOptions};
use super::recorder::{Event, Recorder};
use super::shared::SharedState;
use super::stats::Stats;
use super::step_clock::{InFlightStep, LaunchTimes, Published, StepClock};
use super::usage::{DeviceTotals, OpenedUsage};
use crate::request::{Cost, Finish, Reject, Request, Update};
use crate::scheduler::step_plan::StepOutput;
use crate::scheduler::{PlannedRows, PlannedStep, RequestId, Scheduler, SchedulerConfig};

/// One request of a group, with the channel of its updates.
pub struct Submission {
    /// An id that no other request has.
    pub id: RequestId,
    /// The request.
    pub request: Request,
    /// The channel of its updates; the request's `max_tokens` bounds its length.
    pub updates: mpsc::UnboundedSender<Update>,
}

/// Options of a group of requests.
#[derive(Debug, Clone)]
pub struct SubmitOptions {
    /// When the server received the group's request. Default: now.
    pub received_at: Instant,
    /// Ends the group's requests at this time. Default: none.
    pub deadline: Option<Instant>,
    /// Sets the counters charged for this group. Default: none.
    pub counters: Option<Arc<KeyCounters>>,
    /// Sends each token at once, whatever [`EngineOptions::stream_interval`] is. Default: `false`.
    pub flush_every_token: bool,
}

impl Default for SubmitOptions {
    fn default() -> Self {
        Self { received_at: Instant::now(), deadline: None, counters: None, flush_every_token: false }
    }
}

/// The output of the earliest step, not committed yet.
pub struct CollectedStep {
    rows: PlannedRows,
    output: StepOutput,
}

/// The result of [`EngineCore::step`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Steps launched.
    pub launched: usize,
    /// Tokens and final costs that were published.
    pub published: Published,
    /// Whether a step was committed. If not, the engine is idle.
    pub committed: bool,
}

/// The engine without its thread.
pub struct EngineCore {
    scheduler: Scheduler,
    /// Launched steps, earliest first.
    in_flight: VecDeque<InFlightStep>,
    max_in_flight: usize,
    open_requests: OpenRequests,
    deadlines: Deadlines,
    /// Updates committed and not published yet.
    updates: Vec<(RequestId, Update)>,
    step_clock: StepClock,
    clock: Clock,
    recorder: Option<Recorder>,
    shared: Arc<SharedState>,
}

impl EngineCore {
    /// Makes an idle engine.
    ///
    /// # Panics
    /// If a limit of `config` is 0, or `options.in_flight` is neither 1 nor 2.
    pub fn new(config: SchedulerConfig, options: EngineOptions) -> Self {
        Self::with_shared(Arc::new(SharedState::new(config, &options)), options)
    }

    /// Makes an idle engine that publishes its stats to `shared`.
    pub(super) fn with_shared(shared: Arc<SharedState>, options: EngineOptions) -> Self {
        let step_times = options.step_times.clone();
        let mut core = Self {
            scheduler: Scheduler::new(shared.config.clone()),
            in_flight: VecDeque::with_capacity(options.in_flight),
            max_in_flight: options.in_flight,
            open_requests: OpenRequests::new(options.stream_interval),
            deadlines: Deadlines::default(),
            updates: Vec::new(),
            step_clock: StepClock::new(&options),
            clock: options.clock,
            recorder: options.recorder,
            shared,
        };
        if core.scheduler.config().max_drafts > 0 {
            core.scheduler.set_step_times(step_times.clone());
            core.record(|| Event::StepTimes(step_times));
        }
        core
    }

    /// Launches steps until the most are in flight, publishes the previous step's updates, then waits for the
    /// earliest step and commits it. The executor has its next step before a client gets an update: the
    /// host's work costs no device time.
    ///
    /// # Errors
    /// Why the engine cannot go on. Updates committed before may still have to be published
    /// ([`Self::publish`]).
    pub fn step(&mut self, executor: &mut dyn Executor) -> Result<StepReport, EngineError> {
        let mut launched = 0;
        while let Some(step) = self.schedule() {
            self.launch(step, executor)?;
            launched += 1;
        }
        let published = self.publish();
        let Some(collected) = self.collect(executor)? else {
            return Ok(StepReport { launched, published, committed: false });
        };
        self.commit(collected)?;
        Ok(StepReport { launched, published, committed: true })
    }

    /// Plans the next step. `None` if the most steps are in flight or nothing can be computed now.
    pub fn schedule(&mut self) -> Option<PlannedStep> {
        if self.in_flight.len() == self.max_in_flight {
            return None;
        }
        let prompt_tokens = self.step_clock.forecast.prompt_tokens(&prompt_load(&self.scheduler));
        let step = self.scheduler.plan(prompt_tokens);
        self.record(|| match &step {
            Some(step) => {
                Event::Plan { id: step.plan.id, fingerprint: step.plan.fingerprint(), prompt_tokens }
            }
            None => Event::NoPlan { prompt_tokens },
        });
        step
    }

    /// Gives a planned step to the executor.
    ///
    /// # Errors
    /// The executor fails.
    pub fn launch(&mut self, step: PlannedStep, executor: &mut dyn Executor) -> Result<(), EngineError> {
        let PlannedStep { plan, rows } = step;
        let began = self.clock.now();
        executor.enqueue(&plan)?;
        let predicted = executor.predict(&plan);
        let (ended, device_idle) = (self.clock.now(), self.in_flight.is_empty());
        let times = LaunchTimes { began, ended, predicted, device_idle };
        let launched = self.step_clock.launched(&plan, rows.request_ids(), &times);
        self.in_flight.push_back(InFlightStep { rows, launched });
        self.shared.heartbeat.expect_step(self.step_clock.expected_step(&self.in_flight));
        Ok(())
    }

    /// Charges the previous step and sends its updates to clients. Stats are published first: a client that
    /// has read a finish finds the request's blocks free.
    pub fn publish(&mut self) -> Published {
        let now = self.clock.now();
        let published = self.step_clock.charge_updates(&mut self.updates, &self.in_flight, now);
        published.finished.iter().for_each(|(id, _)| self.deadlines.remove(*id));
        self.step_clock.costs.hold(self.scheduler.holdings(), now);
        self.shared.publish(self.stats());
        for (id, update) in self.updates.drain(..) {
            self.open_requests.send(id, update);
        }
        self.open_requests.end_step();
        published
    }

    /// Waits for the earliest step in flight. `None` if the engine is idle.
    ///
    /// # Errors
    /// The executor fails, or requests are open and no step is in flight.
    pub fn collect(&mut self, executor: &mut dyn Executor) -> Result<Option<CollectedStep>, EngineError> {
        if self.in_flight.is_empty() {
            return match self.is_idle() {
                true => Ok(None),
                false => {
                    Err(EngineError { message: "the scheduler has requests and plans no step".to_owned() })
                }
            };
        }
        let output = executor.collect()?;
        let InFlightStep { rows, launched } = self.in_flight.pop_front().expect("a step is in flight");
        self.step_clock.collected(launched, self.clock.now());
        self.step_clock.waited_for_masks(output.mask_wait);
        Ok(Some(CollectedStep { rows, output }))
    }

    /// Commits a step's output. Its updates are published after the next launch.
    ///
    /// # Errors
    /// The output does not fit the plan.
    pub fn commit(&mut self, step: CollectedStep) -> Result<(), EngineError> {
        let CollectedStep { rows, output } = step;
        let event = self.recorder.is_some().then(|| Event::commit(&output));
        self.scheduler.prefetch();
        self.updates = self.scheduler.commit(rows, output)?;
        if let Some(event) = event {
            self.record(|| event);
        }
        Ok(())
    }

    /// Takes a group into the queue, all or none. Its time in the queue counts from `submitted_at`.
    ///
    /// # Errors
    /// The scheduler's refusal.
    pub fn submit(
        &mut self,
        group: Vec<Submission>,
        options: &SubmitOptions,
        submitted_at: Instant,
    ) -> Result<(), Reject> {
        let requests = |group: &[Submission]| group.iter().map(|s| (s.id, s.request.clone())).collect();
        let copy: Option<Vec<_>> = self.recorder.is_some().then(|| requests(&group));
        let (channels, requests): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|s| ((s.id, s.request.prompt.len(), s.request.batch, s.updates), (s.id, s.request)))
            .unzip();
        self.scheduler.submit(requests)?;
        // A refusal changes nothing, and so is not recorded.
        if let Some(group) = copy {
            self.record(|| Event::Submit(group));
        }
        for (id, prompt, batch, updates) in channels {
            let usage =
                OpenedUsage { prompt, batch, submitted: submitted_at, counters: options.counters.clone() };
            self.step_clock.costs.open(id, usage);
            self.open_requests.open(id, updates, options.flush_every_token);
            if let Some(deadline) = options.deadline {
                self.deadlines.set(id, deadline);
            }
        }
        Ok(())
    }

    /// Refuses a group that would have to wait longer than its limits. A group without limits is never
    /// refused.
    ///
    /// # Errors
    /// See [`WaitLimits::check`].
    pub(crate) fn check_wait(&self, group: &[Submission], limits: &WaitLimits) -> Result<(), Reject> {
        if !limits.any() {
            return Ok(());
        }
        let requests = group.iter().map(|submission| &submission.request);
        let forecast = &self.step_clock.forecast;
        let estimate = WaitEstimate::of_group(requests, &self.scheduler, self.in_flight.len(), forecast);
        limits.check(&estimate, !self.scheduler.has_live(), self.clock.now())
    }

    /// Ends a request whose client has left. Returns its cost; 0 for a request that was answered or never
    /// taken.
    pub fn abort(&mut self, id: RequestId) -> Cost {
        self.deadlines.remove(id);
        let cost = self.step_clock.close(id, &self.in_flight, self.clock.now());
        if self.open_requests.contains(id) {
            self.open_requests.abort(id, cost);
            self.updates.retain(|(of, _)| *of != id);
            self.abort_in_scheduler(id);
        }
        cost
    }

    /// Ends the next request whose deadline has passed: its last update says so and is published next. Its
    /// blocks are free now, or when its row in flight is committed. Returns the request, and whether it was
    /// ended; a request whose finish is committed already keeps that finish.
    pub fn expire_next(&mut self) -> Option<(RequestId, bool)> {
        let id = self.deadlines.pop(self.clock.now())?;
        let finished = self.updates.iter().any(|(of, update)| *of == id && update.finish.is_some());
        if !finished {
            self.abort_in_scheduler(id);
            self.updates.push((id, Update { finish: Some(Finish::Late), ..Update::default() }));
        }
        Some((id, !finished))
    }

    fn abort_in_scheduler(&mut self, id: RequestId) {
        self.scheduler.abort(id);
        self.record(|| Event::Abort(id));
    }

    /// Sets a request's deadline.
    pub fn set_deadline(&mut self, id: RequestId, deadline: Instant) {
        self.deadlines.set(id, deadline);
    }

    /// Records that work is pending.
    pub fn set_busy(&mut self) {
        let since = self.step_clock.set_busy(self.clock.now());
        self.shared.heartbeat.set_busy(since);
    }

    /// Checks an idle engine: every block must be free or cached, and every request answered. Publishes its
    /// stats.
    ///
    /// # Errors
    /// The first count that is wrong.
    pub fn check_idle(&mut self) -> Result<(), EngineError> {
        self.scheduler.check_integrity()?;
        if !self.open_requests.is_empty() {
            let open = self.open_requests.len();
            return Err(EngineError { message: format!("{open} requests were never answered") });
        }
        self.step_clock.set_idle();
        self.shared.publish(self.stats());
        Ok(())
    }

    /// Ends every open request with an error. Returns their costs. No request may be submitted after that.
    pub fn fail(&mut self, reason: &str) -> Vec<(RequestId, Cost)> {
        let Self { open_requests, step_clock, in_flight, .. } = self;
        let (now, mut costs) = (self.clock.now(), Vec::new());
        open_requests.fail_all(reason, |id| {
            let cost = step_clock.close(id, in_flight, now);
            costs.push((id, cost));
            cost
        });
        costs
    }

    /// Ends every open request with an error and no cost: after a panic the costs may be wrong.
    pub(super) fn fail_without_costs(&mut self, reason: &str) {
        self.open_requests.fail_all(reason, |_| Cost::default());
    }

    fn record(&mut self, event: impl FnOnce() -> Event) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(event());
        }
    }

    /// Whether no request waits or runs, and no step is in flight. Updates may still have to be published.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Number of requests whose last update has not been published.
    pub fn open_requests(&self) -> usize {
        self.open_requests.len()
    }

    /// Updates committed and not published yet.
    pub fn unpublished(&self) -> &[(RequestId, Update)] {
        &self.updates
    }

    /// The queue that `request` would find if it arrived now.
    pub fn queue_state(&self, request: &Request) -> QueueState {
        queue_state(&self.scheduler, self.in_flight.len(), request)
    }

    /// The queue's snapshot for handles.
    pub(crate) fn queue_snapshot(&self) -> QueueSnapshot {
        QueueSnapshot::new(&self.scheduler, self.in_flight.len(), &self.step_clock.forecast)
    }

    /// Step times and answer lengths so far.
    pub fn forecast(&self) -> &Forecast {
        &self.step_clock.forecast
    }

    /// Totals of the device over all requests.
    pub fn device_totals(&self) -> DeviceTotals {
        self.step_clock.totals()
    }

    /// The scheduler.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The current stats.
    pub fn stats(&self) -> Stats {
        let (clock, counts) = (&self.step_clock, self.scheduler.counts());
        Stats {
            in_flight: self.in_flight.len(),
            last_step: clock.last_step,
            busy_since: clock.busy_since,
            expected_step: clock.expected_step(&self.in_flight),
            next_end: clock.forecast.next_end(counts.running),
            queue: self.queue_snapshot(),
            counts,
            failed: None,
        }
    }
}
