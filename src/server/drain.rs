//! The shutdown, begun by a signal or by the admin port.
//!
//! Readiness goes down at once, and for a grace period requests are taken as before, since load balancers take a
//! while to notice; their connections end with the answer at hand. Then new requests get a 503 with Retry-After on a
//! listener that stays open, while running ones have until the drain's timeout. Those that are left then get an
//! error, in their stream or as their status.
//!
//! A second signal ends all this at once. One that the admin port began waits for a first signal when all is done:
//! whoever asked is to hear of it, and the supervisor decides when the process ends. Before the model is loaded there is
//! nothing to drain, and the first signal ends all.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::ServerState;
use super::status::{Phase, ServerStatus};

/// What ends of answers need to get out.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a shutdown is spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainTimes {
    /// From the first signal to the first refusal.
    pub grace: Duration,
    /// From the first refusal until running requests are cut off.
    pub timeout: Duration,
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every request was answered to its end.
    Drained,
    /// So many requests were left, and got an error.
    Cut(usize),
    /// By a second signal.
    Forced,
    /// Before the model was loaded.
    Early,
}

/// The signals that have come.
pub struct Signals {
    receiver: mpsc::Receiver<()>,
    first: bool,
}

impl Signals {
    /// One for each message.
    pub fn new(receiver: mpsc::Receiver<()>) -> Self {
        Self { receiver, first: false }
    }

    /// A sender that is gone sends no signal.
    async fn next(&mut self) {
        if self.receiver.recv().await.is_none() {
            std::future::pending().await
        }
    }

    /// Whether `work` came to its end: from the second signal on nobody waits for it.
    pub async fn leave_time_for(&mut self, work: impl Future) -> bool {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                _ended = &mut work => return true,
                () = self.next() => {
                    if std::mem::replace(&mut self.first, true) {
                        return false;
                    }
                }
            }
        }
    }
}

/// What `work` comes to, while there is nothing to drain: `None` if a shutdown is asked for first.
pub async fn unless_told_to_end<T>(
    status: &ServerStatus,
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => return Some(done),
        () = signals.next() => {}
        () = status.drain_asked() => {
            tracing::info!("told to shut down before the model is loaded: waiting for a signal to end");
            status.enter(Phase::Drained, Some(Instant::now()));
            signals.next().await;
        }
    }
    None
}

/// Waits for a shutdown to be asked for, and does it.
pub async fn drain(state: &ServerState, signals: &mut Signals, times: DrainTimes) -> Ended {
    let status = &state.status;
    tokio::select! {
        () = signals.next() => signals.first = true,
        () = status.drain_asked() => {}
    }
    status.enter(Phase::Leaving, Some(Instant::now() + times.grace + times.timeout));
    tracing::info!(grace = ?times.grace, "shutting down: not ready any more");
    if !signals.leave_time_for(sleep(times.grace)).await {
        return Ended::Forced;
    }
    status.enter(Phase::Refusing, Some(Instant::now() + times.timeout));
    state.generator.engine().drain();
    let mut open = state.open.subscribe();
    tracing::info!(open = *open.borrow(), timeout = ?times.timeout, "shutting down: no new requests");
    let answered = async { timeout(times.timeout, open.wait_for(|&open| open == 0)).await.is_ok() };
    let mut all = false;
    if !signals.leave_time_for(async { all = answered.await }).await {
        return Ended::Forced;
    }
    let mut ended = Ended::Drained;
    if !all && !signals.leave_time_for(async { ended = cut(state).await }).await {
        return Ended::Forced;
    }
    status.enter(Phase::Drained, Some(Instant::now()));
    if !signals.first {
        tracing::info!("drained: waiting for a signal to end");
        signals.next().await;
    }
    ended
}

async fn cut(state: &ServerState) -> Ended {
    let mut open = state.open.subscribe();
    let left = *open.borrow();
    tracing::warn!(left, "shutting down: cutting off what still runs");
    state.status.enter(Phase::Stopped, Some(Instant::now()));
    state.cut.send_replace(true);
    state.generator.engine().stop();
    let _left = timeout(LAST_WORDS, open.wait_for(|&open| open == 0)).await;
    Ended::Cut(left)
}
