//! Arguments of `octant chat`.

use clap::Args;
use serde_json::{Map, Value};

use super::parsers::{at_least_1, json_object};

/// Arguments of `octant chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Base URL of the server, with or without /v1. For https, SSL_CERT_FILE can name a file of root
    /// certificates
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Model name [default: the first name that /v1/models lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// API key of the server
    #[arg(long, value_name = "KEY", env = "OCTANT_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Sampling temperature [default: the server's]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Share of probability to sample from [default: the server's]
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Number of tokens to sample from [default: the server's]
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<i64>,
    /// Least probability of a token, as a share of the most probable one's [default: the server's]
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Maximum tokens of an answer [default: the server's]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_1)]
    pub(crate) max_tokens: Option<usize>,
    /// Seed of the sampling
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<i64>,
    /// Extra request fields as a JSON object; they override the fields of this client
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub(crate) extra_body: Option<Map<String, Value>>,
}
