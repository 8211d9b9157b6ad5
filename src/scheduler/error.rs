//! The error of the scheduler's self-check.

/// Two records that must agree and do not, with both numbers: a bug in the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IntegrityError(pub(super) String);

impl From<IntegrityError> for String {
    fn from(error: IntegrityError) -> Self {
        error.0
    }
}
