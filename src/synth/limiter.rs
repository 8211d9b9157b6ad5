//! The places of requests to one server: threads wait for one while the server's gate is full or closed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::back_off::{Gate, Next, Overload, Refusals};

/// Longest sleep without a look at the stop flag.
const POLL: Duration = Duration::from_millis(100);

/// The places of one server.
#[derive(Debug)]
pub(super) struct Limiter {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    gate: Gate,
    running: usize,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Limiter);

impl Limiter {
    pub(super) fn new(most: usize) -> Self {
        let state = State { gate: Gate::new(most), running: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a place. `None` if `stopped` becomes true.
    pub(super) fn place(&self, stopped: impl Fn() -> bool) -> Option<Place<'_>> {
        let mut state = self.state();
        loop {
            if stopped() {
                return None;
            }
            let closed = state.gate.closed_for(Instant::now());
            if closed.is_none() && state.running < state.gate.limit() {
                state.running += 1;
                return Some(Place(self));
            }
            let wait = closed.unwrap_or(POLL).min(POLL);
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The server has answered.
    pub(super) fn answered(&self) {
        self.state().gate.answered();
        self.changed.notify_all();
    }

    /// The server has answered a request that still has its place with 429 or 503.
    pub(super) fn overloaded(&self, request: &mut Refusals, overload: Overload) -> Next {
        let mut state = self.state();
        let others = state.running.saturating_sub(1);
        state.gate.overloaded(request, overload, others)
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
