//! The reasons for which an evaluation ends without a result.

use std::fmt;
use std::io;

use super::request_error::RequestError;

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file, as it was named.
    pub(super) file: String,
    /// Line in the file; the first is 1.
    pub(super) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.file, self.line)
    }
}

/// An evaluation has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EvalError {
    /// A file cannot be read.
    #[error("{file}: {error}")]
    Read {
        /// The file.
        file: String,
        /// The system's error.
        error: io::Error,
    },
    /// A file as a whole is not what was expected.
    #[error("{file}: {message}")]
    File {
        /// The file.
        file: String,
        /// Expected and found content.
        message: String,
    },
    /// A row is not what was expected.
    #[error("{place}: {message}")]
    Row {
        /// The row.
        place: Place,
        /// The field, what was expected and what was found.
        message: String,
    },
    /// A request that a row needs has failed.
    #[error("{place}: {error}")]
    Request {
        /// The row.
        place: Place,
        /// The failure.
        error: RequestError,
    },
    /// A request that no row needs has failed.
    #[error(transparent)]
    Server(#[from] RequestError),
}
