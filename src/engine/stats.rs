//! The stats that the engine's thread published last. Handles read a copy from behind a mutex that is held
//! for the copy only, so that a health check neither waits for a step nor delays one.

use std::time::{Duration, Instant};

use super::admission::QueueSnapshot;
use crate::scheduler::Counts;

/// The engine after its last step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The scheduler's queue, blocks and totals.
    pub counts: Counts,
    /// Steps launched and not collected.
    pub in_flight: usize,
    /// When a step was last collected; `None` before the first.
    pub last_step: Option<Instant>,
    /// The start of the current period of work without a pause; `None` while idle. The device hangs if work
    /// is pending and both this and `last_step` are long past.
    pub busy_since: Option<Instant>,
    /// The longest expected time of a step in flight; 0 where unknown.
    pub expected_step: Duration,
    /// Predicted seconds until the next sequence ends; 0 where unknown.
    pub next_end: f64,
    /// The queue, from which a wait is estimated before the prompt is tokenised.
    pub queue: QueueSnapshot,
    /// Why the engine failed. Once set it stays, and every submit gets
    /// [`crate::request::Reject::EngineDown`].
    pub failed: Option<String>,
}

impl Stats {
    /// Whether any request runs or waits.
    pub fn pending(&self) -> bool {
        self.busy_since.is_some()
    }
}
