//! Arguments of `octant bench` `rank`, `kernels`, `host`, `load` and `reduce`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::DeviceName;
use super::parsers::{at_least_1, boolean, rank_count};
use crate::model::{HeadDtype, Precision};

/// The rank of a model that `octant bench` `rank` and `kernels` measure, and the device.
#[derive(Debug, Clone, Args)]
pub(crate) struct MeasuredRankArgs {
    /// Directory with the model's config.json
    #[arg(long, value_name = "DIR")]
    pub(crate) config: PathBuf,
    /// Tensor-parallel ranks that share the model; one of them is measured
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = rank_count(),
        visible_alias = "tensor-parallel-size"
    )]
    pub(crate) tp: usize,
    /// Device to measure
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,
}

/// Arguments of `octant bench rank`.
#[derive(Debug, Clone, Args)]
pub struct BenchRankArgs {
    /// The rank that is measured.
    #[command(flatten)]
    pub(crate) rank: MeasuredRankArgs,
    /// Use deterministic products only. With false, on CUDA only, cuBLASLt computes products of many rows
    /// if it was measured to be faster
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub(crate) deterministic: bool,
    /// Number of layers [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<usize>,
    /// Decode batch sizes, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32,64,128,256")]
    pub(crate) batch: Vec<usize>,
    /// Context lengths of the decoding sequences, in tokens
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,2048,3500")]
    pub(crate) context: Vec<usize>,
    /// Prompt lengths of the prefill steps, in tokens
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,2048,4096")]
    pub(crate) prefill: Vec<usize>,
    /// Timed steps per decode measurement; prefill takes a tenth of them
    #[arg(long, value_name = "N", default_value = "100", value_parser = at_least_1)]
    pub(crate) reps: usize,
    /// Untimed steps before the timed ones
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) warm_up: usize,
    /// Print all figures as JSON at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `octant bench kernels`.
#[derive(Debug, Clone, Args)]
pub struct BenchKernelsArgs {
    /// The rank that is measured.
    #[command(flatten)]
    pub(crate) rank: MeasuredRankArgs,
    /// Numbers of rows, separated by commas
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,32,256",
        value_parser = at_least_1
    )]
    pub(crate) rows: Vec<usize>,
    /// Positions that each row of attention attends to
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = at_least_1)]
    pub(crate) context: usize,
    /// Measurements of each operation, of which the median is shown
    #[arg(long, value_name = "N", default_value = "20", value_parser = at_least_1)]
    pub(crate) reps: usize,
    /// Print all figures as JSON at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `octant bench host`.
#[derive(Debug, Clone, Args)]
pub struct BenchHostArgs {
    /// Model directory with a tokenizer and config.json; weights are not needed
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Directory with the config.json of the simulated model [default: --model]
    #[arg(long, value_name = "DIR")]
    pub(crate) simulate_config: Option<PathBuf>,
    /// Numbers of concurrent streams, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "64,256,1024")]
    pub(crate) streams: Vec<usize>,
    /// Length of a simulated step, in milliseconds. The last server measurement uses 0 instead
    #[arg(long, value_name = "MS", default_value = "30")]
    pub(crate) step: f64,
    /// Tokens of each answer, which is also the number of engine steps
    #[arg(long, value_name = "TOKENS", default_value = "300")]
    pub(crate) tokens: u32,
    /// Measure only the CPU time of the masks of constrained answers, for a vocabulary of 256,000 tokens:
    /// those of the tokenizer, and pairs of them
    #[arg(long, value_name = "BY")]
    pub(crate) constrained: Option<ConstrainedBy>,
    /// Tokens per stream event, as --stream-interval of `octant serve`
    #[arg(long, value_name = "TOKENS", default_value = "1", value_parser = at_least_1)]
    pub(crate) stream_interval: usize,
    /// Print all figures as JSON at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// The constraint on all answers of `octant bench host --constrained`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConstrainedBy {
    /// Any JSON object
    Json,
    /// A JSON schema of six properties
    Schema,
}

/// Arguments of `octant bench load`.
#[derive(Debug, Clone, Args)]
pub struct BenchLoadArgs {
    /// Hugging Face directory with config.json and *.safetensors; a tokenizer is not needed
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Tensor-parallel ranks that share the model
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = rank_count(),
        visible_alias = "tensor-parallel-size"
    )]
    pub(crate) tp: usize,
    /// Device to load the model onto
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Number format of linear layers: FP8, or the format of the checkpoint
    #[arg(long, value_name = "SCHEME", default_value = "fp8")]
    pub(crate) quantization: Precision,
    /// Element type of an LM head that the checkpoint stores as floats [default: as for `octant serve`]
    #[arg(long, value_name = "TYPE", ignore_case = true)]
    pub(crate) lm_head_dtype: Option<HeadDtype>,
    /// Repetitions of each measurement, in turn
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_1)]
    pub(crate) reps: usize,
}

/// Arguments of `octant bench reduce`.
#[derive(Debug, Clone, Args)]
pub struct BenchReduceArgs {
    /// GPU number of each rank, separated by commas; ranks may share a GPU, except for NCCL
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "0,1,2,3,4,5,6,7")]
    pub(crate) gpus: Vec<usize>,
    /// Elements of a row
    #[arg(long, value_name = "N", default_value = "18432")]
    pub(crate) hidden: usize,
    /// Numbers of rows, separated by commas
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64,128,256,512,2048"
    )]
    pub(crate) rows: Vec<usize>,
}
