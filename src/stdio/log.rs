//! The log: lines with a timestamp on standard error, as text or as JSON.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tracing::{Dispatch, Level};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;

use super::descriptor::split_off_stderr;
use super::filter::LogFilter;
use super::progress_bar::ProgressBars;
use super::queue::Queue;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people, with colours on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// The parts of the log that a running server uses. The default has no bars and counts nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogHandle {
    /// The maker of progress bars.
    pub(crate) bars: ProgressBars,
    /// Number of lines that were dropped because the queue was full, or could not be written.
    pub(crate) dropped: Arc<AtomicU64>,
}

/// The log of the process. Dropping it waits a limited time for the last lines.
#[derive(Debug)]
pub struct Log {
    queue: Arc<Queue>,
}

impl Log {
    /// Starts the thread that writes to standard error. No other thread waits for the reader of standard
    /// error from then on.
    ///
    /// # Panics
    /// If the system cannot start a thread, or the process has no descriptor left.
    pub fn start() -> Self {
        let stream = split_off_stderr().expect("the process has a descriptor left");
        let queue = Arc::new(Queue::new(stream));
        let lines = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || lines.write_on()).expect("the system can start a thread");
        Self { queue }
    }

    /// Sends the events of `tracing`, and panics, to the log from now on.
    ///
    /// # Panics
    /// If the process has a subscriber of `tracing` already.
    pub fn subscribe(&self, format: LogFormat, LogFilter(filter): LogFilter) {
        let dispatch = dispatch(&self.queue, format, filter);
        tracing::dispatcher::set_global_default(dispatch).expect("the process has no subscriber yet");
        let queue = Arc::clone(&self.queue);
        std::panic::set_hook(Box::new(move |panic| report_panic(panic, &queue)));
    }

    /// Writes text as it is. It ends with a line break.
    pub fn print(&self, text: &str) {
        self.queue.push(text.as_bytes());
    }

    /// Whether standard error shows colours.
    pub fn is_colored(&self) -> bool {
        is_colored(&self.queue)
    }

    /// The parts for a running server.
    pub(crate) fn handle(&self) -> LogHandle {
        LogHandle { bars: ProgressBars::new(&self.queue), dropped: Arc::clone(self.queue.dropped()) }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.queue.is_terminal() {
            self.queue.set_bar(String::new());
        }
        self.queue.flush();
    }
}

/// A subscriber of `tracing` that writes to the queue.
fn dispatch(queue: &Arc<Queue>, format: LogFormat, filter: Targets) -> Dispatch {
    // An error of the writer would be printed to standard error.
    let lines = fmt::layer().with_writer(Arc::clone(queue)).log_internal_errors(false);
    let filtered = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => Dispatch::new(filtered.with(lines.with_ansi(is_colored(queue)))),
        LogFormat::Json => {
            let json = lines.json().flatten_event(true);
            Dispatch::new(filtered.with(json.with_current_span(false).with_span_list(false)))
        }
    }
}

/// Whether standard error shows colours: on a terminal, unless `NO_COLOR` is set.
fn is_colored(queue: &Queue) -> bool {
    queue.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Logs a panic, which then continues.
fn report_panic(panic: &PanicHookInfo<'_>, queue: &Queue) {
    let message = panic.payload_as_str().unwrap_or("no reason given");
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let location = panic.location().map(ToString::to_string);
    if tracing::enabled!(Level::ERROR) {
        // The backtrace is captured only if RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(thread = name, location, backtrace, "a thread panicked: {message}");
    } else {
        let at = location.unwrap_or_default();
        queue.push(format!("thread {name} panicked at {at}: {message}\n").as_bytes());
    }
    // After this panic, in a destructor or a function that cannot unwind, the runtime aborts the process.
    if message.starts_with("panic in a ") {
        queue.flush();
    }
}
