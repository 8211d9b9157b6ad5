//! `octant simulate`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::{ConfigError, KvCacheDtype, Quantization, Size, admission};

/// A mean, and after a colon a coefficient of variation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanAndCv {
    /// The mean.
    pub mean: f64,
    /// Standard deviation by mean; 1 if not given, as of an exponential distribution.
    pub cv: f64,
}

impl FromStr for MeanAndCv {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected MEAN or MEAN:CV, as 512 or 512:0.5, got `{text}`");
        let (mean, cv) = text.split_once(':').unwrap_or((text, "1"));
        let (mean, cv) = (mean.parse().map_err(|_| wrong())?, cv.parse().map_err(|_| wrong())?);
        let sound = (1e-6..=1e9).contains(&mean) && (0.0..=100.0).contains(&cv);
        if sound { Ok(Self { mean, cv }) } else { Err(wrong()) }
    }
}

/// Who waits for whom, and who is refused: as of `octant serve`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct PolicyArgs {
    /// Predicted seconds to a first token above which a request is refused [default: none]
    #[arg(long, value_name = "SECONDS")]
    pub max_ttft: Option<f64>,
    /// Steps of waiting that lift a request by one priority; 0 is never [default: 1000, or as recorded]
    #[arg(long, value_name = "STEPS")]
    pub ageing_steps: Option<u64>,
    /// Times that a running request may be made to give up its KV blocks and be computed again; with 0, all that its
    /// max_tokens may need is reserved before it starts [default: 3, or as recorded]
    #[arg(long, value_name = "N")]
    pub max_preemptions: Option<u32>,
    /// Share of the KV blocks that a request's max_tokens may need, beside its prompt's, that is reserved when it starts;
    /// with 1 nothing is ever preempted [default: 0, or as recorded]
    #[arg(long, value_name = "FRACTION")]
    pub kv_reserve: Option<f32>,
}

impl PolicyArgs {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// Names the flag whose number does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        admission::check(self.max_ttft, self.kv_reserve)
    }
}

/// `octant simulate`: exactly one of `--poisson`, `--trace` and `--replay`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Directory with the model's config.json; not needed with --replay
    #[arg(long, value_name = "DIR", required_unless_present = "replay")]
    pub config: Option<PathBuf>,
    /// GPUs that share the model [default: 8, or as recorded]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub tp: Option<usize>,
    /// GPUs: h100-80gb, or a .toml file as in models/ [default: h100-80gb, or as recorded]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Linear layers in FP8, or in BF16 [default: fp8, or as recorded]
    #[arg(long, value_name = "SCHEME")]
    pub quantization: Option<Quantization>,
    /// Storage of keys and values [default: fp8, or as recorded]
    #[arg(long, value_name = "TYPE")]
    pub kv_cache_dtype: Option<KvCacheDtype>,
    /// Whether tokens never depend on what else runs, for which products of many rows read the weights again and again
    /// [default: true, or as recorded]
    #[arg(long, value_name = "BOOL")]
    pub deterministic: Option<bool>,

    /// Requests per second that come at random, and the coefficient of variation of the times between them: 1 is a
    /// Poisson process, 0 a clock, more comes in bursts
    #[arg(long, value_name = "RATE[:CV]", group = "workload")]
    pub poisson: Option<MeanAndCv>,
    /// Requests from a file: lines of JSON with `at`, `prompt_tokens` or `prompt`, `answer_tokens`, and `priority` where it
    /// is not 0; or CSV with TIMESTAMP, ContextTokens and GeneratedTokens
    #[arg(long, value_name = "FILE", group = "workload")]
    pub trace: Option<PathBuf>,
    /// A recording of `octant serve --record`. Its plans are made again and must be the same. With any setting given, its
    /// requests are also simulated with the settings recorded and with those given
    #[arg(long, value_name = "FILE", group = "workload", required_unless_present_any = ["poisson", "trace"])]
    pub replay: Option<PathBuf>,
    /// Requests that come at random
    #[arg(long, value_name = "N", default_value = "1000", requires = "poisson", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub requests: usize,
    /// Tokens of their prompts
    #[arg(long, value_name = "MEAN[:CV]", default_value = "512", requires = "poisson")]
    pub prompt_tokens: MeanAndCv,
    /// Tokens of their answers
    #[arg(long, value_name = "MEAN[:CV]", default_value = "256", requires = "poisson")]
    pub answer_tokens: MeanAndCv,
    /// What is drawn is a function of this
    #[arg(long, value_name = "N", default_value = "0", conflicts_with = "replay")]
    pub seed: u64,

    /// Sequences that run at once [default: 32, or as recorded]
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<usize>,
    /// Tokens per step [default: 512, or as recorded]
    #[arg(long, value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens of the longest sequence [default: the model's own limit, or as recorded]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
    /// Memory of each GPU for keys and values [default: enough for --max-num-seqs full-length requests, at most what is
    /// left; or as recorded]
    #[arg(long, value_name = "SIZE")]
    pub kv_cache_memory: Option<Size>,
    /// Requests that may wait [default: 1024, or as recorded]
    #[arg(long, value_name = "N")]
    pub max_queue_requests: Option<usize>,
    /// Prompt tokens that may wait [default: 1048576, or as recorded]
    #[arg(long, value_name = "TOKENS")]
    pub max_queue_tokens: Option<usize>,
    /// Share the KV blocks of equal prompt beginnings [default: true, or as recorded]
    #[arg(long, value_name = "BOOL")]
    pub enable_prefix_caching: Option<bool>,
    /// Who waits for whom, and who is refused.
    #[command(flatten)]
    pub policy: PolicyArgs,

    /// Seconds to the first token with which a request counts as served well
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    pub slo_ttft: f64,
    /// Seconds from token to token, on a request's average, with which it does
    #[arg(long, value_name = "SECONDS", default_value = "0.1")]
    pub slo_itl: f64,
    /// Write the reports here as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the runs here as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Draw here, as SVG, each request's time to its first token against what was predicted of it when it came
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub forecast_svg: Option<PathBuf>,
}

impl SimulateArgs {
    /// Whether anything is to be other than as recorded.
    pub fn changes(&self) -> bool {
        self.config.is_some()
            || self.tp.is_some()
            || self.gpu.is_some()
            || self.quantization.is_some()
            || self.kv_cache_dtype.is_some()
            || self.deterministic.is_some()
            || self.max_num_seqs.is_some()
            || self.max_num_batched_tokens.is_some()
            || self.max_model_len.is_some()
            || self.kv_cache_memory.is_some()
            || self.max_queue_requests.is_some()
            || self.max_queue_tokens.is_some()
            || self.enable_prefix_caching.is_some()
            || self.policy != PolicyArgs::default()
    }
}
