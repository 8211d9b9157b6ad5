//! The step loop, the account of every open request, and the seam to whatever executes a step.
//!
//! One OS thread owns the scheduler, the ledger and the executor, and repeats: take what clients ask, plan, enqueue,
//! collect, commit, answer. With two steps in flight, the next is planned and enqueued while the device still works
//! on the last. The loop waits for the executor, and for commands when there is nothing to do; it never waits for a
//! client. No refusal ends it; a failure of the executor, or a panic, ends it with an answer to everyone.

pub mod account;
mod handle;
mod ledger;
mod meters;
mod pipeline;
mod pulse;
pub mod record;
mod stats;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use handle::{EngineHandle, Place, UpdateStream};
pub use ledger::Ledger;
pub use meters::{Meters, Payer};
pub use pipeline::Pipeline;
pub use pulse::{Beat, Mark, Pulse};
pub use record::Recorder;
pub use stats::Stats;

use crate::request::{Reject, Update};
pub use crate::scheduler::plan::BLOCK_TOKENS;
use crate::scheduler::plan::{StepOutput, StepPlan};
pub use crate::scheduler::{Counts, RequestId, SchedulerConfig};
use account::Account;
use handle::{Command, Shared, Submission};

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

/// The loop's own state; lives on its thread.
pub struct Engine<'a> {
    shared: &'a Shared,
    commands: &'a flume::Receiver<Command>,
    executor: &'a mut dyn Executor,
    ledger: &'a mut Ledger,
    pipeline: Pipeline,
    last_step: Option<Instant>,
    busy_since: Option<Instant>,
    account: Account,
    /// Since when the results of a step have been there without another launch.
    results_since: Option<Instant>,
    /// What each step in flight should take.
    predicted: VecDeque<Option<Duration>>,
    /// Committed, and not said yet.
    updates: Vec<(RequestId, Update)>,
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
        Self::start_recorded(config, in_flight, executor, None)
    }

    /// The same, and tells the recorder what it does.
    ///
    /// # Panics
    /// As [`Engine::start`].
    pub fn start_recorded(
        config: SchedulerConfig,
        in_flight: usize,
        executor: Box<dyn Executor>,
        recorder: Option<Recorder>,
    ) -> (EngineHandle, EngineThread) {
        let (sender, commands) = flume::unbounded();
        // Not the one that will be used, which cannot change threads; but what is wrong shows here.
        let counts = Pipeline::new(config.clone(), in_flight, None).scheduler().counts();
        let shared = Arc::new(Shared::new(config, Stats { counts, ..Stats::default() }));
        let handle = EngineHandle::new(Arc::clone(&shared), sender);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || live(&shared, in_flight, recorder, executor, &commands))
            .expect("the system can start a thread");
        (handle, EngineThread { thread })
    }

    /// The step loop. Returns when told to stop, or with the reason why it cannot go on. The executor has its next step
    /// before anyone is told of the last: what the host does meanwhile costs no time of the device.
    fn run(&mut self) -> Result<(), String> {
        loop {
            if self.take_commands()? == Next::Stop {
                return Ok(());
            }
            self.launch()?;
            self.answer();
            if self.pipeline.in_flight() == 0 {
                if !self.pipeline.scheduler().is_idle() {
                    return Err("the scheduler has work and plans none".to_owned());
                }
                continue;
            }
            let output = self.executor.collect().map_err(|e| e.message)?;
            let now = Instant::now();
            self.results(now);
            self.updates = self.pipeline.commit(&output).map_err(|e| e.to_string())?;
            for (id, update) in &mut self.updates {
                update.cost = self.account.cost(*id, update.token.is_some());
                if update.finish.is_some() {
                    update.cost = self.account.close(*id, now);
                }
            }
        }
    }

    /// Takes every command there is; while idle, waits for one.
    fn take_commands(&mut self) -> Result<Next, String> {
        while self.pipeline.scheduler().is_idle() {
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
        self.busy_since.get_or_insert_with(Instant::now);
        // Before anything that may hang.
        self.shared.pulse.busy(self.busy_since);
        while let Ok(command) = self.commands.try_recv() {
            if self.obey(command) == Next::Stop {
                return Ok(Next::Stop);
            }
        }
        Ok(Next::Go)
    }

    /// Starts as many steps as may be in flight.
    fn launch(&mut self) -> Result<(), String> {
        let mut launched = false;
        while let Some(plan) = self.pipeline.start() {
            let began = Instant::now();
            self.executor.enqueue(&plan).map_err(|e| e.message)?;
            let now = Instant::now();
            if let Some(results) = self.results_since.filter(|_| !launched) {
                self.shared.meters.host.observe((now - results).as_secs_f64());
            }
            let idle_since =
                self.results_since.or(self.busy_since).filter(|_| self.pipeline.in_flight() == 1);
            self.shared.meters.idle.observe(idle_since.map_or(0.0, |since| (began - since).as_secs_f64()));
            let tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
            self.shared.meters.tokens.observe(tokens as f64);
            self.predicted.push_back(self.executor.predict(&plan));
            self.account.launched(&plan, self.pipeline.scheduler().owners(), began);
            launched = true;
        }
        if launched {
            self.results_since = None;
        }
        // The device has its step: what this takes it does not see.
        self.account.hold(self.pipeline.scheduler().holdings(), Instant::now());
        Ok(())
    }

    /// Takes note of when the earliest step's results came.
    fn results(&mut self, now: Instant) {
        (self.last_step, self.results_since) = (Some(now), Some(now));
        let meters = &self.shared.meters;
        let before = self.account.totals();
        let took = self.account.results(now);
        let totals = self.account.totals();
        meters.step.observe(took);
        meters.prefill.inc_by(totals.prefill - before.prefill);
        meters.decode.inc_by(totals.decode - before.decode);
        meters.kv_block_seconds.inc_by(totals.kv_block_seconds - meters.kv_block_seconds.get());
        meters.recomputed.inc_by(totals.recomputed_tokens - meters.recomputed.get());
        if let Some(expected) = self.predicted.pop_front().flatten().filter(|expected| !expected.is_zero()) {
            meters.ratio.observe(took / expected.as_secs_f64());
        }
    }

    /// Idle is when every block must be back, so that is when they are counted.
    fn rest(&mut self) -> Result<(), String> {
        self.pipeline.scheduler().check_integrity()?;
        if !self.ledger.is_empty() {
            return Err(format!("{} requests were never answered", self.ledger.len()));
        }
        (self.busy_since, self.results_since) = (None, None);
        self.account.rest();
        self.publish();
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Next {
        self.shared.pulse.heard(!self.commands.is_empty());
        match command {
            Command::Submit { group, place, reply } => {
                let outcome = self.admit(group);
                self.shared.publish_instead_of(place, self.stats());
                let _gone = reply.send(outcome);
            }
            Command::Abort(id) => {
                // A request that has been answered, or was never taken, has nothing to abort.
                if self.ledger.abandon(id) {
                    self.updates.retain(|(of, _)| *of != id);
                    self.pipeline.abort(id);
                    self.account.close(id, Instant::now());
                }
            }
            Command::Stop => return Next::Stop,
        }
        Next::Go
    }

    fn admit(&mut self, group: Vec<Submission>) -> Result<(), Reject> {
        let bill = |s: &Submission| (s.request.prompt.len(), s.submitted, s.payer.clone());
        let (accounts, requests): (Vec<_>, Vec<_>) =
            group.into_iter().map(|s| ((s.id, bill(&s), s.updates), (s.id, s.request))).unzip();
        self.pipeline.submit(requests)?;
        for (id, (prompt, submitted, payer), updates) in accounts {
            self.account.open(id, prompt, submitted, payer);
            self.ledger.open(id, updates);
        }
        Ok(())
    }

    /// Says what the last step yielded. Publishes before that: whoever has read a finish finds its blocks free in the
    /// stats.
    fn answer(&mut self) {
        self.publish();
        for (id, update) in self.updates.drain(..) {
            self.ledger.post(id, update);
        }
    }

    fn publish(&self) {
        self.shared.publish(self.stats());
    }

    fn stats(&self) -> Stats {
        Stats {
            counts: self.pipeline.scheduler().counts(),
            in_flight: self.pipeline.in_flight(),
            last_step: self.last_step,
            busy_since: self.busy_since,
            failed: None,
        }
    }
}

/// The engine's thread from its first to its last moment: whatever ends the loop, everyone gets an answer.
fn live(
    shared: &Shared,
    in_flight: usize,
    recorder: Option<Recorder>,
    mut executor: Box<dyn Executor>,
    commands: &flume::Receiver<Command>,
) -> Result<(), String> {
    let mut ledger = Ledger::default();
    let end = catch_unwind(AssertUnwindSafe(|| {
        let mut engine = Engine {
            shared,
            commands,
            executor: &mut *executor,
            ledger: &mut ledger,
            pipeline: Pipeline::new(shared.config.clone(), in_flight, recorder),
            last_step: None,
            busy_since: None,
            account: Account::default(),
            results_since: None,
            predicted: VecDeque::new(),
            updates: Vec::new(),
        };
        let end = engine.run();
        // Whatever ended it, what was committed before is true.
        engine.answer();
        end
    }));
    let end = end.unwrap_or_else(|panic| Err(format!("the engine panicked: {}", panic_text(&*panic))));
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
    ledger.fail_all(reason);
    end
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
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
