//! The settings of the commands that convert directories.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Size;

/// `octant quantize`.
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// Hugging Face directory of BF16, F16 or F32 weights
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Directory to write: absent, empty, or begun by this very command
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// What has a scale of its own: each output channel of a weight, or a whole weight
    #[arg(long, value_name = "SCHEME", default_value = "channel")]
    pub scheme: ScaleScheme,
    #[command(flatten)]
    pub(crate) common: ConversionArgs,
}

/// `octant import-nemo`.
#[derive(Debug, Clone, Args)]
pub struct ImportNemoArgs {
    /// Unpacked .nemo directory: model_config.yaml, a SentencePiece model, model_weights
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Directory to write: absent, empty, or begun by this very command
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Write linear weights in FP8, as `quantize` does [default: as they are stored]
    #[arg(long, value_name = "SCHEME")]
    pub quantize: Option<ScaleScheme>,
    /// Leave tokenizer.json and tokenizer_config.json to the operator, as for a SentencePiece model that cannot become
    /// one
    #[arg(long)]
    pub without_tokenizer: bool,
    #[command(flatten)]
    pub(crate) common: ConversionArgs,
}

/// What both have.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConversionArgs {
    /// Size of a file of weights, in bytes or as 8GB
    #[arg(long, value_name = "SIZE", default_value = "8GB")]
    pub(crate) shard_size: Size,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) threads: Option<usize>,
}

/// What of a weight has a scale of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScaleScheme {
    /// Each output channel.
    Channel,
    /// The whole weight.
    Tensor,
}
