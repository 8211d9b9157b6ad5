//! Why a call of the store failed.

use std::io;

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The owner has no such file or batch.
    #[error("there is no such file or batch")]
    NotFound,
    /// The directory has no room.
    #[error("{needed} more bytes are needed; {used} of at most {limit} bytes are used or reserved")]
    Full {
        /// Bytes needed.
        needed: u64,
        /// Bytes used and reserved.
        used: u64,
        /// The most bytes.
        limit: u64,
    },
    /// A batch that has not ended uses the file.
    #[error("The batch {0} uses this file and has not ended.")]
    InUse(String),
    /// The batch has ended, with this status.
    #[error("The batch has ended: its status is {0}.")]
    Ended(&'static str),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}
