//! The `octant` binary: wiring only.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use octant::commands;
use octant::config::{BenchCommand, Cli, Command};

/// Tokens are made on one thread and freed on others, which the system's allocator makes the engine wait for
/// (benches/results/2026-11-24-host-cost.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status of a configuration that cannot be meant, as clap's own.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("OCTANT_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log that nobody reads any more must not fail the requests that it tells of.
        .log_internal_errors(false)
        .init();
    let outcome = match cli.command {
        Command::Bench(BenchCommand::Rank(args)) => commands::bench::rank(&args),
        Command::Bench(BenchCommand::Host(args)) => commands::bench_host::run(&args),
        Command::Bench(BenchCommand::Reduce(args)) => commands::reduce::run(&args),
        Command::Quantize(args) => commands::convert::quantize(args),
        Command::ImportNemo(args) => commands::convert::import_nemo(args),
        Command::Bench(BenchCommand::Load(args)) => commands::bench_load::run(&args),
        Command::Bench(BenchCommand::Serving(args)) => commands::bench_serving::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Simulate(args) => commands::simulate::run(&args),
        Command::Drain(args) => commands::drain::run(&args),
        Command::Doctor => return commands::doctor::run(),
        Command::Serve(args) => match args.resolve() {
            Ok(config) => commands::serve::run(config),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(BAD_CONFIGURATION);
            }
        },
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
