//! The number of requests to one endpoint at once: it halves when the server asks to slow down and grows by
//! one with each round of successes (additive increase, multiplicative decrease).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest sleep without a look at the stop flag.
const POLL: Duration = Duration::from_millis(100);

/// The places of one endpoint.
#[derive(Debug)]
pub(super) struct Limiter {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    limit: f64,
    most: f64,
    running: usize,
    /// No request begins before this time.
    closed_until: Option<Instant>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Limiter);

impl Limiter {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        let state = State { limit: most, most, running: 0, closed_until: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a place. `None` if `stopped` becomes true.
    pub(super) fn place(&self, stopped: impl Fn() -> bool) -> Option<Place<'_>> {
        let mut state = self.state();
        loop {
            if stopped() {
                return None;
            }
            let now = Instant::now();
            let closed = state.closed_until.and_then(|until| until.checked_duration_since(now));
            let closed = closed.filter(|left| !left.is_zero());
            if closed.is_none() && (state.running as f64) < state.limit.floor().max(1.0) {
                state.running += 1;
                return Some(Place(self));
            }
            let wait = closed.unwrap_or(POLL).min(POLL);
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The server answered.
    pub(super) fn succeeded(&self) {
        let mut state = self.state();
        state.limit = (state.limit + 1.0 / state.limit).min(state.most);
        self.changed.notify_all();
    }

    /// The server asks to slow down, and to send nothing for this time.
    pub(super) fn slow_down(&self, pause: Duration) {
        let mut state = self.state();
        let until = Instant::now() + pause;
        // The other requests of the same moment are refused too; they count as one refusal.
        let is_first = state.closed_until.is_none_or(|before| before < Instant::now());
        if is_first {
            state.limit = (state.limit / 2.0).max(1.0);
        }
        state.closed_until = Some(state.closed_until.map_or(until, |before| before.max(until)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_one();
    }
}
