//! The step loop, the account of every open request, and the seam to whatever executes a step.
//!
//! One OS thread owns the scheduler, the ledger and the executor, and repeats: take what clients ask, plan, enqueue,
//! collect, commit, answer. With two steps in flight, the next is planned and enqueued while the device still works
//! on the last. The loop waits for the executor, and for commands when there is nothing to do; it never waits for a
//! client. No refusal ends it; a failure of the executor, or a panic, ends it with an answer to everyone.

mod core;
mod deadlines;
pub mod forecast;
mod handle;
mod heartbeat;
mod metrics;
mod open_requests;
mod pipeline;
pub mod recorder;
mod stats;
mod step_clock;
pub mod usage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::core::{EngineCore, StepEvent, Submission};
pub use deadlines::Deadlines;
pub use forecast::Forecast;
pub use handle::{EngineHandle, Leaving, QueuePermit, UpdateStream};
pub use heartbeat::{AtomicInstant, Heartbeat, Snapshot};
pub use metrics::{EngineMetrics, KeyCounters};
pub use open_requests::OpenRequests;
pub use pipeline::Pipeline;
pub use recorder::Recorder;
pub use stats::{Line, Outlook, Stats, Wait};
pub use step_clock::StepClock;

use crate::request::Reject;
pub use crate::scheduler::step_plan::BLOCK_TOKENS;
use crate::scheduler::step_plan::{StepOutput, StepPlan};
pub use crate::scheduler::{Counts, RequestId, SchedulerConfig};
use handle::{Command, Shared};

/// Executes steps, in the order enqueued.
pub trait Executor: Send {
    /// Starts a step and returns without waiting for it. At most as many steps are outstanding as the engine was
    /// started with.
    fn enqueue(&mut self, plan: &StepPlan) -> Result<(), ExecutorError>;
    /// Waits for the earliest step not yet collected.
    fn collect(&mut self) -> Result<StepOutput, ExecutorError>;
    /// What a step should take, where the executor can tell. Metrics compare it with what it took.
    fn predict(&self, _plan: &StepPlan) -> Option<Duration> {
        None
    }
}

/// The executor failed, for good: the engine answers every open request with this and ends.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ExecutorError {
    /// What happened, as a client may read it.
    pub message: String,
}

/// How an engine is started, beside the scheduler's limits.
#[derive(Debug, Clone)]
pub struct Start {
    /// Steps in flight: 1, or 2 to plan each step while the one before runs.
    pub in_flight: usize,
    /// Is told what the engine does.
    pub recorder: Option<Recorder>,
    /// A request whose first token is predicted to come later than this is refused, unless the engine has nothing to do.
    pub max_ttft: Option<Duration>,
    /// What is known of steps before there are any.
    pub forecast: Forecast,
    /// Updates that a client is told at a time, after the first token.
    pub stream_interval: usize,
    /// What a step may take, beyond the bound of a stall, before anything is known of steps.
    pub unknown_step: Duration,
    /// What a step may take at all: no more is ever expected of one.
    pub longest_step: Duration,
}

impl Start {
    /// So many steps in flight, and nothing else.
    pub fn new(in_flight: usize) -> Self {
        let (recorder, max_ttft, unknown_step) = (None, None, Duration::ZERO);
        let forecast = Forecast::default();
        let longest_step = Duration::MAX;
        Self { in_flight, recorder, max_ttft, forecast, stream_interval: 1, unknown_step, longest_step }
    }
}

/// The loop's own state; lives on its thread.
pub struct Engine<'a> {
    shared: &'a Shared,
    commands: &'a flume::Receiver<Command>,
    executor: &'a mut dyn Executor,
    turns: &'a mut EngineCore,
    watch: StepClock,
    deadlines: Deadlines,
}

/// Whether the loop goes on.
#[derive(PartialEq)]
enum Next {
    Go,
    Stop,
}

impl Engine<'_> {
    /// Starts the engine on a thread of its own. `in_flight` is 1, or 2 to plan each step while the one before
    /// runs.
    ///
    /// # Panics
    /// If `in_flight` is neither, a limit of `config` is 0, or the system has no thread to give.
    pub fn start(
        config: SchedulerConfig,
        in_flight: usize,
        executor: Box<dyn Executor>,
    ) -> (EngineHandle, EngineThread) {
        Self::start_as(config, executor, Start::new(in_flight))
    }

    /// The same, with all that can be said of it.
    ///
    /// # Panics
    /// As [`Engine::start`].
    pub fn start_as(
        config: SchedulerConfig,
        executor: Box<dyn Executor>,
        start: Start,
    ) -> (EngineHandle, EngineThread) {
        let (sender, commands) = flume::unbounded();
        // Not the one that will be used, which cannot change threads; but what is wrong shows here, and how things stand.
        let pipeline = Pipeline::new(config.clone(), start.in_flight, None);
        let outlook = Outlook::new(&pipeline, &start.forecast);
        let stats = Stats { counts: pipeline.scheduler().counts(), outlook, ..Stats::default() };
        let shared = Arc::new(Shared::new(config, stats, start.max_ttft));
        let handle = EngineHandle::new(Arc::clone(&shared), sender);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || live(&shared, start, executor, &commands))
            .expect("the system can start a thread");
        (handle, EngineThread { thread })
    }

    /// The step loop. Returns when told to stop, or with the reason why it cannot go on.
    fn run(&mut self) -> Result<(), String> {
        while self.take_commands()? == Next::Go {
            let Self { shared, executor, turns, watch, deadlines, .. } = self;
            turns.turn(&mut **executor, &mut |pipeline, moment| {
                see(shared, watch, deadlines, (pipeline, moment));
            })?;
        }
        Ok(())
    }

    /// Takes every command there is; while idle, waits for one.
    fn take_commands(&mut self) -> Result<Next, String> {
        self.expire();
        while self.turns.is_idle() {
            self.answer();
            self.rest()?;
            match self.commands.recv() {
                Ok(command) => {
                    if self.obey(command) == Next::Stop {
                        return Ok(Next::Stop);
                    }
                }
                Err(_all_handles_gone) => return Ok(Next::Stop),
            }
        }
        // Before anything that may hang.
        self.shared.heartbeat.busy(self.watch.busy(Instant::now()));
        while let Ok(command) = self.commands.try_recv() {
            if self.obey(command) == Next::Stop {
                return Ok(Next::Stop);
            }
        }
        Ok(Next::Go)
    }

    /// Ends those whose deadline has passed; their blocks are free now, or when their row in flight is collected.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(id) = self.deadlines.pop(now) {
            self.turns.expire(id);
        }
    }

    fn rest(&mut self) -> Result<(), String> {
        self.turns.rest()?;
        self.watch.rest();
        self.publish();
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Next {
        self.shared.heartbeat.heard(!self.commands.is_empty());
        match command {
            Command::Submit { group, place, submitted, reply } => {
                let outcome = self.admit(group, &place, submitted);
                self.shared.publish_instead_of(place, self.stats());
                let _gone = reply.send(outcome);
            }
            Command::Abort(id) => {
                self.deadlines.remove(id);
                let cost = self.watch.close(id, Instant::now());
                self.turns.abort(id, cost);
            }
            Command::Stop => return Next::Stop,
        }
        Next::Go
    }

    fn admit(
        &mut self,
        group: Vec<Submission>,
        place: &QueuePermit,
        submitted: Instant,
    ) -> Result<(), Reject> {
        self.check_wait(&group, place)?;
        let taken: Vec<_> = group.iter().map(|s| (s.id, s.request.prompt.len())).collect();
        self.turns.submit(group)?;
        for (id, prompt) in taken {
            self.watch.open(id, prompt, submitted, place.payer.clone());
            if let Some(due) = place.due {
                self.deadlines.add(id, due);
            }
        }
        Ok(())
    }

    /// Refuses a group whose first token would come too late for the operator, or its answers for the client.
    fn check_wait(&self, group: &[Submission], place: &QueuePermit) -> Result<(), Reject> {
        if !place.may_come_too_late() {
            return Ok(());
        }
        let requests = group.iter().map(|submission| &submission.request);
        let wait = Wait::of(requests, self.turns.pipeline(), self.watch.forecast());
        place.check(&wait, self.turns.is_idle())
    }

    /// Says what the last step yielded.
    fn answer(&mut self) {
        let Self { shared, turns, watch, deadlines, .. } = self;
        turns.answer(&mut |pipeline, moment| see(shared, watch, deadlines, (pipeline, moment)));
    }

    fn publish(&self) {
        self.shared.publish(self.stats());
    }

    fn stats(&self) -> Stats {
        self.watch.stats(self.turns.pipeline())
    }
}

/// A moment of a turn. What is told has no deadline any more, and is published before that.
fn see(
    shared: &Shared,
    watch: &mut StepClock,
    deadlines: &mut Deadlines,
    (pipeline, moment): (&Pipeline, StepEvent<'_>),
) {
    let telling = matches!(moment, StepEvent::Telling(_));
    let launched = matches!(moment, StepEvent::Launched(..));
    if let StepEvent::Telling(updates) = &moment {
        let ended = updates.iter().filter(|(_, update)| update.finish.is_some());
        ended.for_each(|(id, _)| deadlines.remove(*id));
    }
    watch.see(pipeline, moment, Instant::now());
    if launched {
        // The time of the last step's end is not published yet: until it is, what was expected of that step counts too.
        shared.heartbeat.expect_step(watch.expected_step());
    }
    if telling {
        shared.publish(watch.stats(pipeline));
    }
}

/// The engine's thread from its first to its last moment: whatever ends the loop, everyone gets an answer.
fn live(
    shared: &Shared,
    start: Start,
    mut executor: Box<dyn Executor>,
    commands: &flume::Receiver<Command>,
) -> Result<(), String> {
    // Outlives a panic of the loop, so that everyone gets an answer.
    let pipeline = Pipeline::new(shared.config.clone(), start.in_flight, start.recorder);
    let mut turns = EngineCore::new(pipeline, start.stream_interval);
    let end = catch_unwind(AssertUnwindSafe(|| {
        let mut engine = Engine {
            shared,
            commands,
            executor: &mut *executor,
            turns: &mut turns,
            watch: StepClock::new(
                start.forecast,
                (start.unknown_step, start.longest_step),
                shared.metrics.clone(),
            ),
            deadlines: Deadlines::default(),
        };
        let end = engine.run();
        // Whatever ended it, what was committed before is true.
        engine.answer();
        (end, engine.watch)
    }));
    let (end, mut watch) = match end {
        Ok((end, watch)) => (end, Some(watch)),
        Err(panic) => (Err(format!("the engine panicked: {}", panic_text(&*panic))), None),
    };
    let reason = match &end {
        Ok(()) => "the server is shutting down",
        Err(reason) => {
            tracing::error!(%reason, "the engine has failed");
            shared.set_failed(reason);
            reason
        }
    };
    shared.refuse(Reject::EngineDown(reason.to_owned()));
    // The gate is closed: what is in the channel now is the last that will ever be.
    for command in commands.try_iter() {
        if let Command::Submit { reply, .. } = command {
            let _gone = reply.send(Err(Reject::EngineDown(reason.to_owned())));
        }
    }
    turns.fail(reason, |id| watch.as_mut().map(|watch| watch.close(id, Instant::now())).unwrap_or_default());
    if end.is_ok() {
        shared.publish_end();
    }
    end
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

/// The engine's thread, to be joined by whoever started it.
pub struct EngineThread {
    thread: JoinHandle<Result<(), String>>,
}

impl EngineThread {
    /// Waits for the engine to end, which it does when stopped, when all handles are gone, or when it fails.
    /// The error is why it failed.
    pub fn join(self) -> Result<(), String> {
        self.thread.join().unwrap_or_else(|_| Err("the engine's thread panicked".to_owned()))
    }

    /// Whether the thread has ended, by failure or otherwise.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}
