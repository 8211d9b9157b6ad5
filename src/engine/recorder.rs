//! What the step loop tells of itself while it is recorded: every call of the scheduler that changes it, with a time.
//!
//! The loop never waits for whoever listens. If the queue between them is full, it says no more, for good: a recording
//! with a hole could not be replayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::request::Request;
use crate::scheduler::RequestId;
use crate::scheduler::step_plan::StepOutput;

/// A call of the scheduler.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// A group was taken.
    Submit(Vec<(RequestId, Request)>),
    /// A request was forgotten.
    Abort(RequestId),
    /// A step was planned.
    Plan {
        /// The plan's id.
        id: u64,
        /// Its [`crate::scheduler::step_plan::StepPlan::fingerprint`].
        fingerprint: u64,
    },
    /// Nothing could be planned. Said too, since looking may preempt, or touch what the prefix cache keeps longest.
    NoPlan,
    /// A step was committed.
    Commit {
        /// The plan's id.
        id: u64,
        /// Of each row what the scheduler goes by.
        rows: Vec<Drawn>,
    },
}

/// What the scheduler goes by of a row's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Drawn {
    /// The token drawn.
    pub token: Option<u32>,
    /// Whether there was a NaN or an infinity.
    pub non_finite: bool,
    /// Prompt tokens scored.
    pub scores: usize,
}

impl Event {
    pub(super) fn commit(output: &StepOutput) -> Self {
        let drawn = |row: &crate::scheduler::step_plan::RowOutput| Drawn {
            token: row.token,
            non_finite: row.non_finite,
            scores: row.scores.len(),
        };
        Self::Commit { id: output.id, rows: output.rows.iter().map(drawn).collect() }
    }
}

/// An event and when it was, in microseconds since the recording began.
pub type Timed = (u64, Event);

/// The step loop's end of a recording.
#[derive(Debug, Clone)]
pub struct Recorder {
    since: Instant,
    events: Option<flume::Sender<Timed>>,
    incomplete: Arc<AtomicBool>,
}

/// The listener's end.
#[derive(Debug)]
pub struct Listener {
    /// What happens, in order, until the engine ends or says no more.
    pub events: flume::Receiver<Timed>,
    incomplete: Arc<AtomicBool>,
}

impl Listener {
    /// Whether the engine stopped telling because the queue was full. To be asked when there are no more events.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Acquire)
    }
}

impl Recorder {
    /// Both ends, with room for so many events between them.
    pub fn new(room: usize) -> (Self, Listener) {
        let (sender, events) = flume::bounded(room);
        let incomplete = Arc::new(AtomicBool::new(false));
        let listener = Listener { events, incomplete: Arc::clone(&incomplete) };
        (Self { since: Instant::now(), events: Some(sender), incomplete }, listener)
    }

    pub(super) fn tell(&mut self, event: Event) {
        let Some(events) = &self.events else { return };
        let at = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        match events.try_send((at, event)) {
            Ok(()) => return,
            Err(flume::TrySendError::Full(_)) => {
                self.incomplete.store(true, Ordering::Release);
                tracing::error!(
                    "the recording ends here: it cannot be written as fast as the engine goes on"
                );
            }
            // The listener has said why.
            Err(flume::TrySendError::Disconnected(_)) => {}
        }
        self.events = None;
    }
}
