//! What is wrong with a checkpoint, for whoever has to mend it: the operator.

use std::path::{Path, PathBuf};

/// A model directory that cannot be served, and why.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that cannot be opened or read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that is not what its name says.
    #[error("{path}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Expected versus got.
        message: String,
    },
    /// A key of a configuration file with a value that cannot be served.
    #[error("{path}: `{key}`: {message}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The JSON key.
        key: String,
        /// Expected versus got.
        message: String,
    },
    /// A tensor that is missing, superfluous, of the wrong shape or type, or holds what it must not.
    #[error("{path}: tensor `{tensor}`: {message}", path = path.display())]
    Tensor {
        /// The file that holds it, or the directory that should.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// Expected versus got.
        message: String,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
}

/// A dimension of the model that cannot be divided between the ranks, as expected versus got.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ShardError(pub(super) String);

impl LoadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), message: message.into() }
    }

    pub(crate) fn config(path: &Path, key: &str, message: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), key: key.to_owned(), message: message.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, message: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), message: message.into() }
    }
}
