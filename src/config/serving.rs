//! The settings of `octant bench serving`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// `octant bench serving`.
#[derive(Debug, Clone, Args)]
pub struct BenchServingArgs {
    /// The server, with or without /v1; plain HTTP only
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// What is asked
    #[arg(long, value_name = "NAME", default_value = "chat")]
    pub endpoint: EndpointName,
    /// The model's name [default: the first that /v1/models lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The server's key
    #[arg(long, value_name = "KEY", env = "OCTANT_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Open loop: requests per second, sent whether or not others have been answered; 1:20 rises evenly over --duration
    #[arg(long, value_name = "R|R:R", required_unless_present = "concurrency")]
    pub rate: Option<RateRange>,
    /// How the intervals of an open loop are distributed
    #[arg(long, value_name = "NAME", default_value = "poisson", requires = "rate")]
    pub arrivals: ArrivalName,
    /// Shape of gamma intervals: below 1 burstier than Poisson, above 1 more regular
    #[arg(long, value_name = "SHAPE", value_parser = positive, required_if_eq("arrivals", "gamma"))]
    pub burstiness: Option<f64>,
    /// Closed loop: so many requests out at all times. With --rate: no more than so many out; later ones wait
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub concurrency: Option<usize>,
    /// Requests at most [default: 100, or as many as there are in --duration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    pub requests: Option<u64>,
    /// Seconds over which requests are due; those that are out then are waited for
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub duration: Option<f64>,
    /// Requests before those that count
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u64).range(..1 << 40))]
    pub warm_up: u64,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = positive)]
    pub timeout: f64,
    /// Of arrivals and made-up prompts; for the server's sampling, see --extra-body
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Prompts: a line each (any name), JSON Lines with `prompt` or `messages` (.jsonl), or ShareGPT's form (.json)
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Without --prompts: about so many tokens of made-up words
    #[arg(long, value_name = "TOKENS", default_value = "128", conflicts_with = "prompts", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000_000))]
    pub prompt_tokens: usize,
    /// How many of those all prompts begin with
    #[arg(long, value_name = "TOKENS", default_value = "0", conflicts_with = "prompts")]
    pub shared_prefix: usize,
    /// Tokens that an answer may have
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_tokens: u64,
    /// Have answers go on to --max-tokens, if the server knows `ignore_eos`
    #[arg(long)]
    pub ignore_eos: bool,
    /// [default: the server's]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// More fields of a request, as a JSON object; they replace what this client would send
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,

    /// A good request has its first token within so many ms of when it was due
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub slo_ttft: Option<f64>,
    /// A good request has no longer gap between chunks, in ms
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub slo_itl: Option<f64>,
    /// A good request takes at most so many ms per token after the first, on average
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub slo_tpot: Option<f64>,
    /// A good request has ended within so many ms of when it was due
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub slo_e2e: Option<f64>,

    /// Write all figures and every request as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a plot as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// An endpoint of OpenAI's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EndpointName {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// A distribution of intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArrivalName {
    /// Exponential intervals.
    Poisson,
    /// Gamma intervals, of the shape --burstiness.
    Gamma,
    /// Intervals all alike.
    Constant,
}

/// Requests per second at the beginning and at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateRange {
    /// At the beginning.
    pub from: f64,
    /// At the end.
    pub to: f64,
}

impl FromStr for RateRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once(':').unwrap_or((text, text));
        Ok(Self { from: positive(from)?, to: positive(to)? })
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if (1e-6..=1e9).contains(&value) => Ok(value),
        _ => Err(format!("`{text}` is no number above 0")),
    }
}
