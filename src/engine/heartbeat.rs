//! The engine's heartbeat in atomics: what a health check reads while everything else may be stuck. Nothing here is
//! ever waited for, by the engine or by whoever reads.
//!
//! Times are written by one side and read by the other without a lock. A reader takes the time of its reading first
//! ([`Heartbeat::beat`]): whatever it finds was true at or after that moment, so that a reader that was held up between
//! two reads may find the engine better than it is, and never worse.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Stats;

/// A moment that may be none, set and read without a lock.
#[derive(Debug)]
pub struct AtomicInstant {
    base: Instant,
    /// Nanoseconds after `base`, plus one; 0 is none.
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

    /// Makes it this moment.
    pub fn set(&self, at: Option<Instant>) {
        self.nanos.store(self.code(at), Ordering::Release);
    }

    /// Makes it this moment if it is none.
    pub fn begin(&self, at: Instant) {
        let _begun_before =
            self.nanos.compare_exchange(0, self.code(Some(at)), Ordering::AcqRel, Ordering::Acquire);
    }

    /// The moment.
    pub fn get(&self) -> Option<Instant> {
        let nanos = self.nanos.load(Ordering::Acquire);
        nanos.checked_sub(1).map(|nanos| self.base + Duration::from_nanos(nanos))
    }
}

/// Written by the engine's thread and its handles.
#[derive(Debug, Default)]
pub struct Heartbeat {
    running: AtomicUsize,
    waiting: AtomicUsize,
    last_step: AtomicInstant,
    busy_since: AtomicInstant,
    /// Since when requests have been on their way to the engine's thread without its taking one.
    unheard_since: AtomicInstant,
    expected_step_ns: AtomicU64,
    failed: AtomicBool,
    /// Written once, before `failed` is set, and read only after that: nobody ever waits for this lock.
    reason: Mutex<String>,
}

/// A reading of a [`Heartbeat`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Requests that hold KV blocks.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// When a step last ended.
    pub last_step: Option<Instant>,
    /// Since when there has been work without a pause, taken or still to be taken.
    pub pending_since: Option<Instant>,
    /// What the step that runs is expected to take; 0 where nobody can tell.
    pub expected_step: Duration,
    /// Why the engine failed.
    pub failed: Option<String>,
}

impl Heartbeat {
    /// Reads everything. Take `now`, by which the result is judged, before the call.
    pub fn snapshot(&self) -> Snapshot {
        let failed = self.failed.load(Ordering::Acquire);
        // Before the last step's end: what is found is what was expected of a step that began no later than that.
        let expected_step = Duration::from_nanos(self.expected_step_ns.load(Ordering::Acquire));
        // Work before steps: a step that ends in between makes the engine look better.
        let pending_since = self.busy_since.get().or_else(|| self.unheard_since.get());
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

    /// Whether the engine has failed, which it does for good.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Says what the next steps are expected to take, at most. The bound of a stall is counted from there.
    pub fn expect_step(&self, at_most: Duration) {
        let nanos = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        self.expected_step_ns.store(nanos, Ordering::Release);
    }

    pub(super) fn publish(&self, stats: &Stats) {
        self.running.store(stats.counts.running, Ordering::Relaxed);
        self.waiting.store(stats.counts.waiting, Ordering::Relaxed);
        self.last_step.set(stats.last_step);
        self.busy_since.set(stats.busy_since);
        // After the last step: whoever finds the new bound finds the new time.
        self.expect_step(stats.expected_step);
    }

    pub(super) fn busy(&self, since: Option<Instant>) {
        self.busy_since.set(since);
    }

    /// A request is about to be sent to the engine's thread.
    pub(super) fn asked(&self) {
        self.unheard_since.begin(Instant::now());
    }

    /// The engine's thread has taken a command; `more` are there. One that is being sent at this very moment may go
    /// unnoticed here until the next.
    pub(super) fn heard(&self, more: bool) {
        self.unheard_since.set(more.then(Instant::now));
    }

    pub(super) fn fail(&self, reason: &str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.to_owned();
        self.failed.store(true, Ordering::Release);
    }
}
