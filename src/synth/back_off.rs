//! Answers 429 and 503 of a server: the pause after each, and when the run gives up.
//!
//! Status 429 says that a server is full, and 503 that it starts, drains or has no engine, or is full
//! (`--queue-full-status`). Both pause all requests to the server ([`Window`]). A request that gets 429 for
//! six hours ends the run. So do ten minutes with 503 in which the server answers no request, unless it works
//! on another one then. No function here reads the clock.

use std::time::{Duration, Instant};

use crate::http_client::{Window, doubled};

/// Time for which a server may answer one request with 429.
const MAX_FULL: Duration = Duration::from_secs(6 * 3600);
/// Time for which a server may answer with 503 and nothing else.
const MAX_UNAVAILABLE: Duration = Duration::from_secs(600);
/// Time without an answer, with the next pause, above which the log has a warning.
const WARN_AFTER: Duration = Duration::from_secs(60);

/// Status 429 or 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overload {
    /// The status.
    pub status: u16,
    /// The pause that the server asks for.
    pub retry_after: Option<Duration>,
    /// The time when the request was sent.
    pub sent: Instant,
    /// The time of the answer.
    pub now: Instant,
}

/// The consequence of a 429 or 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// No request is sent during the pause.
    Pause {
        /// Its length.
        pause: Duration,
        /// The time since the last answer, if the log is to have a warning.
        warn: Option<Duration>,
    },
    /// The server has refused for this time, which is too long.
    GiveUp(Duration),
}

/// The answers 429 and 503 to one request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Refusals {
    count: u32,
    first: Option<Instant>,
}

/// The requests that one server may have at once, and since when it has answered none.
#[derive(Debug)]
pub struct Gate {
    window: Window,
    /// The first 429 or 503 since the last answer.
    full_since: Option<Instant>,
    /// The first 503 since the last answer or 429.
    unavailable_since: Option<Instant>,
    is_warned: bool,
}

impl Gate {
    /// A gate for at most this number of requests, which it begins with.
    pub fn new(most: usize) -> Self {
        Self { window: Window::new(most), full_since: None, unavailable_since: None, is_warned: false }
    }

    /// The number of requests that may run at once.
    pub fn limit(&self) -> usize {
        self.window.limit()
    }

    /// The rest of a pause.
    pub fn closed_for(&self, now: Instant) -> Option<Duration> {
        self.window.closed_for(now)
    }

    /// The server has answered a request.
    pub fn answered(&mut self) {
        self.window.answered();
        (self.full_since, self.unavailable_since, self.is_warned) = (None, None, false);
    }

    /// The server has answered a request with 429 or 503. `others` is the number of other requests that it
    /// has.
    pub fn overloaded(&mut self, request: &mut Refusals, overload: Overload, others: usize) -> Next {
        let Overload { status, retry_after, sent, now } = overload;
        let first = *request.first.get_or_insert(now);
        let full_since = *self.full_since.get_or_insert(now);
        if status == 503 {
            let refused = now.duration_since(*self.unavailable_since.get_or_insert(now));
            if refused > MAX_UNAVAILABLE && others == 0 {
                return Next::GiveUp(refused);
            }
        } else {
            self.unavailable_since = None;
        }
        let refused = now.duration_since(first);
        if refused > MAX_FULL {
            return Next::GiveUp(refused);
        }
        self.window.refused(sent, now);
        let pause = self.window.close(retry_after.unwrap_or_else(|| doubled(request.count)), now);
        request.count += 1;
        let is_long = now.duration_since(full_since) + pause > WARN_AFTER;
        let warn = (is_long && !self.is_warned).then(|| now.duration_since(full_since));
        self.is_warned |= is_long;
        Next::Pause { pause, warn }
    }
}
