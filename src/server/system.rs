//! Random bits and the wall clock, both from the operating system.

use std::time::{SystemTime, UNIX_EPOCH};

use super::error::ApiError;

/// Returns 64 bits of the operating system's entropy.
///
/// # Errors
/// [`ApiError::Internal`] if the system call fails.
pub(crate) fn random_u64() -> Result<u64, ApiError> {
    let failed = |_| ApiError::Internal("the operating system returned no random bytes".to_owned());
    getrandom::u64().map_err(failed)
}

/// Returns the Unix time in whole seconds; 0 if the clock is set before 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
