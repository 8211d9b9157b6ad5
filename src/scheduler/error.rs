//! The error of a scheduler that cannot go on.

/// Two counts of the scheduler's bookkeeping differ, or an output does not fit its step, which is a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SchedulerError(String);

impl SchedulerError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Fails a check with the counts that differ.
pub(super) fn broken(counts: String) -> Result<(), SchedulerError> {
    Err(SchedulerError(counts))
}
