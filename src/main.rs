//! The `octant` binary: wiring only.

use std::io::IsTerminal;
use std::process::ExitCode;

use octant::config::{BenchCommand, Command, ParseError};
use octant::{bench, commands, config};

/// Tokens are allocated on one thread and freed on others. With the system's allocator these frees delay the
/// engine (benches/results/2026-11-24-host-cost.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status for an invalid configuration, the same as clap's.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(ParseError::CommandLine(error)) => error.exit(),
        Err(ParseError::Setting(error)) => {
            eprintln!("error: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("OCTANT_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // If the log's pipe is closed, reporting the failed write would panic and fail a request.
        .log_internal_errors(false)
        .init();
    let outcome = match cli.command {
        Command::Serve(args) => commands::serve::run(*args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Simulate(args) => commands::simulate::run(&args),
        Command::Bench(BenchCommand::Rank(args)) => bench::rank::run(&args),
        Command::Bench(BenchCommand::Host(args)) => bench::host_overhead::run(&args),
        Command::Bench(BenchCommand::Load(args)) => bench::model_loading::run(&args),
        Command::Bench(BenchCommand::Serving(args)) => bench::serving::run(&args),
        Command::Bench(BenchCommand::Reduce(args)) => bench::all_reduce::run(&args),
        Command::Quantize(args) => commands::convert::quantize(args),
        Command::ImportNemo(args) => commands::convert::import_nemo(args),
        Command::Drain(args) => commands::drain::run(&args),
        Command::Doctor => Ok(commands::doctor::run()),
        Command::Completions(args) => commands::completions::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
