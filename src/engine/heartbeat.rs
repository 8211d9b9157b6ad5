//! The engine's heartbeat: times and counts in atomics, so that a health check can read them even if the
//! engine hangs. Neither the engine nor a reader ever waits here.
//!
//! A reader reads the clock before the values ([`Heartbeat::snapshot`]), so every value was true at or after
//! that time. If the reader is delayed between two values, the engine may look healthier than it is, but
//! never less healthy.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Stats;

/// An optional [`Instant`] that is set and read without a lock.
#[derive(Debug)]
pub struct AtomicInstant {
    base: Instant,
    /// Nanoseconds after `base`, plus 1; 0 for `None`.
    nanos: AtomicU64,
}

impl Default for AtomicInstant {
    fn default() -> Self {
        Self { base: Instant::now(), nanos: AtomicU64::new(0) }
    }
}

impl AtomicInstant {
    fn code(&self, at: Option<Instant>) -> u64 {
        // 2^64 ns are 584 years.
        at.map_or(0, |at| at.saturating_duration_since(self.base).as_nanos() as u64 + 1)
    }

    /// Sets the instant.
    pub fn set(&self, at: Option<Instant>) {
        self.nanos.store(self.code(at), Ordering::Release);
    }

    /// Sets the instant if it is `None`.
    pub(crate) fn set_if_none(&self, at: Instant) {
        let _set_before =
            self.nanos.compare_exchange(0, self.code(Some(at)), Ordering::AcqRel, Ordering::Acquire);
    }

    /// Reads the instant.
    pub fn get(&self) -> Option<Instant> {
        let nanos = self.nanos.load(Ordering::Acquire);
        nanos.checked_sub(1).map(|nanos| self.base + Duration::from_nanos(nanos))
    }
}

/// The engine's times and counts. The engine's thread and its handles write them.
#[derive(Debug, Default)]
pub struct Heartbeat {
    running: AtomicUsize,
    waiting: AtomicUsize,
    last_step: AtomicInstant,
    busy_since: AtomicInstant,
    /// Time since which commands have been in the engine's channel without the engine taking one.
    untaken_since: AtomicInstant,
    expected_step_ns: AtomicU64,
    failed: AtomicBool,
    /// Written once, before `failed` is set, and read only after that, so that no thread waits for this lock.
    reason: Mutex<String>,
}

/// The values of a [`Heartbeat`] at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Running requests.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// When a step was last collected.
    pub last_step: Option<Instant>,
    /// Time since which work has been pending without a pause, whether the engine has taken it or not.
    pub pending_since: Option<Instant>,
    /// The longest expected time of a step in flight; 0 where unknown.
    pub expected_step: Duration,
    /// Why the engine failed.
    pub failed: Option<String>,
}

impl Heartbeat {
    /// Reads all values. To compare them with the current time, read the clock before this call.
    pub fn snapshot(&self) -> Snapshot {
        let failed = self.failed.load(Ordering::Acquire);
        // Read before `last_step`: the step that this time belongs to then began no later than the step of
        // `last_step` ended.
        let expected_step = Duration::from_nanos(self.expected_step_ns.load(Ordering::Acquire));
        // Read before `last_step`: if a step ends between the two reads, the engine looks healthier, not less
        // healthy.
        let pending_since = self.busy_since.get().or_else(|| self.untaken_since.get());
        let reason = || self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Snapshot {
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            last_step: self.last_step.get(),
            pending_since,
            expected_step,
            failed: failed.then(reason),
        }
    }

    /// Whether the engine has failed. A failure is final.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Sets the longest expected time of a step. A step counts as stalled if it exceeds this time by the
    /// stall timeout.
    pub fn expect_step(&self, at_most: Duration) {
        let nanos = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        self.expected_step_ns.store(nanos, Ordering::Release);
    }

    pub(super) fn publish(&self, stats: &Stats) {
        self.running.store(stats.counts.running, Ordering::Relaxed);
        self.waiting.store(stats.counts.waiting, Ordering::Relaxed);
        self.last_step.set(stats.last_step);
        self.busy_since.set(stats.busy_since);
        // Written after `last_step`: a reader of the new expectation also reads the new time.
        self.expect_step(stats.expected_step);
    }

    pub(super) fn set_busy(&self, since: Instant) {
        self.busy_since.set(Some(since));
    }

    /// Records that a command is about to be sent to the engine's thread.
    pub(super) fn command_sent(&self) {
        self.untaken_since.set_if_none(Instant::now());
    }

    /// Records that the engine's thread has taken a command; `more` tells whether others are in the channel.
    /// A command that is being sent at this moment may be missed until the next one.
    pub(super) fn command_taken(&self, more: bool) {
        self.untaken_since.set(more.then(Instant::now));
    }

    pub(super) fn fail(&self, reason: &str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.to_owned();
        self.failed.store(true, Ordering::Release);
    }
}
