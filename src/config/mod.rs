//! Command-line arguments of every command, and the layering of settings for `octant serve`.
//!
//! A setting of `octant serve` is one field in [`serve`], with its default, help text and value parser. Its flag, its
//! environment variable `OCTANT_*` and its key in the TOML file of `--config` have the same name. A flag overrides the
//! environment, the environment overrides the file, and the file overrides the default ([`parse`]).

mod api_keys;
mod bench;
mod bench_serving;
mod cli;
mod convert;
mod dtypes;
mod file;
mod parsers;
mod plan;
mod rules;
mod serve;
mod simulate;
mod size;

use std::fmt;

pub use api_keys::ApiKey;
pub use bench::{BenchHostArgs, BenchLoadArgs, BenchRankArgs, BenchReduceArgs};
pub use bench_serving::{ArrivalName, BenchServingArgs, EndpointName, RateRange};
pub use cli::{BenchCommand, Cli, Command, DrainArgs};
pub use convert::{ImportNemoArgs, QuantizeArgs, ScaleScheme};
pub use dtypes::name;
pub use file::parse;
pub use plan::PlanArgs;
pub use serve::{
    AdmissionArgs, CommunicatorName, DeviceArgs, DeviceName, ModelArgs, NetworkArgs, SchedulingArgs,
    ServeArgs, SimulationArgs, TimeoutArgs,
};
pub use simulate::{MeanAndCv, PolicyArgs, SimulateArgs};
pub use size::Size;

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
    fn new(setting: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self { setting: setting.to_string(), message: message.to_string() }
    }
}
