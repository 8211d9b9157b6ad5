//! Graceful shutdown, begun by a signal or by the admin port.
//!
//! The server reports at once that it is not ready. During the grace period it still accepts requests,
//! because load balancers notice the shutdown only with their next probes; each response closes its
//! connection. After the grace period new requests get a 503 with `Retry-After`, while the listener stays
//! open and running requests go on until the drain timeout. Requests that still run at the timeout are
//! aborted, and get an error as their status or as an event of their stream.
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

/// Time for sending the last bytes of a response.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Durations of a shutdown's phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTimes {
    /// From the request for a shutdown until new requests are refused.
    pub grace: Duration,
    /// From the refusal of new requests until running requests are aborted.
    pub timeout: Duration,
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
    receiver: mpsc::Receiver<()>,
    /// True once the first signal has been received.
    received: bool,
}

impl Signals {
    /// Creates signals from messages: each message of `receiver` counts as a signal.
    pub fn new(receiver: mpsc::Receiver<()>) -> Self {
        Self { receiver, received: false }
    }

    /// Waits for a signal; forever if the sender is dropped.
    async fn next(&mut self) {
        if self.receiver.recv().await.is_none() {
            std::future::pending().await
        }
    }

    /// Waits until `work` has finished or a second signal comes. Returns whether `work` has finished.
    pub(crate) async fn wait_unless_forced(&mut self, work: impl Future) -> bool {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                _finished = &mut work => return true,
                () = self.next() => {
                    if std::mem::replace(&mut self.received, true) {
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
        () = signals.next() => {}
        () = status.drain_requested() => {
            tracing::info!("shutdown requested before the model is loaded: waiting for a signal to end");
            status.enter_phase(ShutdownPhase::Drained, Instant::now());
            signals.next().await;
        }
    }
    None
}

/// Waits until a shutdown is requested, and runs its phases.
pub(crate) async fn drain(state: &ServerState, signals: &mut Signals, times: DrainTimes) -> Ended {
    let status = &state.status;
    tokio::select! {
        () = signals.next() => signals.received = true,
        () = status.drain_requested() => {}
    }
    status.enter_phase(ShutdownPhase::Grace, Instant::now() + times.grace + times.timeout);
    tracing::info!(grace = ?times.grace, "shutting down: not ready, still accepting requests");
    if !signals.wait_unless_forced(sleep(times.grace)).await {
        return Ended::Forced;
    }
    status.enter_phase(ShutdownPhase::Refusing, Instant::now() + times.timeout);
    state.generator.engine().drain();
    let mut open = state.open_requests.subscribe();
    tracing::info!(open = *open.borrow(), timeout = ?times.timeout, "shutting down: refusing new requests");
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
    if !signals.received {
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
