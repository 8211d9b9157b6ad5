//! The error of devices and of the groups that they form.

use std::time::Duration;

/// A failure of the device or a bug of this program. It ends the process.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{op}: {message}")]
pub struct DeviceError {
    /// The operation or kernel that failed.
    pub op: &'static str,
    /// The cause.
    pub message: String,
}

/// [`DeviceError::op`] of an error that another rank caused. That rank's own error says more.
pub const PEER: &str = "peer";

impl DeviceError {
    /// The error of a rank whose operation another rank will never reach.
    pub(crate) fn peer_has_ended(rank: usize) -> Self {
        Self { op: PEER, message: format!("rank {rank} has ended") }
    }

    /// The error of a rank whose operation another rank did not reach in time.
    pub(crate) fn peer_is_late(rank: usize, timeout: Duration) -> Self {
        let message = format!("rank {rank} did not come within {} s", timeout.as_secs_f64());
        Self { op: PEER, message }
    }
}
