//! Records every call that changes the scheduler, with its time. The step loop never waits for the writer: if
//! the queue between them is full, recording ends for good, since a recording with a gap cannot be replayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use smallvec::SmallVec;

use crate::grammar::GrammarProgress;
use crate::request::Request;
use crate::scheduler::step_plan::StepOutput;
use crate::scheduler::{RequestId, StepTimes};

/// A call of the scheduler.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// A group was taken.
    Submit(Vec<(RequestId, Request)>),
    /// A request was aborted.
    Abort(RequestId),
    /// A step was planned.
    Plan {
        /// The plan's id.
        id: u64,
        /// See [`crate::scheduler::step_plan::StepPlan::fingerprint`].
        fingerprint: u64,
        /// The limit on prompt tokens that the scheduler was given.
        prompt_tokens: Option<usize>,
    },
    /// Nothing could be planned. Recorded too, since planning may preempt sequences and refresh cached
    /// prefixes even if it returns no plan.
    NoPlan {
        /// The limit on prompt tokens that the scheduler was given.
        prompt_tokens: Option<usize>,
    },
    /// A step was committed.
    Commit {
        /// The plan's id.
        id: u64,
        /// One entry per row.
        rows: Vec<RecordedRow>,
    },
    /// The times by which drafts are chosen were set.
    StepTimes(StepTimes),
}

/// The parts of a row's output that the scheduler's decisions depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecordedRow {
    /// Ids of the sampled tokens.
    pub tokens: SmallVec<[u32; 2]>,
    /// Drafts that the executor fed.
    pub drafts: SmallVec<[u32; 2]>,
    /// Whether a logit or a value of the reward head was NaN or infinite.
    pub non_finite: bool,
    /// Number of prompt tokens scored.
    pub scores: usize,
    /// Number of values of the reward head.
    pub rewards: usize,
    /// How far the answer has come in its grammar.
    pub grammar: GrammarProgress,
}

impl Event {
    pub(super) fn commit(output: &StepOutput) -> Self {
        let recorded = |row: &crate::scheduler::step_plan::RowOutput| RecordedRow {
            tokens: row.tokens.iter().map(|token| token.id).collect(),
            drafts: row.drafts.iter().copied().collect(),
            non_finite: row.non_finite,
            scores: row.scores.len(),
            rewards: row.reward.as_ref().map_or(0, |values| values.len()),
            grammar: row.grammar.clone(),
        };
        Self::Commit { id: output.id, rows: output.rows.iter().map(recorded).collect() }
    }
}

/// An event with its time, in microseconds since the recording began.
pub type Timed = (u64, Event);

/// The step loop's end of a recording.
#[derive(Debug, Clone)]
pub struct Recorder {
    since: Instant,
    events: Option<flume::Sender<Timed>>,
    incomplete: Arc<AtomicBool>,
}

/// The writer's end of a recording.
#[derive(Debug)]
pub struct Listener {
    /// The events in order. Closed when the engine ends or the recording does.
    pub events: flume::Receiver<Timed>,
    incomplete: Arc<AtomicBool>,
}

impl Listener {
    /// Whether the recording ended early because the queue was full. Valid once `events` is closed.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Acquire)
    }
}

impl Recorder {
    /// Both ends of a recording, with a queue of `capacity` events between them.
    pub fn new(capacity: usize) -> (Self, Listener) {
        let (sender, events) = flume::bounded(capacity);
        let incomplete = Arc::new(AtomicBool::new(false));
        let listener = Listener { events, incomplete: Arc::clone(&incomplete) };
        (Self { since: Instant::now(), events: Some(sender), incomplete }, listener)
    }

    pub(super) fn record(&mut self, event: Event) {
        let Some(events) = &self.events else { return };
        let at = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        match events.try_send((at, event)) {
            Ok(()) => return,
            Err(flume::TrySendError::Full(_)) => {
                self.incomplete.store(true, Ordering::Release);
                tracing::error!("the recording ends here: the file cannot be written as fast as steps run");
            }
            // The writer has logged why it stopped.
            Err(flume::TrySendError::Disconnected(_)) => {}
        }
        self.events = None;
    }
}
