//! Pauses while a server is full or not available, and how many requests then run at once.
//!
//! Status 429 says that a server is full, and 503 that it starts, drains or has no engine. Both pause all
//! requests to the server: for `Retry-After`, else for a time that doubles from 0.5 s to 30 s. The number of
//! requests at once halves, and grows by one with each round of answers (additive increase, multiplicative
//! decrease). A request that gets 429 for six hours ends the run. So do ten minutes with 503 in which the
//! server answers no request, since a full server answers some. No function here reads the clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::fmt::rfc2822::DateTimeParser;

/// First pause that the server has not asked for. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that the server has not asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Shortest pause, so that `Retry-After: 0` does not make requests without a rest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
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
pub struct Window {
    limit: f64,
    most: f64,
    /// No request is sent before this time.
    closed_until: Option<Instant>,
    halved: Option<Instant>,
    /// The first 429 or 503 since the last answer.
    full_since: Option<Instant>,
    /// The first 503 since the last answer or 429.
    unavailable_since: Option<Instant>,
    is_warned: bool,
}

impl Window {
    /// A window of at most this number of requests, which it begins with.
    pub fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self {
            limit: most,
            most,
            closed_until: None,
            halved: None,
            full_since: None,
            unavailable_since: None,
            is_warned: false,
        }
    }

    /// The number of requests that may run at once.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The rest of a pause.
    pub fn closed_for(&self, now: Instant) -> Option<Duration> {
        let left = self.closed_until?.checked_duration_since(now)?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// The server has answered a request.
    pub fn answered(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most);
        (self.full_since, self.unavailable_since, self.is_warned) = (None, None, false);
    }

    /// The server has answered a request with 429 or 503.
    pub fn overloaded(&mut self, request: &mut Refusals, overload: Overload) -> Next {
        let Overload { status, retry_after, sent, now } = overload;
        let first = *request.first.get_or_insert(now);
        let full_since = *self.full_since.get_or_insert(now);
        if status == 503 {
            let refused = now.duration_since(*self.unavailable_since.get_or_insert(now));
            if refused > MAX_UNAVAILABLE {
                return Next::GiveUp(refused);
            }
        } else {
            self.unavailable_since = None;
        }
        let refused = now.duration_since(first);
        if refused > MAX_FULL {
            return Next::GiveUp(refused);
        }
        let pause = retry_after.unwrap_or_else(|| doubled(request.count));
        let pause = pause.clamp(SHORTEST_PAUSE, MAX_RETRY_AFTER);
        request.count += 1;
        // Requests that were sent before the number was halved are refused, too. They do not halve it again.
        if self.halved.is_none_or(|halved| sent >= halved) {
            self.limit = (self.limit / 2.0).max(1.0);
            self.halved = Some(now);
        }
        let until = now + pause;
        self.closed_until = Some(self.closed_until.map_or(until, |before| before.max(until)));
        let is_long = now.duration_since(full_since) + pause > WARN_AFTER;
        let warn = (is_long && !self.is_warned).then(|| now.duration_since(full_since));
        self.is_warned |= is_long;
        Next::Pause { pause, warn }
    }
}

/// The pause after this number of failures or refusals before.
pub(super) fn doubled(before: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << before.min(10)).min(LONGEST_PAUSE)
}

/// The pause of a header `Retry-After`, which has seconds or a date.
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().parse_timestamp(text).ok()?.as_second();
    let now = now.duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(u64::try_from(date).ok()?).saturating_sub(now))
}
