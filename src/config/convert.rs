//! Arguments of `octant quantize` and `octant import-nemo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Size;
use super::parsers::{model, whole};

/// Arguments of `octant quantize`.
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// Hugging Face directory with BF16, F16 or F32 weights, or ORG/NAME[@REVISION] on the Hugging Face hub
    #[arg(value_name = "IN", value_parser = model())]
    pub(crate) input: PathBuf,
    /// Output directory: absent, empty, or left by an interrupted run of the same command
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Granularity of scales: one per output channel, or one per weight
    #[arg(long, value_name = "SCHEME", default_value = "channel")]
    pub(crate) scheme: ScaleScheme,
    #[command(flatten)]
    pub(crate) common: ConversionArgs,
}

/// Arguments of `octant import-nemo`.
#[derive(Debug, Clone, Args)]
pub struct ImportNemoArgs {
    /// Unpacked .nemo directory: model_config.yaml, a SentencePiece model, model_weights
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// Output directory: absent, empty, or left by an interrupted run of the same command
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Convert linear weights to FP8 with this granularity of scales [default: no conversion]
    #[arg(long, value_name = "SCHEME")]
    pub(crate) quantize: Option<ScaleScheme>,
    /// Do not write tokenizer.json and tokenizer_config.json, for example if the SentencePiece model cannot
    /// be converted
    #[arg(long)]
    pub(crate) without_tokenizer: bool,
    #[command(flatten)]
    pub(crate) common: ConversionArgs,
}

/// Arguments of both conversions.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConversionArgs {
    /// Maximum size of a weight file, in bytes or with a unit
    #[arg(long, value_name = "SIZE", default_value = "8GB")]
    pub(crate) shard_size: Size,
    /// Worker threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, 1024))]
    pub(crate) threads: Option<usize>,
}

/// Granularity of the scales of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScaleScheme {
    /// One scale per output channel.
    Channel,
    /// One scale per weight matrix.
    Tensor,
}
