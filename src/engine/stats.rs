//! What the engine last said about itself: a snapshot behind a mutex that is held for a copy and never longer, so
//! that a health check neither waits for a step nor delays one.

use std::time::{Duration, Instant};

use crate::scheduler::Counts;

/// The engine at the end of its last step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The scheduler's queue, blocks and totals.
    pub counts: Counts,
    /// Steps enqueued and not collected.
    pub in_flight: usize,
    /// When a step was last collected; `None` before the first.
    pub last_step: Option<Instant>,
    /// Since when there has been work without a pause; `None` while idle. Work that is pending while `last_step`
    /// and this are both long past means that the device hangs.
    pub busy_since: Option<Instant>,
    /// What the steps in flight are expected to take each, at most; 0 where nobody can tell.
    pub expected_step: Duration,
    /// Seconds until another sequence is predicted to end; 0 where nobody can tell.
    pub next_end: f64,
    /// Why the engine failed. Once set it stays, and every submit gets [`crate::request::Reject::EngineDown`].
    pub failed: Option<String>,
}

impl Stats {
    /// Whether any request runs or waits.
    pub fn pending(&self) -> bool {
        self.busy_since.is_some()
    }
}
