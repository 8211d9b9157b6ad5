//! Pauses of a server that is full or fails, and how many requests it gets at once after that.
//!
//! No request is sent during a pause. A refusal for lack of capacity also halves the number of requests at
//! once, which grows by one with each round of answers (additive increase, multiplicative decrease).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::RETRY_AFTER;
use jiff::fmt::rfc2822::DateTimeParser;

/// First pause that the server has not asked for. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that the server has not asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Shortest pause, so that `Retry-After: 0` does not make requests without a rest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// The requests that one server may have at once. No function of it reads the clock.
#[derive(Debug)]
pub(crate) struct Window {
    limit: f64,
    most: f64,
    /// No request is sent before this time.
    closed_until: Option<Instant>,
    halved: Option<Instant>,
}

impl Window {
    /// A window of at most this number of requests, which it begins with.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self { limit: most, most, closed_until: None, halved: None }
    }

    /// The number of requests that may run at once.
    pub(crate) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The rest of a pause.
    pub(crate) fn closed_for(&self, now: Instant) -> Option<Duration> {
        let left = self.closed_until?.checked_duration_since(now)?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// The server has answered a request.
    pub(crate) fn answered(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most);
    }

    /// The server has refused a request for lack of capacity. Returns whether this halves the number of
    /// requests. Requests that were sent before the last time are refused, too; they do not halve it again.
    pub(crate) fn refused(&mut self, sent: Instant, now: Instant) -> bool {
        let counts = self.halved.is_none_or(|halved| sent >= halved);
        if counts {
            self.limit = (self.limit / 2.0).max(1.0);
            self.halved = Some(now);
        }
        counts
    }

    /// Begins a pause, or makes the one that has begun longer. Returns its length, which has limits.
    pub(crate) fn close(&mut self, pause: Duration, now: Instant) -> Duration {
        let pause = pause.clamp(SHORTEST_PAUSE, MAX_RETRY_AFTER);
        let until = now + pause;
        self.closed_until = Some(self.closed_until.map_or(until, |before| before.max(until)));
        pause
    }
}

/// The pause after this number of failures or refusals before.
pub(crate) fn doubled(before: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << before.min(10)).min(LONGEST_PAUSE)
}

/// The pause that a response asks for.
pub(crate) fn pause_asked(headers: &HeaderMap) -> Option<Duration> {
    retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
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
