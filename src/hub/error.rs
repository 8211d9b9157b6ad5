//! Errors of downloads, for the operator.

use std::path::Path;
use std::time::Duration;

/// The reason why a model cannot be had by name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// The same request may succeed later: a broken connection, a timeout, an overloaded server.
    #[error("{message}")]
    Temporary {
        /// The fault.
        message: String,
        /// The time that the server asks to wait.
        wait: Option<Duration>,
    },
    /// The same request would fail again.
    #[error("{0}")]
    Final(String),
}

impl HubError {
    pub(super) fn temporary(message: impl Into<String>) -> Self {
        Self::Temporary { message: message.into(), wait: None }
    }

    pub(super) fn fatal(message: impl Into<String>) -> Self {
        Self::Final(message.into())
    }

    /// A file of the cache that cannot be read or written.
    pub(super) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Final(format!(
            "{}: {}; HF_HOME or HF_HUB_CACHE names another directory for the cache",
            path.display(),
            text_of(error)
        ))
    }

    pub(super) fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary { .. })
    }

    /// The error with words before and after its message.
    pub(super) fn worded(self, words: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Temporary { message, wait } => Self::Temporary { message: words(message), wait },
            Self::Final(message) => Self::Final(words(message)),
        }
    }
}

/// The text of a system's error, without its number.
pub(super) fn text_of(error: &std::io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error ").unwrap_or(text.len());
    text[..end].to_owned()
}
