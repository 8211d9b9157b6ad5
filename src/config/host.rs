//! The settings of `octant bench host`.

use std::path::PathBuf;

use clap::Args;

/// `octant bench host`.
#[derive(Debug, Clone, Args)]
pub struct BenchHostArgs {
    /// Directory of a model with tokenizer and config.json; weights are not needed
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Directory of the config.json of the model to simulate [default: that of --model]
    #[arg(long, value_name = "DIR")]
    pub simulate_config: Option<PathBuf>,
    /// Streams at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "64,256,1024")]
    pub streams: Vec<usize>,
    /// Milliseconds of a step in all but the last measurement, where steps take no time
    #[arg(long, value_name = "MS", default_value = "30")]
    pub step: f64,
    /// Tokens of each answer, and steps of the engine
    #[arg(long, value_name = "TOKENS", default_value = "300")]
    pub tokens: u32,
    /// As of `octant serve`
    #[arg(long, value_name = "TOKENS", default_value = "1", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub stream_interval: usize,
    /// End with all figures as JSON
    #[arg(long)]
    pub json: bool,
}
