//! The subcommands, and the settings of those that measure.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::host::BenchHostArgs;
use super::serving::BenchServingArgs;
use super::{DeviceName, ImportNemoArgs, PlanArgs, Quantization, QuantizeArgs, ServeArgs, SimulateArgs};

/// An FP8 inference server for NVIDIA's Nemotron-4 340B family, with an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "octant", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP until SIGTERM or SIGINT.
    Serve(Box<ServeArgs>),
    /// Say what fits on GPUs, and how fast it would be, by arithmetic: without weights or GPUs. Status 1 if it does not
    /// fit.
    Plan(PlanArgs),
    /// Say what serving requests would be like on GPUs that are not there: in virtual time, without waiting.
    Simulate(Box<SimulateArgs>),
    /// Measure.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write the FP8 checkpoint of a BF16, F16 or F32 one. Given again after it was interrupted, goes on from there.
    Quantize(QuantizeArgs),
    /// Write the Hugging Face directory of NVIDIA's NeMo files. Given again after it was interrupted, goes on from there.
    ImportNemo(ImportNemoArgs),
    /// Have a running server end its requests and take no more, and say when that is done: see --admin-port of serve.
    Drain(DrainArgs),
    /// Say what this machine has of what serving needs. Status 0, or 1 if something is missing.
    Doctor,
}

/// `octant drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The server's admin port, by name or address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    pub admin: String,
    /// Return when no request is open any more, rather than at once
    #[arg(long, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub wait: bool,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Whole steps of one rank's share of a model, with random weights and nothing of the other ranks, against the time
    /// that reading its weights, keys and values would take.
    Rank(BenchRankArgs),
    /// What everything above the device costs: scheduler, engine and server, over steps that take no time of this machine.
    Host(BenchHostArgs),
    /// Loading a model as `serve` does, against reading its files and nothing else.
    Load(BenchLoadArgs),
    /// Any server with OpenAI's API under load, in an open or a closed loop: latencies, throughput, goodput.
    Serving(Box<BenchServingArgs>),
    /// What ranks on GPUs take to add up, by the number of rows: fused with the norm, by every rank and by shares, and as
    /// an all-reduce, also NCCL's.
    Reduce(BenchReduceArgs),
}

/// `octant bench reduce`.
#[derive(Debug, Clone, Args)]
pub struct BenchReduceArgs {
    /// GPUs of the ranks by their numbers; several ranks may share one, but not for NCCL
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "0,1,2,3,4,5,6,7")]
    pub gpus: Vec<usize>,
    /// Elements of a row
    #[arg(long, value_name = "N", default_value = "18432")]
    pub hidden: usize,
    /// Rows
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64,128,256,512,2048"
    )]
    pub rows: Vec<usize>,
}

/// `octant bench rank`.
#[derive(Debug, Clone, Args)]
pub struct BenchRankArgs {
    /// Directory with the model's config.json
    #[arg(long, value_name = "DIR")]
    pub config: PathBuf,
    /// Ranks that share the model
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub tp: usize,
    /// Where to run [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceName>,
    /// Whether products of many rows may not be done by cuBLASLt; on CUDA only
    #[arg(long, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub deterministic: bool,
    /// Layers, rather than the model's number
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Sequences that decode at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32,64,128,256")]
    pub batch: Vec<usize>,
    /// Tokens that each has behind it
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,2048,3500")]
    pub context: Vec<usize>,
    /// Tokens of a prompt
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,2048,4096")]
    pub prefill: Vec<usize>,
    /// Steps that are timed; a tenth of them for prompts
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub reps: usize,
    /// Steps before those
    #[arg(long, value_name = "N", default_value = "20")]
    pub warm_up: usize,
    /// End with all figures as JSON
    #[arg(long)]
    pub json: bool,
}

/// `octant bench load`.
#[derive(Debug, Clone, Args)]
pub struct BenchLoadArgs {
    /// Hugging Face directory: config.json and *.safetensors; a tokenizer is not needed
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Ranks that share the model
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub tp: usize,
    /// Where to load it [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceName>,
    /// Linear layers in FP8, or as the checkpoint stores them [default: fp8]
    #[arg(long, value_name = "SCHEME")]
    pub quantization: Option<Quantization>,
    /// How often each is measured, in turn
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub reps: usize,
}
