//! Arguments of `octant plan`.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::parsers::{boolean, model, position_count, positive_fraction, whole};
use super::speculation::speculate;
use super::{SchedulingArgs, Speculate};
use crate::cost::Hardware;
use crate::model::{HeadDtype, Precision};

/// Arguments of `octant plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Directory with the model's config.json, or ORG/NAME[@REVISION] on the Hugging Face hub;
    /// weights are not needed
    #[arg(long, value_name = "DIR|NAME", alias = "model", value_parser = model())]
    pub(crate) config: PathBuf,
    /// GPUs that share the model
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = whole::<usize>(1, 8),
        visible_alias = "tensor-parallel-size"
    )]
    pub(crate) tp: usize,
    /// GPU model: h100-80gb, h200-141gb, h100-nvl, or a .toml file like models/h100-80gb.toml
    #[arg(long, value_name = "NAME|FILE.toml", default_value = Hardware::H100)]
    pub(crate) gpu: String,
    /// Fraction of the memory that is free when a server starts, for weights, workspace and KV cache
    /// together, as for `octant serve` [default: that of the GPU model]
    #[arg(
        long,
        value_name = "FRACTION",
        value_parser = positive_fraction,
        aliases = ["mem-fraction-static", "cuda-memory-fraction"]
    )]
    pub(crate) gpu_memory_utilization: Option<f64>,
    /// Number format of linear layers: FP8, or the format of the checkpoint
    #[arg(long, value_name = "SCHEME", default_value = "fp8")]
    pub(crate) quantization: Precision,
    /// Element type of an LM head that the checkpoint stores as floats [default: as for `octant serve`]
    #[arg(long, value_name = "TYPE", ignore_case = true)]
    pub(crate) lm_head_dtype: Option<HeadDtype>,
    /// Speculative decoding, as for `octant serve`. The memory of a draft model counts too; `off` and `ngram`
    /// need none. Step times are those without drafts
    #[arg(
        long,
        value_name = "off|ngram|DIR|NAME",
        default_value = "off",
        value_parser = speculate(),
        alias = "speculative-model"
    )]
    pub(crate) speculate: Speculate,
    /// Maximum tokens of a sequence, prompt and answer together [default: the model's own limit]
    #[arg(long, value_name = "TOKENS", value_parser = position_count())]
    pub(crate) max_model_len: Option<usize>,
    /// Maximum sequences that run at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = SchedulingArgs::MAX_NUM_SEQS,
        value_parser = position_count()
    )]
    pub(crate) max_num_seqs: usize,
    /// Maximum tokens per step
    #[arg(
        long,
        value_name = "TOKENS",
        default_value_t = SchedulingArgs::MAX_NUM_BATCHED_TOKENS,
        value_parser = position_count()
    )]
    pub(crate) max_num_batched_tokens: usize,
    /// Assume deterministic products, as `octant serve` uses by default; they read the weights once per 256
    /// rows
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub(crate) deterministic: bool,
    /// Compute steps of at least this many tokens as two batches. With --deterministic true only
    /// [default: one batch]
    #[arg(long, value_name = "TOKENS", value_parser = position_count())]
    pub(crate) two_batch_tokens: Option<usize>,
    /// Decode batch sizes, separated by commas
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,8,32,64,128,256",
        value_parser = position_count()
    )]
    pub(crate) batch: Vec<usize>,
    /// Context lengths of the decoding sequences, in tokens [default: 512, 2048 and 3500, only those below
    /// --max-model-len]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = position_count())]
    pub(crate) context: Option<Vec<usize>>,
    /// Prompt lengths, in tokens [default: 512, 2048 and 4096, only those up to --max-model-len]
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = position_count())]
    pub(crate) prefill: Option<Vec<usize>>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}
