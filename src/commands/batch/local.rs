//! Runs a batch file with a model in this process.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use axum::http::StatusCode;
use tokio::runtime::Runtime;

use super::progress::BatchProgress;
use crate::batch::offline::{Batch, Ended, StopSignals, Summary};
use crate::commands::serve;
use crate::config::{AdmissionArgs, BatchRunArgs, DeviceName, KeptSettings, ServeArgs};
use crate::device::cpu::use_one_malloc_arena;
use crate::engine::{EngineHandle, EngineThread};
use crate::generation::Generator;
use crate::launch::{self, Prepared};
use crate::machine::check_threads;
use crate::server::{HttpLimits, ServerState, ServerStatus, Settings, line_runner};
use crate::simulator::trace::Recording;
use crate::stdio::{Log, LogHandle};

/// Requests in flight for each sequence that runs: while one half runs, the other waits with its prompt
/// tokenised.
const REQUESTS_PER_SEQUENCE: usize = 2;
/// Bodies that are parsed at once.
const PARSING: usize = 4;

/// Loads the model and runs the file.
pub(super) fn run(
    mut config: ServeArgs,
    run: &BatchRunArgs,
    batch: Batch,
    signals: &StopSignals,
    runtime: &Runtime,
    log: &Log,
) -> anyhow::Result<Summary> {
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    if config.device.device != DeviceName::Cuda {
        use_one_malloc_arena();
    }
    let device = &config.device;
    let device_threads = device.ranks() + device.threads() + device.mask_threads();
    check_threads(device.threads().clamp(1, 4) + device_threads + serve::OTHER_THREADS)?;
    config.admission = AdmissionArgs::unlimited(config.admission.queue_full_status);
    let max_lines = run.concurrency.unwrap_or(REQUESTS_PER_SEQUENCE * config.scheduling.max_num_seqs);
    let found = batch.progress();
    let handle = log.handle();
    let load = runtime.spawn_blocking(move || load(config, handle));
    let loaded = runtime.block_on(async {
        tokio::select! {
            loaded = load => Some(loaded),
            () = signals.stop.cancelled() => None,
        }
    });
    let Some(loaded) = loaded else { return Ok(Summary { ended: Ended::Stopped, progress: found }) };
    let Loaded { engine, thread, prepared, recording } = loaded.context("loading was interrupted")??;
    let state = state(engine.clone(), prepared);
    let mut display = BatchProgress::start(log, found);
    let ended = runtime.block_on(async {
        let run_line = line_runner(&state, PARSING);
        let ended = batch.run(run_line, max_lines, signals, &mut |now| display.show(now)).await;
        engine.stop();
        serve::last_step(&thread).await;
        ended
    });
    display.finish();
    let joined = serve::join(Some(thread));
    recording.map(Recording::finish).transpose().context("--record")?;
    let summary = ended?;
    display.log_total(&summary.progress);
    joined?;
    Ok(summary)
}

/// A running engine and what a server above it needs.
struct Loaded {
    engine: EngineHandle,
    thread: EngineThread,
    prepared: Prepared,
    recording: Option<Recording>,
}

fn load(config: ServeArgs, log: LogHandle) -> anyhow::Result<Loaded> {
    let start = Instant::now();
    let status = ServerStatus::new(config.timeouts.stall_timeout);
    let (mut prepared, devices) = serve::open(config, status, &log.bars)?;
    prepared.log = log;
    let recording = serve::record(&mut prepared, &devices)?;
    serve::log_banner(&prepared, &devices);
    let (engine, thread) = launch::start(devices, &prepared)?;
    tracing::info!("ready in {:.2} s", start.elapsed().as_secs_f64());
    Ok(Loaded { engine, thread, prepared, recording })
}

/// The server's state without a server: it validates requests and writes replies.
fn state(engine: EngineHandle, p: Prepared) -> Arc<ServerState> {
    let max_bytes = p.model.max_positions.saturating_mul(serve::BYTES_PER_TOKEN);
    let generator = Generator::new(engine, p.tokenizer, p.template, max_bytes);
    let KeptSettings { tool_call_parser, reject_unknown_fields } = KeptSettings::of(&p.config);
    // All fields are named: a setting of the server must be passed on here, or is about HTTP alone.
    let settings = Settings {
        models: p.config.model.served_names(),
        model_paths: p.config.model.paths(),
        api_key: None,
        named_keys: Vec::new(),
        metrics_need_key: false,
        allowed_origins: Vec::new(),
        allowed_hosts: Vec::new(),
        defaults: p.defaults,
        scoring: p.scoring,
        eos_ids: p.eos,
        tool_format: tool_call_parser,
        reject_unknown_fields,
        queue_full_status: StatusCode::TOO_MANY_REQUESTS,
        batches: None,
        dropped_log_lines: Arc::clone(&p.log.dropped),
        http: HttpLimits::default(),
    };
    ServerState::new(generator, settings, p.status)
}
