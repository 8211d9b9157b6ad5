//! `octant batch`: runs a file of requests with a model of its own, without HTTP, or by running servers.

mod fields;
mod fleet;
mod local;
mod progress;
mod progress_text;
mod request;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::batch::offline::{Batch, BatchFiles, Ended, StopSignals, Summary};
use crate::config::{BatchFileArgs, BatchRunArgs};
use crate::http_client::Target;
use crate::stdio::Log;
use fleet::{Fleet, FleetLimits};
use progress::BatchProgress;

/// Exit status if some requests have an error.
const SOME_FAILED: u8 = 3;
/// Exit status after SIGTERM or Ctrl-C, if requests are left.
const STOPPED: u8 = 4;
/// Requests in flight of each server.
const REQUESTS_PER_SERVER: usize = 64;
/// Time for what still runs at the end of the process.
const CLOSING: Duration = Duration::from_secs(1);

/// Runs the file. The exit status is 0 if all requests succeeded, [`SOME_FAILED`] if some did not, and
/// [`STOPPED`] after a signal.
pub fn run(args: BatchFileArgs, log: &Log) -> anyhow::Result<ExitCode> {
    let BatchFileArgs { run, model, api_key } = args;
    let files = BatchFiles { input: run.input.clone(), output: run.output.clone(), errors: run.errors() };
    let workers = model.as_ref().map_or(2, |model| model.device.threads().clamp(1, 4));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let signals = StopSignals::default();
    watch_signals(&runtime, &signals)?;
    // Before the model is loaded, so that a fault of the files is found early.
    let batch = Batch::open(files.clone())?;
    let found = batch.progress();
    let left = found.lines - found.succeeded - found.failed;
    tracing::info!("{}: {} requests, {left} of them to run", files.input.display(), found.lines);
    let summary = if left == 0 {
        Ok(Summary { ended: Ended::Complete, progress: found })
    } else if let Some(model) = model {
        local::run(*model, &run, batch, &signals, &runtime, log)
    } else {
        let targets = targets(&run, api_key.as_deref())?;
        runtime.block_on(ask_servers(targets, &run, batch, &signals, log))
    };
    // After a signal the model may still be being loaded.
    runtime.shutdown_timeout(CLOSING);
    let summary = summary?;
    report(&summary, &files, log);
    Ok(match summary.ended {
        Ended::Complete if summary.progress.failed == 0 => ExitCode::SUCCESS,
        Ended::Complete => ExitCode::from(SOME_FAILED),
        Ended::Stopped => ExitCode::from(STOPPED),
        Ended::NoEngine => bail!("the engine has stopped; run the same command to continue"),
    })
}

/// The first signal lets running requests end, the second one gives them up.
fn watch_signals(runtime: &Runtime, signals: &StopSignals) -> anyhow::Result<()> {
    let _context = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let signals = signals.clone();
    runtime.spawn(async move {
        for (is_second, token) in [(false, &signals.stop), (true, &signals.abandon)] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
            if !is_second {
                tracing::info!("stopping: requests that run may end; a second signal gives them up");
            }
        }
    });
    Ok(())
}

fn targets(run: &BatchRunArgs, api_key: Option<&str>) -> anyhow::Result<Vec<Target>> {
    let key = api_key.filter(|key| !key.is_empty());
    let parse = |url: &String| {
        // A name without a scheme is a host.
        let url = if url.contains("://") { url.clone() } else { format!("http://{url}") };
        Target::parse(&url, key).context("--endpoint")
    };
    run.endpoint.iter().map(parse).collect()
}

/// Runs the file by running servers.
async fn ask_servers(
    targets: Vec<Target>,
    run: &BatchRunArgs,
    batch: Batch,
    signals: &StopSignals,
    log: &Log,
) -> anyhow::Result<Summary> {
    let each = run.concurrency.unwrap_or(REQUESTS_PER_SERVER);
    let max_lines = each * targets.len();
    let limits = FleetLimits { each, request: run.request_timeout, give_up: run.give_up };
    let fleet = Fleet::new(targets, limits);
    let mut display = BatchProgress::start(log, batch.progress());
    let run_line = Arc::clone(&fleet).run_line();
    let summary = batch.run(run_line, max_lines, signals, &mut |now| display.show(now)).await;
    display.finish();
    let summary = summary?;
    display.log_total(&summary.progress);
    match fleet.fault() {
        Some(fault) if summary.ended == Ended::NoEngine => bail!("{fault}; run the same command to continue"),
        _ => Ok(summary),
    }
}

/// Prints what the files have now.
fn report(summary: &Summary, files: &BatchFiles, log: &Log) {
    let Summary { progress, .. } = summary;
    let left = progress.lines - progress.succeeded - progress.failed;
    let (output, errors) = (files.output.display(), files.errors.display());
    let mut text =
        format!("{} answers in {output}, {} errors in {errors}", progress.succeeded, progress.failed);
    if left > 0 {
        text.push_str(&format!(", {left} requests left; run the same command to continue"));
    }
    log.print(&(text + "\n"));
}
