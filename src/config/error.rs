//! The error of an invalid setting.

use std::fmt;

/// An invalid setting.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{setting}: {message}")]
pub struct ConfigError {
    /// The flag, or the path of the configuration file.
    pub setting: String,
    /// The expected value and the value given.
    pub message: String,
}

impl ConfigError {
    pub(super) fn new(setting: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self { setting: setting.to_string(), message: message.to_string() }
    }
}
