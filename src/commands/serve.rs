//! `octant serve`: starts the engine and the server, and shuts both down.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::http::StatusCode;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::config::{ApiKey, ServeArgs};
use crate::engine::{EngineHandle, EngineThread};
use crate::generation::Generator;
use crate::launch::{self, Devices, Prepared, prepare, recording};
use crate::model::Precision;
use crate::request::{MAX_PRIORITY, Tenant};
use crate::runner::gib;
use crate::server::HttpLimits;
use crate::server::api_keys::Caller;
use crate::server::validate::Defaults;
use crate::server::{
    self, DrainTimes, Ended, ManagementPorts, ServerState, ServerStatus, Settings, Signals, Stage,
};
use crate::simulator::trace::Recording;

/// Maximum length of a request's text, in bytes per token of the context. Tokens of real tokenizers are
/// shorter on average.
const BYTES_PER_TOKEN: usize = 64;

/// Maximum wait for the last step at shutdown, when no client waits for it any more.
const LAST_STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// File descriptors for everything except connections.
const OTHER_FILES: u64 = 512;

/// Serves until a shutdown is requested by a signal or by the admin port. Exits with status 0 after a
/// shutdown, also during the start, and with 1 after a failure.
pub fn run(config: ServeArgs) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.device.threads().clamp(1, 4))
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    // The signal handlers are installed first: the kernel drops a signal to process 1 of a container while
    // the process has no handler for the signal.
    let mut signals = runtime.block_on(async { server::signals() }).context("cannot wait for signals")?;
    let status = ServerStatus::new(config.timeouts.stall_timeout);
    let ports =
        ManagementPorts { health: config.network.health_address(), admin: config.network.admin_address() };
    // The ports stay open until the end, so that probes are answered during start and shutdown.
    let management = server::management::start(ports, &status).context("cannot listen for probes")?;
    print_management_ports(management.ports);
    let opened = Arc::clone(&status);
    let open = runtime.spawn_blocking(move || open(config, opened));
    let Some(opened) = runtime.block_on(server::unless_shutdown(&status, &mut signals, open)) else {
        runtime.shutdown_background();
        return Ok(stopped(Ended::Early, false));
    };
    let (mut prepared, devices) = opened.context("reading was interrupted")??;
    let recording = record(&mut prepared, &devices)?;
    print_banner(&prepared, &devices);
    let outcome = runtime.block_on(load_and_serve(prepared, devices, &mut signals, start));
    match outcome {
        Ok((Ended::Forced | Ended::Early, _)) => runtime.shutdown_background(),
        _ => runtime.shutdown_timeout(Duration::from_secs(1)),
    }
    let ended = outcome.and_then(|(ended, thread)| join(thread).map(|joined| (ended, joined)));
    // Finishes the recording, also after a failure, unless the engine's thread is still in a step and uses
    // the recording.
    let over = !matches!(ended, Ok((_, false)));
    let recorded = recording.filter(|_| over).map(Recording::finish).transpose().context("--record");
    let (ended, joined) = ended?;
    recorded?;
    Ok(stopped(ended, ended != Ended::Early && !joined))
}

fn stopped(ended: Ended, in_a_step: bool) -> ExitCode {
    tracing::info!(?ended, in_a_step, "stopped");
    ExitCode::SUCCESS
}

/// Opens the devices and reads everything but the weights.
fn open(config: ServeArgs, status: Arc<ServerStatus>) -> anyhow::Result<(Prepared, Devices)> {
    let devices = Devices::for_server(&config)?;
    status.starting(Stage::Reading);
    Ok((prepare(config, &devices, status)?, devices))
}

/// Starts the recording of `--record`.
fn record(p: &mut Prepared, devices: &Devices) -> anyhow::Result<Option<Recording>> {
    let Some(path) = &p.config.simulation.record else { return Ok(None) };
    let (recorder, recording) = recording::record(p, devices, path)?;
    p.recorder = Some(recorder);
    Ok(Some(recording))
}

/// Joins the engine's thread if it has ended, and returns whether it has. Otherwise the thread ends with the
/// process.
fn join(thread: Option<EngineThread>) -> anyhow::Result<bool> {
    let Some(thread) = thread.filter(EngineThread::is_finished) else { return Ok(false) };
    thread.join().map_err(|reason| anyhow::anyhow!("the engine failed: {reason}"))?;
    Ok(true)
}

/// Waits for the engine's last step, at most [`LAST_STEP_TIMEOUT`].
async fn last_step(thread: &EngineThread) {
    let give_up = Instant::now() + LAST_STEP_TIMEOUT;
    while !thread.is_finished() && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Binds the address before loading, so that an address in use fails early and probes are answered during the
/// load.
async fn load_and_serve(
    p: Prepared,
    devices: Devices,
    signals: &mut Signals,
    start: Instant,
) -> anyhow::Result<(Ended, Option<EngineThread>)> {
    let address = p.config.network.address();
    let listener = server::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let status = Arc::clone(&p.status);
    let origins = p.config.network.allowed_origins.clone();
    let load = tokio::task::spawn_blocking(move || launch::start(devices, &p).map(|engine| (engine, p)));
    let load = server::while_starting(&listener, &status, &origins, load);
    let Some(loaded) = server::unless_shutdown(&status, signals, load).await else {
        return Ok((Ended::Early, None));
    };
    let ((engine, thread), p) = loaded.context("loading was interrupted")??;
    let mut ended = serve(p, listener, engine.clone(), signals, start).await?;
    engine.stop();
    if ended != Ended::Forced && !signals.wait_unless_forced(last_step(&thread)).await {
        ended = Ended::Forced;
    }
    Ok((ended, Some(thread)))
}

async fn serve(
    p: Prepared,
    listener: TcpListener,
    engine: EngineHandle,
    signals: &mut Signals,
    start: Instant,
) -> anyhow::Result<Ended> {
    let address = listener.local_addr()?;
    let max_bytes = p.model.max_positions.saturating_mul(BYTES_PER_TOKEN);
    let generator = Generator::new(engine, p.tokenizer, p.template, max_bytes);
    let defaults = Defaults::default();
    let mut http = HttpLimits { write_stall: p.config.timeouts.write_timeout, ..HttpLimits::default() };
    http.max_connections = connections(http.max_connections);
    let settings = Settings {
        models: p.config.model.served_names(),
        model_paths: p.config.model.paths(),
        api_key: p.config.network.api_key,
        named_keys: callers(p.config.network.api_keys.as_deref().unwrap_or_default())?,
        metrics_need_key: p.config.network.require_auth_for_metrics,
        allowed_origins: p.config.network.allowed_origins,
        allowed_hosts: p.config.network.allowed_hosts,
        defaults: Defaults {
            temperature: p.generation.temperature.unwrap_or(defaults.temperature),
            top_p: p.generation.top_p.unwrap_or(defaults.top_p),
            top_k: p.generation.top_k.unwrap_or(defaults.top_k),
            min_p: p.generation.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: p.generation.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        },
        reject_unknown_fields: p.config.network.reject_unknown_fields,
        queue_full_status: StatusCode::from_u16(p.config.admission.queue_full_status)?,
        http,
        ..Settings::new(String::new(), p.generation.eos)
    };
    let state = ServerState::new(generator, settings, p.status);
    eprintln!("ready in {:.2} s on http://{address}", start.elapsed().as_secs_f64());
    let times = DrainTimes { grace: p.config.timeouts.drain_grace, timeout: p.config.timeouts.drain_timeout };
    let watched = Arc::clone(&state);
    tokio::select! {
        ended = server::serve(listener, state, signals, times) => Ok(ended),
        () = engine_death(&watched) => {
            anyhow::bail!("the engine has stopped; exiting so that a supervisor restarts")
        }
    }
}

/// Returns each key with its tenant and priority. The prefix `key:` keeps a key's tenant apart from the
/// tenants that clients name in `user`.
fn callers(keys: &[ApiKey]) -> anyhow::Result<Vec<(String, Caller)>> {
    let caller = |ApiKey { name, key, weight, priority }: &ApiKey| {
        let (most, priority) = (MAX_PRIORITY, *priority);
        let fits = (-most..=most).contains(&priority);
        anyhow::ensure!(
            fits,
            "--api-keys: {name}: expected a priority from -{most} to {most}, got {priority}"
        );
        let tenant = Tenant { name: format!("key:{name}").into(), weight: *weight };
        Ok((key.clone(), Caller { tenant, priority }))
    };
    keys.iter().map(caller).collect()
}

/// Resolves about a second after the engine has failed, so that open requests get their error replies first.
async fn engine_death(state: &ServerState) {
    while !state.engine_failed() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Returns the number of connections for which there are file descriptors, at most `wanted`. Raises the
/// process's soft limit of open files as far as needed and allowed.
fn connections(wanted: usize) -> usize {
    let needed = wanted as u64 + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (files.saturating_sub(OTHER_FILES) as usize).clamp(1, wanted)
}

fn print_management_ports(ports: ManagementPorts) {
    for (name, address) in [("health", ports.health), ("admin", ports.admin)] {
        if let Some(address) = address {
            eprintln!("{name:<12}http://{address}");
        }
    }
}

fn print_banner(p: &Prepared, devices: &Devices) {
    let precision = match p.precision {
        Precision::Fp8 => "FP8 (E4M3 weights and inputs)",
        Precision::None => "unquantised (BF16 inputs)",
    };
    eprintln!("model       {} ({})", p.config.model.served_names().join(", "), p.model.architecture);
    eprintln!("parameters  {:.1} M", p.model.parameters() as f64 / 1e6);
    eprintln!("precision   {precision}, KV cache {:?}", p.kv);
    eprintln!("device      {}", devices.describe());
    let each = if devices.ranks() == 1 { "" } else { "of each rank: " };
    let needs = &p.memory.needs;
    eprintln!(
        "memory      {each}weights {}, activations {}, communication {}, scratch {}, \
         recorded steps {} (estimate), KV cache {} = {} blocks of 64 tokens",
        gib(needs.weights),
        gib(needs.activations),
        gib(needs.communication),
        gib(needs.scratch),
        gib(needs.graphs),
        gib(p.memory.kv_bytes()),
        p.memory.blocks,
    );
    eprintln!(
        "capacity    {} tokens: {} requests of {} tokens",
        p.memory.kv_tokens(),
        p.memory.full_length_requests(),
        p.model.max_positions,
    );
}
