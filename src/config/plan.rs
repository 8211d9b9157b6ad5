//! The settings of `octant plan`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::Quantization;

/// A number of something of which there is at least one. Below 2^31, so that sums of two are positions.
fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..1 << 31)
}

/// `octant plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Directory with the model's config.json; weights are not needed
    #[arg(long, value_name = "DIR")]
    pub config: PathBuf,
    /// GPUs that share the model
    #[arg(long, value_name = "N", default_value = "1", value_parser = RangedU64ValueParser::<usize>::new().range(1..=8))]
    pub tp: usize,
    /// What each is: h100-80gb, or a TOML file of its figures
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "h100-80gb")]
    pub gpu: String,
    /// Linear layers in FP8, or as the checkpoint stores them
    #[arg(long, value_name = "SCHEME", default_value = "fp8")]
    pub quantization: Quantization,
    /// Tokens of the longest sequence, prompt and answer together [default: the model's own limit]
    #[arg(long, value_name = "TOKENS", value_parser = count())]
    pub max_model_len: Option<usize>,
    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value = "32", value_parser = count())]
    pub max_num_seqs: usize,
    /// Tokens per step
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = count())]
    pub max_num_batched_tokens: usize,
    /// Whether products are deterministic, as `serve` has it: more than 128 rows read the weights again for each so many
    #[arg(long, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub deterministic: bool,
    /// Sequences that decode at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32,64,128,256", value_parser = count())]
    pub batch: Vec<usize>,
    /// Tokens that each has behind it [default: 512,2048,3500, as far as the longest sequence goes]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = count())]
    pub context: Option<Vec<usize>>,
    /// Tokens of a prompt [default: 512,2048,4096, as far as the longest sequence goes]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = count())]
    pub prefill: Option<Vec<usize>>,
    /// Everything as one JSON object, instead of tables
    #[arg(long)]
    pub json: bool,
}
