//! Faults of the files of an offline run.

use std::io;
use std::path::{Path, PathBuf};

/// Why an offline run cannot begin or go on. Faults of single lines are records of the error file instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfflineError {
    /// A file cannot be read or written.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The input is not a file that can be read twice.
    #[error("{path}: expected a regular file, which is read twice, got another kind", path = .0.display())]
    NotAFile(PathBuf),
    /// Two of the three files are the same.
    #[error("{path}: expected three different files, got this one twice", path = .0.display())]
    SameFile(PathBuf),
    /// Another process writes to the file.
    #[error("{path}: another process writes to this file", path = .0.display())]
    InUse(PathBuf),
    /// The input has no request.
    #[error("{path}: expected at least one request, got an empty file", path = .0.display())]
    Empty(PathBuf),
    /// The input file was written to while it was read.
    #[error("{path}: the file has changed since the run began", path = .0.display())]
    Changed(PathBuf),
    /// A file of results has a line that this command did not write.
    #[error("{path}: line {line}: {why}", path = .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// Expected and actual content.
        why: String,
    },
    /// A file of results has two records of a line that is no valid request.
    #[error("{path}: expected one record of line {number} of the input, got two", path = .path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The line of the input, counted from 1.
        number: u64,
    },
    /// A task of this process failed.
    #[error("{0}")]
    Internal(String),
}

impl OfflineError {
    /// Names the file of an error.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |error| Self::Io { path: path.to_owned(), error }
    }
}
