//! The engine's thread: takes commands, runs steps, and answers every open request when it ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::core::EngineCore;
use super::executor::{EngineError, Executor};
use super::handle::{EngineCommand, EngineHandle, SubmitCommand};
use super::options::EngineOptions;
use super::shared::SharedState;
use crate::request::Reject;
use crate::scheduler::SchedulerConfig;

/// The state of the engine's thread.
pub struct Engine<'a> {
    shared: &'a SharedState,
    commands: &'a flume::Receiver<EngineCommand>,
    executor: &'a mut dyn Executor,
    core: &'a mut EngineCore,
}

/// Whether the step loop goes on.
#[derive(PartialEq)]
enum Next {
    Go,
    Stop,
}

impl Engine<'_> {
    /// Starts an engine with default options and at most `in_flight` steps in flight.
    ///
    /// # Errors
    /// See [`Engine::start_with`].
    pub fn start(
        config: SchedulerConfig,
        in_flight: usize,
        executor: Box<dyn Executor>,
    ) -> Result<(EngineHandle, EngineThread), EngineError> {
        Self::start_with(config, executor, EngineOptions::new(in_flight))
    }

    /// Starts an engine on its own thread.
    ///
    /// # Errors
    /// The system cannot start a thread.
    ///
    /// # Panics
    /// If a limit of `config` is 0, or `options.in_flight` is neither 1 nor 2.
    pub fn start_with(
        config: SchedulerConfig,
        executor: Box<dyn Executor>,
        options: EngineOptions,
    ) -> Result<(EngineHandle, EngineThread), EngineError> {
        let (sender, commands) = flume::unbounded();
        let shared = Arc::new(SharedState::new(config, &options));
        let handle = EngineHandle::new(Arc::clone(&shared), sender);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run_engine_thread(shared, options, executor, &commands))
            .map_err(|error| EngineError { message: format!("cannot start the engine's thread: {error}") })?;
        Ok((handle, EngineThread { thread }))
    }

    /// Takes commands and runs steps in turns. Returns after [`EngineCommand::Stop`].
    ///
    /// # Errors
    /// The reason why the engine cannot go on.
    fn run(&mut self) -> Result<(), EngineError> {
        while self.take_commands()? == Next::Go {
            self.core.step(self.executor)?;
        }
        Ok(())
    }

    /// Takes all commands in the channel; while idle, waits for one.
    fn take_commands(&mut self) -> Result<Next, EngineError> {
        while self.core.expire_next().is_some() {}
        while self.core.is_idle() {
            self.core.publish();
            self.core.check_idle()?;
            match self.commands.recv() {
                Ok(command) => {
                    if self.handle_command(command) == Next::Stop {
                        return Ok(Next::Stop);
                    }
                }
                Err(_all_handles_gone) => return Ok(Next::Stop),
            }
        }
        // The heartbeat must show pending work before any call that may hang.
        self.core.set_busy();
        while let Ok(command) = self.commands.try_recv() {
            if self.handle_command(command) == Next::Stop {
                return Ok(Next::Stop);
            }
        }
        Ok(Next::Go)
    }

    fn handle_command(&mut self, command: EngineCommand) -> Next {
        self.shared.heartbeat.command_taken(!self.commands.is_empty());
        match command {
            EngineCommand::Submit(command) => self.submit(*command),
            EngineCommand::Abort(id) => _ = self.core.abort(id),
            EngineCommand::Stop => return Next::Stop,
        }
        Next::Go
    }

    fn submit(&mut self, command: SubmitCommand) {
        let SubmitCommand { group, options, permit, submitted_at, reply } = command;
        let limits = permit.wait_limits(&options);
        let taken = self.core.check_wait(&group, &limits);
        let taken = taken.and_then(|()| self.core.submit(group, &options, submitted_at));
        self.shared.publish_taken(self.core.stats(), permit.into_places());
        let _client_gone = reply.send(taken);
    }
}

/// Runs the engine's thread from start to end. However the loop ends, every open request gets an answer.
fn run_engine_thread(
    shared: Arc<SharedState>,
    options: EngineOptions,
    mut executor: Box<dyn Executor>,
    commands: &flume::Receiver<EngineCommand>,
) -> Result<(), EngineError> {
    let mut core = EngineCore::with_shared(Arc::clone(&shared), options);
    let end = catch_unwind(AssertUnwindSafe(|| {
        let (shared, core) = (&*shared, &mut core);
        let end = Engine { shared, commands, executor: &mut *executor, core }.run();
        // Updates that were committed before the end are valid.
        core.publish();
        end
    }));
    let panicked = end.is_err();
    let end = end.unwrap_or_else(|panic| {
        Err(EngineError { message: format!("the engine panicked: {}", panic_text(&*panic)) })
    });
    let reason = match &end {
        Ok(()) => "the server is shutting down",
        Err(EngineError { message: reason }) => {
            tracing::error!(%reason, "the engine has failed");
            shared.set_failed(reason);
            reason
        }
    };
    shared.refuse(Reject::EngineDown(reason.to_owned()));
    // No command can be sent any more: those in the channel are the last.
    for command in commands.try_iter() {
        if let EngineCommand::Submit(command) = command {
            let _client_gone = command.reply.send(Err(Reject::EngineDown(reason.to_owned())));
        }
    }
    if panicked {
        core.fail_without_costs(reason);
    } else {
        core.fail(reason);
    }
    if end.is_ok() {
        shared.publish_end();
    }
    end
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

/// The engine's thread, to be joined.
pub struct EngineThread {
    thread: JoinHandle<Result<(), EngineError>>,
}

impl EngineThread {
    /// Waits for the engine to end: when it is stopped, when all handles are gone, or when it fails.
    ///
    /// # Errors
    /// The reason why the engine failed.
    pub fn join(self) -> Result<(), EngineError> {
        self.thread
            .join()
            .unwrap_or_else(|_| Err(EngineError { message: "the engine's thread panicked".to_owned() }))
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}
