//! Errors of the command line and of settings.

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

/// The reason why there are no arguments to run a command with.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// A request for help or for the version, or an invalid flag or variable. Its text is complete.
    #[error("{0}")]
    CommandLine(#[from] clap::Error),
    /// An invalid setting.
    #[error("{0}")]
    Setting(#[from] ConfigError),
}
