//! Errors of a checkpoint, for the operator who has to fix it.

use std::path::{Path, PathBuf};

/// The reason why a model directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be opened or read.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error. It is part of the message, and no source that would be printed again.
        error: std::io::Error,
    },
    /// A file has the wrong contents.
    #[error("{path}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Expected versus got.
        message: String,
    },
    /// A configuration file has a key whose value is not supported.
    #[error("{path}: `{key}`: {message}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The JSON key.
        key: String,
        /// Expected versus got.
        message: String,
    },
    /// A tensor is missing or unexpected, has the wrong shape or dtype, or holds invalid values.
    #[error("{path}: tensor `{tensor}`: {message}", path = path.display())]
    Tensor {
        /// The file that holds the tensor, or the directory that should.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Expected versus got.
        message: String,
    },
    /// A dimension of the model cannot be divided between the ranks, as expected versus got.
    #[error("{0}")]
    Ranks(String),
    /// A GPU description cannot be used. The message names the file and the key, as expected versus got.
    #[error("{0}")]
    Gpu(String),
    /// The device reported an error, for example that memory is short.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
}

impl LoadError {
    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
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
