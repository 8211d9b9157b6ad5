//! The `octant` binary: wiring only.

use std::process::ExitCode;

use octant::config::{BenchCommand, Cli, Command, ParseError};
use octant::stdio::{Log, closed_by_reader};
use octant::{bench, commands, config};

/// Tokens are allocated on one thread and freed on others. With the system's allocator these frees delay the
/// engine (benches/results/2026-11-24-host-cost.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status for an invalid configuration, the same as clap's.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    // Dropped at the end, also by a panic, which waits a limited time for the last lines.
    let log = Log::start();
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, &log),
    };
    log.subscribe(cli.log.log_format, cli.log.log_level.clone());
    let is_server = matches!(cli.command, Command::Serve(_));
    run(cli, &log).unwrap_or_else(|error| match error {
        error if closed_by_reader(&error) => ExitCode::SUCCESS,
        error if is_server && tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        error => {
            log.print(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    })
}

fn run(cli: Cli, log: &Log) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(args) => commands::serve::run(*args, log),
        Command::Batch(args) => commands::batch::run(*args, log),
        Command::Chat(args) => commands::chat::run(&args, log),
        Command::Plan(args) => commands::plan::run(args, log),
        Command::Simulate(args) => commands::simulate::run(*args, log),
        Command::Synth(args) => commands::synth::run(&args),
        Command::Bench(BenchCommand::Rank(args)) => bench::rank::run(&args, log),
        Command::Bench(BenchCommand::Kernels(args)) => bench::kernels::run(&args),
        Command::Bench(BenchCommand::Host(args)) => bench::host_overhead::run(&args),
        Command::Bench(BenchCommand::Load(args)) => bench::model_loading::run(&args),
        Command::Bench(BenchCommand::Throughput(args)) => commands::bench::throughput(*args, log),
        Command::Bench(BenchCommand::Latency(args)) => commands::bench::latency(*args, log),
        Command::Bench(BenchCommand::Serving(args)) => bench::serving::run(&args, log),
        Command::Bench(BenchCommand::Reduce(args)) => bench::all_reduce::run(&args),
        Command::Eval(command) => commands::eval::run(&command, log),
        Command::Quantize(args) => commands::convert::quantize(args, log),
        Command::ImportNemo(args) => commands::convert::import_nemo(args, log),
        Command::Drain(args) => commands::drain::run(&args),
        Command::Doctor => commands::doctor::run(),
        Command::Completions(args) => commands::completions::run(&args),
    }
}

/// Prints help or version to standard output, or an error to standard error.
fn not_parsed(error: &ParseError, log: &Log) -> ExitCode {
    match error {
        ParseError::CommandLine(error) if !error.use_stderr() => {
            let _closed = error.print();
            ExitCode::SUCCESS
        }
        ParseError::CommandLine(error) => {
            let text = error.render();
            log.print(&if log.is_colored() { text.ansi().to_string() } else { text.to_string() });
            ExitCode::from(BAD_CONFIGURATION)
        }
        ParseError::Setting(error) => {
            log.print(&format!("error: {error}\n"));
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}
