//! `octant synth`: runs a recipe for synthetic data, and ends child processes on SIGINT and SIGTERM.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::SynthArgs;
use crate::stdio::results;
use crate::synth::{self, RunOptions, Stop};

/// Exit status of an interrupted run, as of a program that SIGINT ends.
const INTERRUPTED: i32 = 130;

/// Runs the recipe.
pub fn run(args: &SynthArgs) -> anyhow::Result<ExitCode> {
    let folder = args.out.clone().unwrap_or_else(|| args.recipe.with_extension(""));
    ensure!(folder != args.recipe, "--out: expected a folder; the recipe has no ending to leave out");
    let binary = std::env::current_exe().context("the path of this binary")?;
    let stop = Arc::new(Stop::default());
    stop_on_signals(Arc::clone(&stop))?;
    // A closed standard output does not end a run, whose results are files.
    let say = |text: &str| {
        if let Err(error) = results::print(text) {
            tracing::warn!("{error}");
        }
    };
    synth::run(&RunOptions {
        recipe: &args.recipe,
        folder: &folder,
        binary: &binary,
        restart: args.restart,
        dry_run: args.dry_run,
        say: &say,
        stop: &stop,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the process at a signal. What is finished is on the disk, so nothing else has to be saved.
fn stop_on_signals(stop: Arc<Stop>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        tracing::info!("interrupted; run the same command again to resume");
        stop.stop();
        std::process::exit(INTERRUPTED);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}
