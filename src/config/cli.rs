//! The commands of `octant`.

use clap::{ArgAction, Args, Parser, Subcommand};

use super::{
    BenchHostArgs, BenchLoadArgs, BenchRankArgs, BenchReduceArgs, BenchServingArgs, ImportNemoArgs, LogArgs,
    PlanArgs, QuantizeArgs, ServeArgs, SimulateArgs,
};

/// An FP8 inference server for NVIDIA's Nemotron-4 340B family, with an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "octant", version, about, max_term_width = 110)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// Form and detail of the log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP until SIGTERM or SIGINT.
    Serve(Box<ServeArgs>),
    /// Compute the memory plan and the predicted speed of a model on GPUs, without weights or GPUs. Exits
    /// with status 1 if the model does not fit.
    Plan(PlanArgs),
    /// Simulate serving on a modelled GPU, in virtual time.
    Simulate(Box<SimulateArgs>),
    /// Run a benchmark.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Convert a BF16, F16 or F32 checkpoint to FP8. After an interruption, the same command resumes.
    Quantize(QuantizeArgs),
    /// Convert NVIDIA NeMo files to a Hugging Face directory. After an interruption, the same command
    /// resumes.
    ImportNemo(ImportNemoArgs),
    /// Begin the shutdown of a running server through its --admin-port: it finishes its requests and accepts
    /// no more.
    Drain(DrainArgs),
    /// Check that this machine has what serving needs. Exits with status 1 if something is missing.
    Doctor,
}

/// Arguments of `octant drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The server's admin port, by host name or address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    pub(crate) admin: String,
    /// Return only when all open requests have ended; false returns at once
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set)]
    pub(crate) wait: bool,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time whole steps of one rank's share of a model with random weights, without the other ranks, against
    /// the time to read its weights and KV cache.
    Rank(BenchRankArgs),
    /// Measure the host cost of scheduler, engine and server, with simulated steps that use no CPU.
    Host(BenchHostArgs),
    /// Time loading a model as `octant serve` does, against only reading its files.
    Load(BenchLoadArgs),
    /// Load-test any server with OpenAI's API, in an open or a closed loop: latencies, throughput, goodput.
    Serving(Box<BenchServingArgs>),
    /// Time all-reduces between GPUs by number of rows: fused with the norm (computed on every rank, or by
    /// shares), alone, and NCCL's.
    Reduce(BenchReduceArgs),
}
