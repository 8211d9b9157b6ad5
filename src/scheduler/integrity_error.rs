//! The error of the scheduler's self-check.

/// Two counts of the scheduler's bookkeeping differ, which is a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IntegrityError(String);

/// Fails a check with the counts that differ.
pub(super) fn broken(counts: String) -> Result<(), IntegrityError> {
    Err(IntegrityError(counts))
}
