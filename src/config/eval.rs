//! Arguments of `octant eval`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::parsers::{at_least_1, json_object, positive, whole};

/// The evaluations.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Score the answers of a RewardBench file with a reward model: the share of better answers that it
    /// prefers, by subset and section. Reads the rows of version 1 or 2 as JSON Lines.
    #[command(name = "rewardbench")]
    RewardBench(EvalRewardBenchArgs),
    /// Answer the prompts of an IFEval file and check the answers by its 25 rules. Reads the data set's rows
    /// as JSON Lines.
    #[command(name = "ifeval")]
    IfEval(EvalIfEvalArgs),
    /// Compute word and byte perplexity and bits per byte of texts, over rolling windows.
    Perplexity(EvalPerplexityArgs),
}

impl EvalCommand {
    /// The JSON file to write.
    pub(crate) fn output(&self) -> Option<&Path> {
        let (Self::RewardBench(EvalRewardBenchArgs { output, .. })
        | Self::IfEval(EvalIfEvalArgs { output, .. })
        | Self::Perplexity(EvalPerplexityArgs { output, .. })) = self;
        output.as_deref()
    }
}

/// The server of an evaluation.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvalServerArgs {
    /// Base URL of the server, with or without /v1. For https, SSL_CERT_FILE can name a file of root
    /// certificates
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Model name [default: the first name that /v1/models lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// API key of the server
    #[arg(long, value_name = "KEY", env = "OCTANT_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Requests in flight at once
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least_1)]
    pub(crate) concurrency: usize,
    /// Maximum seconds of one request
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = positive)]
    pub(crate) timeout: f64,
}

/// Arguments of `octant eval rewardbench`.
#[derive(Debug, Clone, Args)]
pub struct EvalRewardBenchArgs {
    /// Rows of RewardBench (`chosen` is a string) or of RewardBench 2 (`chosen` is an array), as JSON Lines
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Weights of the attributes in the score, as a JSON object [default: the server's]
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub(crate) weights: Option<Map<String, Value>>,
    /// Write all figures and the scores of every row to this JSON file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The server.
    #[command(flatten)]
    pub(crate) server: EvalServerArgs,
}

/// Arguments of `octant eval ifeval`.
#[derive(Debug, Clone, Args)]
pub struct EvalIfEvalArgs {
    /// Prompts with `key`, `prompt`, `instruction_id_list` and `kwargs`, as JSON Lines
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Score the answers of this file and use no server: JSON Lines with `prompt` and `response`
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["url", "model", "concurrency", "timeout", "max_tokens"]
    )]
    pub(crate) responses: Option<PathBuf>,
    /// Maximum tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value = "1280", value_parser = at_least_1)]
    pub(crate) max_tokens: usize,
    /// Write all figures and every answer to this JSON file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The server.
    #[command(flatten)]
    pub(crate) server: EvalServerArgs,
}

/// Arguments of `octant eval perplexity`.
#[derive(Debug, Clone, Args)]
pub struct EvalPerplexityArgs {
    /// JSON Lines with `text` (.jsonl), or one text (any other name). Words and bytes are those of
    /// `original` if a row has it
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Maximum tokens of a window, with its context; lm-eval's local-completions takes its max_length less 1
    /// [default: the server's longest context]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(2, 1 << 31))]
    pub(crate) max_length: Option<usize>,
    /// Id of the token before each text [default: the tokenizer's BOS, or else its EOS]
    #[arg(long, value_name = "ID")]
    pub(crate) prefix_token: Option<u32>,
    /// Write all figures and those of every text to this JSON file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The server.
    #[command(flatten)]
    pub(crate) server: EvalServerArgs,
}
