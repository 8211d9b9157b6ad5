//! Graceful shutdown, begun by a signal or by the admin port.
//!
//! The server reports at once that it is not ready. During the grace period it still accepts requests,
//! because load balancers notice the shutdown only with their next probes; each response closes its
//! connection. After the grace period new requests get a 503 with `Retry-After`, while the listener stays
//! open and running requests go on until the drain timeout. Requests that still run at the timeout are
//! aborted, and get an error as their status or as an event of their stream.
//!
//! SIGINT, which Ctrl-C sends, skips the grace period: it comes from an operator at a terminal, and no load
//! balancer has to notice the shutdown. A server without open requests then ends at once.
//!
//! Batches are parked when new requests are refused: their lines run again after the next start.
//!
//! A second signal ends the process at once. If the admin port began the shutdown, the drained server waits
//! for a first signal before it exits: the response of the admin port must be sent, and the supervisor
//! decides when the process ends. Before the model is loaded, the first signal ends the process.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::state::ServerState;
use super::status::{ServerStatus, ShutdownPhase};
use crate::batch::Runner;

/// Time for sending the last bytes of a response.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the results of batches that are being written to reach the disk.
const PARK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for sending the last bytes of a response after Ctrl-C.
const INTERRUPTED_FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// Durations of a shutdown's phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTimes {
    /// Time between the request for a shutdown and the refusal of new requests.
    pub grace: Duration,
    /// Time between the refusal of new requests and the abort of running requests.
    pub timeout: Duration,
}

impl DrainTimes {
    /// Times of a shutdown with this cause.
    fn after(self, cause: Cause) -> Self {
        match cause {
            Cause::Signal(Signal::Interrupt) => Self { grace: Duration::ZERO, ..self },
            Cause::Signal(Signal::Terminate) | Cause::AdminPort => self,
        }
    }
}

/// A signal that asks for a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
    /// SIGTERM, which supervisors send.
    Terminate,
}

/// The reason why a shutdown began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Signal(Signal),
    AdminPort,
}

/// The line for an operator who pressed Ctrl-C while requests are open.
fn open_requests_notice(cause: Cause, open: usize) -> Option<String> {
    let are = if open == 1 { "request is" } else { "requests are" };
    let interrupted = cause == Cause::Signal(Signal::Interrupt);
    (interrupted && open > 0)
        .then(|| format!("{open} {are} open and may finish; press Ctrl-C again to end the server now"))
}

/// Outcome of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All responses were completed.
    Drained,
    /// This number of requests was aborted at the drain timeout.
    Aborted(usize),
    /// A second signal ended the shutdown.
    Forced,
    /// A signal came before the model was loaded.
    Early,
}

/// Shutdown signals received by the process.
pub struct Signals {
    receiver: mpsc::Receiver<Signal>,
    /// The first signal, once it has been received.
    first: Option<Signal>,
}

impl Signals {
    /// Creates signals from the messages of `receiver`.
    pub fn new(receiver: mpsc::Receiver<Signal>) -> Self {
        Self { receiver, first: None }
    }

    /// Waits for a signal; forever if the sender is dropped. Returns whether it is the first.
    async fn next(&mut self) -> bool {
        let Some(signal) = self.receiver.recv().await else { return std::future::pending().await };
        let is_first = self.first.is_none();
        self.first.get_or_insert(signal);
        is_first
    }

    /// Time for sending the last bytes and closing connections after the drain. It is
    /// short after Ctrl-C, so that an operator does not wait for clients that keep idle connections open.
    pub(crate) fn flush_timeout(&self) -> Duration {
        match self.first {
            Some(Signal::Interrupt) => INTERRUPTED_FLUSH_TIMEOUT,
            Some(Signal::Terminate) | None => FLUSH_TIMEOUT,
        }
    }

    /// Waits until `work` has finished or a second signal comes. Returns whether `work` has finished.
    pub(crate) async fn wait_unless_forced(&mut self, work: impl Future) -> bool {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                _finished = &mut work => return true,
                is_first = self.next() => {
                    if !is_first {
                        return false;
                    }
                }
            }
        }
    }
}

/// Returns the output of `work`, which is part of startup; `None` if a shutdown is requested before it is
/// done.
pub async fn unless_shutdown<T>(
    status: &ServerStatus,
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => return Some(done),
        _first = signals.next() => {}
        () = status.drain_requested() => {
            tracing::info!("shutdown requested before the model is loaded: waiting for a signal to end");
            status.enter_phase(ShutdownPhase::Drained, Instant::now());
            signals.next().await;
        }
    }
    None
}

/// Waits until a shutdown is requested, and runs its phases.
pub(crate) async fn drain(
    state: &ServerState,
    runner: Option<&Runner>,
    signals: &mut Signals,
    times: DrainTimes,
) -> Ended {
    let status = &state.status;
    let cause = tokio::select! {
        _first = signals.next() => signals.first.map_or(Cause::AdminPort, Cause::Signal),
        () = status.drain_requested() => Cause::AdminPort,
    };
    let times = times.after(cause);
    status.enter_phase(ShutdownPhase::Grace, Instant::now() + times.grace + times.timeout);
    if !times.grace.is_zero() {
        tracing::info!(grace = ?times.grace, "shutting down: not ready, still accepting requests");
    }
    if !signals.wait_unless_forced(sleep(times.grace)).await {
        return Ended::Forced;
    }
    status.enter_phase(ShutdownPhase::Refusing, Instant::now() + times.timeout);
    // Lines of batches are not waited for: they run again after the next start.
    let park = async {
        if let Some(runner) = runner {
            let _disk_hangs = timeout(PARK_TIMEOUT, runner.park()).await;
        }
    };
    if !signals.wait_unless_forced(park).await {
        return Ended::Forced;
    }
    state.generator.engine().drain();
    let mut open = state.open_requests.subscribe();
    let open_now = *open.borrow();
    tracing::info!(open = open_now, timeout = ?times.timeout, "shutting down: refusing new requests");
    if let Some(notice) = open_requests_notice(cause, open_now) {
        // Every --log-level shows this line (`src/stdio/filter.rs`).
        tracing::warn!(target: "octant::interrupt", "{notice}");
    }
    let completed = async { timeout(times.timeout, open.wait_for(|&open| open == 0)).await.is_ok() };
    let mut all_completed = false;
    if !signals.wait_unless_forced(async { all_completed = completed.await }).await {
        return Ended::Forced;
    }
    let mut ended = Ended::Drained;
    if !all_completed && !signals.wait_unless_forced(async { ended = abort(state).await }).await {
        return Ended::Forced;
    }
    status.enter_phase(ShutdownPhase::Drained, Instant::now());
    if signals.first.is_none() {
        tracing::info!("drained: waiting for a signal to end");
        signals.next().await;
    }
    ended
}

/// Aborts all open requests and waits, at most [`FLUSH_TIMEOUT`], for their responses to end.
async fn abort(state: &ServerState) -> Ended {
    let mut open = state.open_requests.subscribe();
    let left = *open.borrow();
    tracing::warn!(left, "shutting down: drain timeout reached, aborting open requests");
    state.status.enter_phase(ShutdownPhase::Aborting, Instant::now());
    state.abort.cancel();
    state.generator.engine().stop();
    let _left = timeout(FLUSH_TIMEOUT, open.wait_for(|&open| open == 0)).await;
    Ended::Aborted(left)
}
