//! Errors of a command line, and of an invalid setting.

use std::fmt;

/// The reason why a command line starts no command.
#[derive(Debug, thiserror::Error)]
pub enum NoCommand {
    /// A request for help or the version, or an error in clap's own words.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// An invalid setting.
    #[error("{0}")]
    Setting(#[from] ConfigError),
}

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
