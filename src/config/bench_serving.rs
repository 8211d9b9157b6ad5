//! Arguments of `octant bench serving`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::parsers::{at_least_1, positive, whole};

/// Arguments of `octant bench serving`.
#[derive(Debug, Clone, Args)]
pub struct BenchServingArgs {
    /// Base URL of the server, with or without /v1. For https, SSL_CERT_FILE can name a file of root
    /// certificates
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Endpoint to call
    #[arg(long, value_name = "NAME", default_value = "chat")]
    pub(crate) endpoint: EndpointName,
    /// Model name [default: the first name that /v1/models lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// API key of the server
    #[arg(long, value_name = "KEY", env = "OCTANT_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,

    /// Open loop: requests per second, independent of answers; 1:20 increases linearly from 1 to 20 over
    /// --duration
    #[arg(long, value_name = "R|R:R", required_unless_present = "concurrency")]
    pub(crate) rate: Option<RateRange>,
    /// Distribution of the intervals between requests in an open loop
    #[arg(long, value_name = "NAME", default_value = "poisson", requires = "rate")]
    pub(crate) arrivals: ArrivalName,
    /// Shape of the gamma distribution: below 1 is burstier than Poisson, above 1 is more regular
    #[arg(long, value_name = "SHAPE", value_parser = positive, required_if_eq("arrivals", "gamma"))]
    pub(crate) burstiness: Option<f64>,
    /// Closed loop: number of requests in flight at all times. With --rate: maximum requests in flight; later
    /// ones wait
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub(crate) concurrency: Option<usize>,
    /// Maximum number of requests [default: 100; no limit with --duration]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, 1 << 40))]
    pub(crate) requests: Option<u64>,
    /// Seconds during which requests are sent. Requests in flight at the end are waited for
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub(crate) duration: Option<f64>,
    /// Requests sent before the measured ones
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<u64>(0, 1 << 40))]
    pub(crate) warm_up: u64,
    /// Maximum seconds of one request
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = positive)]
    pub(crate) timeout: f64,
    /// Seed of arrivals and synthetic prompts; for the server's sampling seed, use --extra-body
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,

    /// File of prompts: one per line (any name), JSON Lines with `prompt` or `messages` (.jsonl), or the
    /// ShareGPT format (.json)
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Approximate length of synthetic prompts, in tokens; used without --prompts
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "128",
        conflicts_with = "prompts",
        value_parser = whole::<usize>(1, 10_000_000)
    )]
    pub(crate) prompt_tokens: usize,
    /// Approximate number of leading tokens that all synthetic prompts share
    #[arg(long, value_name = "TOKENS", default_value = "0", conflicts_with = "prompts")]
    pub(crate) shared_prefix: usize,
    /// Maximum tokens of an answer
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "128",
        value_parser = whole::<u64>(1, u64::MAX)
    )]
    pub(crate) max_tokens: u64,
    /// Generate exactly --max-tokens per answer, if the server supports `ignore_eos`
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Sampling temperature [default: the server's]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Extra request fields as a JSON object; they override the fields of this client
    #[arg(long, value_name = "JSON")]
    pub(crate) extra_body: Option<String>,

    /// Goodput objective: maximum time from due time to first token, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub(crate) slo_ttft: Option<f64>,
    /// Goodput objective: maximum gap between chunks, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub(crate) slo_itl: Option<f64>,
    /// Goodput objective: maximum mean time per token after the first, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub(crate) slo_tpot: Option<f64>,
    /// Goodput objective: maximum time from due time to the end of the answer, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub(crate) slo_e2e: Option<f64>,

    /// Write all figures and every request to this JSON file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a plot to this SVG file
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

/// An endpoint of OpenAI's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointName {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// Distribution of intervals between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArrivalName {
    /// Exponential intervals.
    Poisson,
    /// Gamma intervals with the shape --burstiness.
    Gamma,
    /// Constant intervals.
    Constant,
}

/// Request rate, in requests per second, at the start and at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RateRange {
    /// Rate at the start.
    pub(crate) from: f64,
    /// Rate at the end.
    pub(crate) to: f64,
}

impl FromStr for RateRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (from, to) = text.split_once(':').unwrap_or((text, text));
        Ok(Self { from: positive(from)?, to: positive(to)? })
    }
}
