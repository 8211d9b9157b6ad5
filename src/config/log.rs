//! Settings of the log, the same for every command.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::stdio::{LogFilter, LogFormat};

/// Form and detail of the log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Form of the log on standard error: lines of text, or one JSON object per line
    #[arg(long, env = "OCTANT_LOG_FORMAT", value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Level of the log: off, error, warn, info, debug or trace; also MODULE=LEVEL, separated by commas, such
    /// as info,octant::server=debug. At info, each request has one line; prompts and answers are never logged
    #[arg(long, env = "OCTANT_LOG", value_name = "LEVEL", default_value = "info", global = true)]
    pub log_level: LogFilter,
}

impl ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Text => PossibleValue::new("text"),
            Self::Json => PossibleValue::new("json"),
        })
    }
}
