//! Arguments of `octant simulate`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;
use clap::Args;

use super::parsers::{
    at_least_0, at_least_1, at_most, boolean, fraction, got, model, rank_count, target_itl, whole,
};
use super::speculation::speculate;
use super::{
    AdmissionArgs, ConfigError, SchedulingArgs, SimulationArgs, Size, Speculate, SpeculationArgs, name,
};
use crate::cost::Hardware;
use crate::device::KvDtype;
use crate::engine::TargetItl;
use crate::model::{HeadDtype, Precision};
use crate::scheduler::{MAX_DRAFTS, Policy};

/// A mean and a coefficient of variation, written `MEAN` or `MEAN:CV`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MeanAndCv {
    /// The mean.
    pub(crate) mean: f64,
    /// Standard deviation divided by the mean. Default 1, the value of an exponential distribution.
    pub(crate) cv: f64,
}

impl FromStr for MeanAndCv {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (mean, cv) = text.split_once(':').unwrap_or((text, "1"));
        match (mean.parse(), cv.parse()) {
            (Ok(mean), Ok(cv)) if (1e-6..=1e9).contains(&mean) && (0.0..=100.0).contains(&cv) => {
                Ok(Self { mean, cv })
            }
            _ => bail!(
                "expected MEAN or MEAN:CV, such as 512 or 512:0.5, with a mean above 0 and a CV from 0 to \
                 100, {}",
                got(text)
            ),
        }
    }
}

/// The scheduler counts in 32 bits.
const MOST: usize = u32::MAX as usize;
/// Maximum number of random requests. More do not fit in memory.
const MOST_REQUESTS: usize = 100_000_000;

/// Help text of a setting that defaults to the recorded value if `--replay` is given.
fn or_recorded(help: &str, default: impl fmt::Display) -> String {
    format!("{help} [default: {default}, or as recorded]")
}

/// Scheduling policy and admission, as settings of `octant serve` of the same names.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(crate) struct PolicyArgs {
    /// Maximum predicted time to first token, in seconds. Requests above it are refused [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_ttft: Option<f64>,
    /// Steps of waiting after which a request's priority improves by one; 0 disables ageing.
    #[arg(
        long,
        value_name = "STEPS",
        help = or_recorded(
            "Steps of waiting after which a request's priority improves by one; 0 disables ageing",
            Policy::default().ageing_steps
        )
    )]
    pub(crate) ageing_steps: Option<u64>,
    /// Maximum preemptions of one request.
    #[arg(
        long,
        value_name = "N",
        help = or_recorded(
            "Maximum preemptions of one request; with 0, a request starts only when all blocks that its \
             max_tokens may need are reserved",
            Policy::default().max_preemptions
        )
    )]
    pub(crate) max_preemptions: Option<u32>,
    /// Fraction of the KV blocks for a request's max_tokens that is reserved when it starts.
    #[arg(
        long,
        value_name = "FRACTION",
        help = or_recorded(
            "Fraction, 0 to 1, of the KV blocks for a request's max_tokens that is reserved when it starts, \
             in addition to those of its prompt. With 1, no request is ever preempted",
            Policy::default().kv_reserve
        )
    )]
    pub(crate) kv_reserve: Option<f32>,
}

impl PolicyArgs {
    /// Validates the numbers.
    ///
    /// # Errors
    /// Names the flag whose number is out of range.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        check_policy(self.max_ttft, self.kv_reserve)
    }
}

/// Validates two numbers, if given. Also used by `octant serve`.
pub(super) fn check_policy(max_ttft: Option<f64>, kv_reserve: Option<f32>) -> Result<(), ConfigError> {
    if let Some(bad) = max_ttft.filter(|seconds| !(*seconds > 0.0 && *seconds <= 1e9)) {
        return Err(ConfigError::new("--max-ttft", format!("expected seconds above 0, got {bad}")));
    }
    if let Some(bad) = kv_reserve.filter(|share| !(0.0..=1.0).contains(share)) {
        return Err(ConfigError::new("--kv-reserve", format!("expected from 0 to 1, got {bad}")));
    }
    Ok(())
}

/// Arguments of `octant simulate`; exactly one of `--poisson`, `--trace` and `--replay` is given.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Directory with the model's config.json, or ORG/NAME[@REVISION] on the Hugging Face hub;
    /// not needed with --replay
    #[arg(
        long,
        value_name = "DIR|NAME",
        required_unless_present = "replay",
        alias = "model",
        value_parser = model()
    )]
    pub(crate) config: Option<PathBuf>,
    /// GPUs that share the model.
    #[arg(
        long,
        value_name = "N",
        value_parser = rank_count(),
        visible_alias = "tensor-parallel-size",
        help = or_recorded("GPUs that share the model", SimulationArgs::RANKS)
    )]
    pub(crate) tp: Option<usize>,
    /// GPU model.
    #[arg(
        long,
        value_name = "NAME",
        help = or_recorded(
            "GPU model: h100-80gb, h200-141gb, h100-nvl, or a .toml file like models/h100-80gb.toml",
            Hardware::H100
        )
    )]
    pub(crate) gpu: Option<String>,
    /// Number format of linear layers.
    #[arg(
        long,
        value_name = "SCHEME",
        help = or_recorded("Number format of linear layers", name(&SimulationArgs::PRECISION))
    )]
    pub(crate) quantization: Option<Precision>,
    /// Element type of the LM head.
    #[arg(
        long,
        value_name = "TYPE",
        help = or_recorded("Element type of the LM head", "as for `octant serve`")
    )]
    pub(crate) lm_head_dtype: Option<HeadDtype>,
    /// Element type of the KV cache.
    #[arg(
        long,
        value_name = "TYPE",
        help = or_recorded("Element type of the KV cache", name(&SimulationArgs::KV))
    )]
    pub(crate) kv_cache_dtype: Option<KvDtype>,
    /// Deterministic products, without cuBLASLt.
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = boolean,
        help = or_recorded(
            "Deterministic products, without cuBLASLt",
            SimulationArgs::DETERMINISTIC
        )
    )]
    pub(crate) deterministic: Option<bool>,
    /// Compute steps of at least this many tokens as two batches. With --deterministic true only [default: as
    /// recorded, else one batch]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_1)]
    pub(crate) two_batch_tokens: Option<usize>,

    /// Random arrivals: requests per second, and the coefficient of variation of their intervals. 1 is a
    /// Poisson process, 0 is constant intervals, above 1 is bursty
    #[arg(long, value_name = "RATE[:CV]", group = "workload")]
    pub(crate) poisson: Option<MeanAndCv>,
    /// Requests from a file: JSON Lines with `at`, `prompt_tokens` or `prompt`, `answer_tokens` and
    /// optionally `priority`; or CSV with TIMESTAMP, ContextTokens and GeneratedTokens
    #[arg(long, value_name = "FILE", group = "workload")]
    pub(crate) trace: Option<PathBuf>,
    /// A recording of `octant serve --record`. Its plans are computed again and must be equal. If any setting
    /// is given, its requests are also simulated with the recorded settings and with the given ones
    #[arg(
        long,
        value_name = "FILE",
        group = "workload",
        required_unless_present_any = ["poisson", "trace"]
    )]
    pub(crate) replay: Option<PathBuf>,
    /// Number of random requests
    #[arg(long, value_name = "N", default_value = "1000", requires = "poisson",
        value_parser = at_most(MOST_REQUESTS, at_least_1))]
    pub(crate) requests: usize,
    /// Prompt length of random requests, in tokens
    #[arg(long, value_name = "MEAN[:CV]", default_value = "512", requires = "poisson")]
    pub(crate) prompt_tokens: MeanAndCv,
    /// Answer length of random requests, in tokens
    #[arg(long, value_name = "MEAN[:CV]", default_value = "256", requires = "poisson")]
    pub(crate) answer_tokens: MeanAndCv,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value = "0", conflicts_with = "replay")]
    pub(crate) seed: u64,

    /// Maximum sequences that run at once.
    #[arg(
        long,
        value_name = "N",
        value_parser = at_most(MOST, at_least_1),
        help = or_recorded("Maximum sequences that run at once", SchedulingArgs::MAX_NUM_SEQS)
    )]
    pub(crate) max_num_seqs: Option<usize>,
    /// Maximum tokens per step.
    #[arg(
        long,
        value_name = "TOKENS",
        value_parser = at_most(MOST, at_least_1),
        help = or_recorded("Maximum tokens per step", SchedulingArgs::MAX_NUM_BATCHED_TOKENS)
    )]
    pub(crate) max_num_batched_tokens: Option<usize>,
    /// Maximum tokens of a sequence [default: the model's own limit, or as recorded]
    #[arg(long, value_name = "TOKENS", value_parser = at_most(MOST, at_least_1))]
    pub(crate) max_model_len: Option<usize>,
    /// Memory of each GPU for the KV cache [default: enough for --max-num-seqs full-length requests, at most
    /// the memory left; or as recorded]
    #[arg(long, value_name = "SIZE")]
    pub(crate) kv_cache_memory: Option<Size>,
    /// Maximum waiting requests.
    #[arg(
        long,
        value_name = "N",
        value_parser = at_most(MOST, at_least_0),
        help = or_recorded("Maximum waiting requests", AdmissionArgs::MAX_QUEUE_REQUESTS)
    )]
    pub(crate) max_queue_requests: Option<usize>,
    /// Maximum prompt tokens of all waiting requests.
    #[arg(
        long,
        value_name = "TOKENS",
        value_parser = at_most(MOST, at_least_0),
        help = or_recorded("Maximum prompt tokens of all waiting requests", AdmissionArgs::MAX_QUEUE_TOKENS)
    )]
    pub(crate) max_queue_tokens: Option<usize>,
    /// Share KV blocks between requests whose prompts begin with the same tokens.
    #[arg(
        long,
        value_name = "BOOL",
        value_parser = boolean,
        help = or_recorded(
            "Share KV blocks between requests whose prompts begin with the same tokens",
            SchedulingArgs::PREFIX_CACHING
        )
    )]
    pub(crate) enable_prefix_caching: Option<bool>,
    /// Target for the inter-token latency of running streams, as of octant serve: seconds, auto or off.
    /// Several targets, separated by commas, are simulated one after another [default: auto, or as recorded]
    #[arg(long, value_name = "SECONDS|auto|off", value_delimiter = ',', value_parser = target_itl)]
    pub(crate) target_itl: Vec<TargetItl>,
    /// Speculative decoding.
    #[arg(
        long,
        value_name = "off|ngram|DIR|NAME",
        value_parser = speculate(),
        help = or_recorded(
            "Speculative decoding: off, ngram, or a draft model, of which config.json is read; drafts are \
             chosen by the cost model's step times",
            "off"
        )
    )]
    pub(crate) speculate: Option<Speculate>,
    /// Maximum drafts of a sequence in one step.
    #[arg(
        long,
        value_name = "N",
        value_parser = whole::<usize>(1, MAX_DRAFTS as u64),
        help = or_recorded("Maximum drafts of a sequence in one step", SpeculationArgs::TOKENS)
    )]
    pub(crate) speculative_tokens: Option<usize>,
    /// Share of the drafts that are accepted, from 0 to 1. With --speculate ngram, answers then repeat their
    /// prompts, and one token in 1/(1 - SHARE) differs; if it is not given, the tokens of answers are random.
    /// With a draft model, the default is 0.7. With --replay, only a draft model has a use for it
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub(crate) acceptance: Option<f32>,
    /// Scheduling policy and admission.
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,

    /// Latency objective for the time to first token, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    pub(crate) slo_ttft: f64,
    /// Latency objective for the mean inter-token latency of a request, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "0.1")]
    pub(crate) slo_itl: f64,
    /// Write the reports to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a plot of the runs to this SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write a plot of the time to first token against the inter-token latency to this SVG file, with a point
    /// for each --target-itl
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub(crate) target_itl_svg: Option<PathBuf>,
    /// Write a plot of predicted against simulated time to first token of each request to this SVG file
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub(crate) forecast_svg: Option<PathBuf>,
}

impl SimulateArgs {
    /// Whether any setting is given that overrides a recorded one.
    pub(crate) fn has_overrides(&self) -> bool {
        self.config.is_some()
            || self.tp.is_some()
            || self.gpu.is_some()
            || self.quantization.is_some()
            || self.lm_head_dtype.is_some()
            || self.kv_cache_dtype.is_some()
            || self.deterministic.is_some()
            || self.two_batch_tokens.is_some()
            || self.max_num_seqs.is_some()
            || self.max_num_batched_tokens.is_some()
            || self.max_model_len.is_some()
            || self.kv_cache_memory.is_some()
            || self.max_queue_requests.is_some()
            || self.max_queue_tokens.is_some()
            || self.enable_prefix_caching.is_some()
            || !self.target_itl.is_empty()
            || self.speculate.is_some()
            || self.speculative_tokens.is_some()
            || self.acceptance.is_some()
            || self.policy != PolicyArgs::default()
    }
}
