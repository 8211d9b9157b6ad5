//! The commands of `octant`.

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

use super::parsers::boolean;
use super::{
    BatchFileArgs, BenchHostArgs, BenchKernelsArgs, BenchLatencyArgs, BenchLoadArgs, BenchRankArgs,
    BenchReduceArgs, BenchServingArgs, BenchThroughputArgs, ChatArgs, EvalCommand, ImportNemoArgs, LogArgs,
    PlanArgs, QuantizeArgs, ServeArgs, SimulateArgs, SynthArgs, WithEngine,
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
    /// Serve a model over HTTP until SIGTERM or Ctrl-C.
    Serve(Box<ServeArgs>),
    /// Run a file of requests in the format of OpenAI's Batch API, without HTTP, or by running servers
    /// (--endpoint). After an interruption, the same command resumes: each request gets one record in OUT or
    /// in the error file. The same file gets the same records again, apart from their order. Exits with
    /// status 0 if all requests succeeded, with 3 if some did not, and with 4 after SIGTERM or Ctrl-C, once
    /// the requests that ran have ended.
    Batch(Box<BatchFileArgs>),
    /// Chat in the terminal with the model of a running server. In a pipe, standard input is the message.
    Chat(ChatArgs),
    /// Compute the memory plan and the predicted speed of a model on GPUs, without weights or GPUs. Exits
    /// with status 1 if the model does not fit.
    Plan(PlanArgs),
    /// Simulate serving on a modelled GPU, in virtual time.
    Simulate(Box<SimulateArgs>),
    /// Make synthetic data by a recipe: topics, prompts, dialogues, responses, scores, preference pairs, and
    /// data sets for trainers. After an interruption, the same command resumes.
    Synth(SynthArgs),
    /// Run a benchmark.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Measure a served model by RewardBench, IFEval or perplexity.
    #[command(subcommand)]
    Eval(EvalCommand),
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
    /// Print a script that completes commands and flags in a shell, such as
    /// `octant completions bash > ~/.local/share/bash-completion/completions/octant`.
    #[command(alias = "completion")]
    Completions(CompletionsArgs),
}

/// Arguments of `octant drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The server's admin port, by host name or address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8002")]
    pub(crate) admin: String,
    /// Return only when all open requests have ended; false returns at once
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub(crate) wait: bool,
}

/// Arguments of `octant completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time whole steps of one rank's share of a model with random weights, without the other ranks, against
    /// the time to read its weights and KV cache.
    Rank(BenchRankArgs),
    /// Time operations of a device one by one at the shapes of one rank's share of a model, against the time
    /// to read their bytes: sampling, scores, reward head, attention and the residual stream.
    Kernels(BenchKernelsArgs),
    /// Measure the host cost of scheduler, engine and server, with simulated steps that use no CPU.
    Host(BenchHostArgs),
    /// Compare the time to load a model as `octant serve` does with the time to only read its files.
    Load(BenchLoadArgs),
    /// Measure how many tokens per second the engine computes, without HTTP: all requests are submitted at
    /// once.
    Throughput(Box<WithEngine<BenchThroughputArgs>>),
    /// Measure how long the engine takes for a batch of requests, without HTTP.
    Latency(Box<WithEngine<BenchLatencyArgs>>),
    /// Load-test any server with OpenAI's API, in an open or a closed loop: latencies, throughput, goodput.
    Serving(Box<BenchServingArgs>),
    /// Time all-reduces between GPUs for several numbers of rows: fused with the norm, which every rank
    /// computes whole or in shares; without the norm; and by NCCL. Also time the gathering of shortlists.
    Reduce(BenchReduceArgs),
}
