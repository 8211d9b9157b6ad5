//! The places of requests to one server: threads wait for one while the server's window is full or closed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::back_off::{Next, Overload, Refusals, Window};

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
    window: Window,
    running: usize,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Limiter);

impl Limiter {
    pub(super) fn new(most: usize) -> Self {
        let state = State { window: Window::new(most), running: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a place. `None` if `stopped` becomes true.
    pub(super) fn place(&self, stopped: impl Fn() -> bool) -> Option<Place<'_>> {
        let mut state = self.state();
        loop {
            if stopped() {
                return None;
            }
            let closed = state.window.closed_for(Instant::now());
            if closed.is_none() && state.running < state.window.limit() {
                state.running += 1;
                return Some(Place(self));
            }
            let wait = closed.unwrap_or(POLL).min(POLL);
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The server has answered.
    pub(super) fn answered(&self) {
        self.state().window.answered();
        self.changed.notify_all();
    }

    /// The server has answered with 429 or 503.
    pub(super) fn overloaded(&self, request: &mut Refusals, overload: Overload) -> Next {
        self.state().window.overloaded(request, overload)
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
