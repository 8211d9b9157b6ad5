//! The interface to the code that runs steps on devices.

use std::sync::Arc;
use std::time::Duration;

use crate::scheduler::step_plan::{StepOutput, StepPlan};
use crate::scheduler::{IntegrityError, OutputMismatch};

/// Runs steps in the order in which they are enqueued.
pub trait Executor: Send {
    /// Starts a step and returns without waiting for it. The engine enqueues at most as many steps as its
    /// options allow before it collects one.
    ///
    /// # Errors
    /// The step cannot be started; the engine ends.
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), ExecutorError>;
    /// Waits for the earliest step that is not collected yet.
    ///
    /// # Errors
    /// The step failed; the engine ends.
    fn collect(&mut self) -> Result<StepOutput, ExecutorError>;
    /// The expected device time of a step, if the executor has a cost model. Metrics compare it with the
    /// measured time.
    fn predict(&self, _plan: &StepPlan) -> Option<Duration> {
        None
    }
}

/// The executor has failed for good. The engine answers every open request with this message and ends.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ExecutorError {
    /// The reason, in words for a client.
    pub message: String,
}

/// The reason why the engine cannot go on: the executor failed, or the scheduler's bookkeeping is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct EngineFailure(pub String);

impl From<ExecutorError> for EngineFailure {
    fn from(error: ExecutorError) -> Self {
        Self(error.message)
    }
}

impl From<IntegrityError> for EngineFailure {
    fn from(error: IntegrityError) -> Self {
        Self(error.to_string())
    }
}

impl From<OutputMismatch> for EngineFailure {
    fn from(error: OutputMismatch) -> Self {
        Self(error.to_string())
    }
}
