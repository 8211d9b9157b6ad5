//! Command-line arguments of every command, and the layering of settings for `octant serve`.
//!
//! A setting of `octant serve` is one field in [`serve`] or [`devices`], with its default, help text, value
//! parser and other spellings. Its flag, its environment variable `OCTANT_*` and its key in the TOML file of
//! `--config` have the same name. A flag overrides the environment, the environment overrides the file, and
//! the file overrides the default ([`parse`]).

mod api_keys;
mod batch;
mod bench;
mod bench_engine;
mod bench_serving;
mod chat;
mod clap_errors;
mod cli;
mod convert;
mod devices;
mod dtypes;
mod error;
mod eval;
mod file;
mod host;
mod log;
mod origins;
mod other_servers;
mod parse;
mod parsers;
mod plan;
mod rules;
mod scheduling;
mod serve;
mod simulate;
mod size;
mod speculation;
mod spellings;
mod synth;
mod two_batches;

pub(crate) use api_keys::ApiKey;
pub use batch::BatchFileArgs;
pub(crate) use batch::{BatchRunArgs, KeptSettings};
pub(crate) use bench::MeasuredRankArgs;
pub use bench::{
    BenchHostArgs, BenchKernelsArgs, BenchLoadArgs, BenchRankArgs, BenchReduceArgs, ConstrainedBy,
};
pub(crate) use bench_engine::RequestLengths;
pub use bench_engine::{BenchLatencyArgs, BenchThroughputArgs, WithEngine};
pub use bench_serving::BenchServingArgs;
pub(crate) use bench_serving::{ArrivalName, EndpointName};
pub use chat::ChatArgs;
pub use cli::{BenchCommand, Cli, Command, CompletionsArgs, DrainArgs};
pub(crate) use convert::ScaleScheme;
pub use convert::{ImportNemoArgs, QuantizeArgs};
pub(crate) use devices::{CommunicatorName, DeviceName, SimulationArgs};
pub(crate) use dtypes::name;
pub use error::{ConfigError, ParseError};
pub(crate) use eval::EvalServerArgs;
pub use eval::{EvalCommand, EvalIfEvalArgs, EvalPerplexityArgs, EvalRewardBenchArgs};
pub(crate) use host::Host;
pub use log::LogArgs;
pub(crate) use parse::command;
pub use parse::{parse, parse_from};
pub(crate) use parsers::target_itl;
pub use plan::PlanArgs;
pub(crate) use scheduling::{AdmissionArgs, SchedulingArgs};
pub(crate) use serve::NetworkArgs;
pub use serve::ServeArgs;
pub use simulate::SimulateArgs;
pub(crate) use simulate::{MeanAndCv, PolicyArgs};
pub(crate) use size::Size;
pub(crate) use speculation::{Speculate, SpeculationArgs};
pub use synth::SynthArgs;
pub(crate) use two_batches::TwoBatches;
