//! The interface to the code that runs steps on devices.

use std::sync::Arc;
use std::time::Duration;

use crate::scheduler::SchedulerError;
use crate::scheduler::step_plan::{StepOutput, StepPlan};

/// Runs steps in the order in which they are enqueued.
pub trait Executor: Send {
    /// Starts a step and returns without waiting for it. The engine enqueues at most as many steps as its
    /// options allow before it collects one.
    ///
    /// # Errors
    /// The step cannot be started; the engine ends.
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError>;
    /// Waits for the earliest step that is not collected yet.
    ///
    /// # Errors
    /// The step failed; the engine ends.
    fn collect(&mut self) -> Result<StepOutput, EngineError>;
    /// The expected device time of a step, if the executor has a cost model. Metrics compare it with the
    /// measured time.
    fn predict(&self, _plan: &StepPlan) -> Option<Duration> {
        None
    }
}

/// The engine cannot go on: the executor failed, or the scheduler's bookkeeping is wrong. The engine answers
/// every open request with this message and ends.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// The reason, in words for a client.
    pub message: String,
}

impl From<SchedulerError> for EngineError {
    fn from(error: SchedulerError) -> Self {
        Self { message: error.to_string() }
    }
}
