//! Command-line arguments of every command, and the layering of settings for `octant serve`.
//!
//! A setting of `octant serve` is one field in [`serve`], with its default, help text and value parser. Its
//! flag, its environment variable `OCTANT_*` and its key in the TOML file of `--config` have the same name. A
//! flag overrides the environment, the environment overrides the file, and the file overrides the default
//! ([`parse`]).

mod api_keys;
mod bench;
mod bench_serving;
mod cli;
mod convert;
mod dtypes;
mod error;
mod file;
mod origins;
mod parsers;
mod plan;
mod rules;
mod serve;
mod simulate;
mod size;

pub(crate) use api_keys::ApiKey;
pub use bench::{BenchHostArgs, BenchLoadArgs, BenchRankArgs, BenchReduceArgs};
pub use bench_serving::BenchServingArgs;
pub(crate) use bench_serving::{ArrivalName, EndpointName};
pub use cli::{BenchCommand, Cli, Command, DrainArgs};
pub(crate) use convert::ScaleScheme;
pub use convert::{ImportNemoArgs, QuantizeArgs};
pub(crate) use dtypes::name;
pub use error::ConfigError;
pub use file::parse;
pub use plan::PlanArgs;
pub use serve::ServeArgs;
pub(crate) use serve::{AdmissionArgs, CommunicatorName, DeviceName, SchedulingArgs, SimulationArgs};
pub use simulate::SimulateArgs;
pub(crate) use simulate::{MeanAndCv, PolicyArgs};
pub(crate) use size::Size;
