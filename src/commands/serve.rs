//! `octant serve`: starts the engine and the server, and shuts both down.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::http::StatusCode;
use rustix::process::{Resource, Signal, getpid, getrlimit, kill_process, setrlimit};

use crate::batch::Store;
use crate::config::{ApiKey, DeviceName, Host, NetworkArgs, ServeArgs, Speculate};
use crate::device::cpu::{release_freed_memory, use_one_malloc_arena};
use crate::engine::{EngineHandle, EngineThread};
use crate::generation::Generator;
use crate::hub::{self, HubError, ModelName, Part};
use crate::launch::{self, Devices, Prepared, prepare, recording};
use crate::machine::check_threads;
use crate::model::{HeadDtype, Precision, check_directory};
use crate::request::{MAX_PRIORITY, Tenant};
use crate::runner::gib;
use crate::server::api_keys::Caller;
use crate::server::{
    self, DrainTimes, Ended, Listener, ManagementPorts, ServerState, ServerStatus, Settings, Signals, Stage,
};
use crate::server::{BatchSettings, BodyLimits, HttpLimits};
use crate::simulator::trace::Recording;
use crate::stdio::{Log, ProgressBars};

/// Maximum length of a request's text, in bytes per token of the context. Tokens of real tokenizers are
/// shorter on average.
pub(super) const BYTES_PER_TOKEN: usize = 64;

/// Maximum wait for the last step at shutdown, when no client waits for it any more.
const LAST_STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads beside the async runtime's, the ranks', the CPU device's and those for masks: engine, health port,
/// recorder, and the runtime's threads for blocking work.
pub(super) const OTHER_THREADS: usize = 8;
/// Memory of a connection with its request. With 2,000 streams of 300 tokens, 58 KB were measured.
const CONNECTION_BYTES: u64 = 64 << 10;
/// File descriptors for everything except connections; at most a quarter of the allowed ones.
const OTHER_FILES: u64 = 512;

/// Serves until a shutdown is requested by a signal or by the admin port. Exits with status 0 after a
/// shutdown, also during the start, and with 1 after a failure.
pub fn run(config: ServeArgs, log: &Log) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if config.device.device != DeviceName::Cuda {
        use_one_malloc_arena();
    }
    let workers = config.device.threads().clamp(1, 4);
    let device = &config.device;
    let device_threads = device.ranks() + device.threads() + device.mask_threads();
    let stdin_thread = usize::from(config.timeouts.stop_with_stdin);
    check_threads(workers + device_threads + OTHER_THREADS + stdin_thread)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    // The signal handlers are installed first: the kernel drops a signal to process 1 of a container while
    // the process has no handler for the signal.
    let mut signals = runtime.block_on(async { server::signals() }).context("cannot wait for signals")?;
    if config.timeouts.stop_with_stdin {
        stop_with_stdin().context("--stop-with-stdin")?;
    }
    let status = ServerStatus::new(config.timeouts.stall_timeout);
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    // Names are resolved before the model is read, so that a wrong one fails early. A resolver may wait for
    // minutes, so a signal ends the start meanwhile.
    let network = config.network.clone();
    let resolved = runtime.spawn_blocking(move || resolve(&network));
    let Some(resolved) = runtime.block_on(server::unless_shutdown(&status, &mut signals, resolved)) else {
        runtime.shutdown_background();
        return Ok(stopped(Ended::Early, false));
    };
    let (ports, addresses) = resolved.context("resolving was interrupted")??;
    // The ports stay open until the end, so that probes are answered during start and shutdown.
    let management = server::management::start(ports, &status).context("cannot listen for probes")?;
    log_management_ports(&management.ports);
    // Before the model is read or downloaded, so that an address in use fails early and probes are answered
    // meanwhile.
    let listener = runtime.block_on(async { server::bind(&addresses) }).context("cannot listen")?;
    let (opened, bars) = (Arc::clone(&status), log.handle().bars);
    let origins = config.network.allowed_origins.clone();
    let open = runtime.spawn_blocking(move || open(config, opened, &bars));
    let open = server::while_starting(&listener, &status, &origins, open);
    let Some(opened) = runtime.block_on(server::unless_shutdown(&status, &mut signals, open)) else {
        runtime.shutdown_background();
        return Ok(stopped(Ended::Early, false));
    };
    let (mut prepared, devices) = opened.context("reading was interrupted")??;
    prepared.log = log.handle();
    let recording = record(&mut prepared, &devices)?;
    log_banner(&prepared, &devices);
    let outcome = runtime.block_on(load_and_serve(prepared, devices, listener, &mut signals, start));
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

/// Sends this process SIGTERM when standard input ends.
fn stop_with_stdin() -> io::Result<()> {
    let wait = || {
        // An input that cannot be read is at its end, too.
        _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        tracing::info!("standard input has ended");
        _ = kill_process(getpid(), Signal::TERM);
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(wait).map(drop)
}

fn stopped(ended: Ended, in_a_step: bool) -> ExitCode {
    tracing::info!(?ended, in_a_step, "stopped");
    ExitCode::SUCCESS
}

/// Opens the devices, downloads a model given by name, and reads everything but the weights.
pub(super) fn open(
    mut config: ServeArgs,
    status: Arc<ServerStatus>,
    bars: &ProgressBars,
) -> anyhow::Result<(Prepared, Devices)> {
    let name = ModelName::from_path(&config.model.model).map_err(anyhow::Error::msg).context("--model")?;
    if name.is_none() {
        check_directory(&config.model.model).context("--model")?;
    }
    // Before the download, which may take hours.
    let devices = Devices::for_server(&config)?;
    if let Some(name) = name {
        download(&name, &mut config, &status, bars).context("--model")?;
    }
    if let Some(simulated) = &mut config.simulation.simulate_config {
        *simulated = hub::directory(simulated, Part::Configuration, bars).context("--simulate-config")?;
    }
    if let Speculate::Draft(draft) = &mut config.speculation.speculate {
        let part = weights_or_not(config.device.device);
        *draft = hub::directory(draft, part, bars).context("--speculate")?;
        check_directory(draft).context("--speculate")?;
    }
    status.starting(Stage::Reading);
    Ok((prepare(config, &devices, status)?, devices))
}

/// The part of a model that a device needs.
fn weights_or_not(device: DeviceName) -> Part {
    match device {
        DeviceName::Simulate => Part::WithoutWeights,
        DeviceName::Cpu | DeviceName::Cuda => Part::Model,
    }
}

/// Downloads the model as far as it is not in the cache. Its name stays the name that clients use.
fn download(
    name: &ModelName,
    config: &mut ServeArgs,
    status: &ServerStatus,
    bars: &ProgressBars,
) -> Result<(), HubError> {
    let part = weights_or_not(config.device.device);
    status.starting(Stage::Downloading);
    let snapshot =
        hub::fetch(name, part, bars, &mut |progress| status.loading(progress.done, progress.total))?;
    config.model.served_model_name.get_or_insert_with(|| vec![name.id.clone()]);
    config.model.model = snapshot;
    Ok(())
}

/// Starts the recording of `--record`.
pub(super) fn record(p: &mut Prepared, devices: &Devices) -> anyhow::Result<Option<Recording>> {
    let Some(path) = &p.config.simulation.record else { return Ok(None) };
    let (recorder, recording) = recording::record(p, devices, path)?;
    p.recorder = Some(recorder);
    Ok(Some(recording))
}

/// Joins the engine's thread if it has ended, and returns whether it has. Otherwise the thread ends with the
/// process.
pub(super) fn join(thread: Option<EngineThread>) -> anyhow::Result<bool> {
    let Some(thread) = thread.filter(EngineThread::is_finished) else { return Ok(false) };
    thread.join().map_err(|reason| anyhow::anyhow!("the engine failed: {reason}"))?;
    Ok(true)
}

/// Waits for the engine's last step, at most [`LAST_STEP_TIMEOUT`].
pub(super) async fn last_step(thread: &EngineThread) {
    let give_up = Instant::now() + LAST_STEP_TIMEOUT;
    while !thread.is_finished() && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Loads the weights, while probes are answered, and serves.
async fn load_and_serve(
    p: Prepared,
    devices: Devices,
    listener: Listener,
    signals: &mut Signals,
    start: Instant,
) -> anyhow::Result<(Ended, Option<EngineThread>)> {
    let batches = batch_settings(&p.config)?;
    let status = Arc::clone(&p.status);
    let origins = p.config.network.allowed_origins.clone();
    let load = tokio::task::spawn_blocking(move || launch::start(devices, &p).map(|engine| (engine, p)));
    let load = server::while_starting(&listener, &status, &origins, load);
    let Some(loaded) = server::unless_shutdown(&status, signals, load).await else {
        return Ok((Ended::Early, None));
    };
    let ((engine, thread), p) = loaded.context("loading was interrupted")??;
    let started = Started { listener, engine: engine.clone(), batches, start };
    let mut ended = serve(p, started, signals).await?;
    engine.stop();
    if ended != Ended::Forced && !signals.wait_unless_forced(last_step(&thread)).await {
        ended = Ended::Forced;
    }
    Ok((ended, Some(thread)))
}

/// The parts of a server beside its settings.
struct Started {
    listener: Listener,
    engine: EngineHandle,
    batches: Option<BatchSettings>,
    /// When the process started.
    start: Instant,
}

/// Opens the directory of files and batches, before the weights are loaded.
fn batch_settings(config: &ServeArgs) -> anyhow::Result<Option<BatchSettings>> {
    let args = &config.batches;
    let Some(directory) = &args.data_dir else { return Ok(None) };
    let store = Store::open(directory, args.data_dir_max_bytes.0).context("--data-dir")?;
    let max_lines = args.max_batch_lines.unwrap_or(config.scheduling.max_num_seqs);
    Ok(Some(BatchSettings { store: Arc::new(store), max_lines, clock: unix_time }))
}

/// The Unix time in seconds.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

async fn serve(p: Prepared, started: Started, signals: &mut Signals) -> anyhow::Result<Ended> {
    let Started { listener, engine, batches, start } = started;
    let address = p.config.network.host.with_port(listener.local_addr()?.port());
    let max_bytes = p.model.max_positions.saturating_mul(BYTES_PER_TOKEN);
    let generator = Generator::new(engine, p.tokenizer, p.template, max_bytes);
    let mut http = HttpLimits { write_stall: p.config.timeouts.write_timeout, ..HttpLimits::default() };
    http.max_connections = connections(http.max_connections, p.usable.kept_free);
    http.body = body_limits(http.body, p.usable.kept_free);
    let allowed_hosts = p.config.network.allowed_hosts();
    let settings = Settings {
        models: p.config.model.served_names(),
        model_paths: p.config.model.paths(),
        api_key: p.config.network.api_key,
        named_keys: callers(p.config.network.api_keys.as_deref().unwrap_or_default())?,
        metrics_need_key: p.config.network.require_auth_for_metrics,
        allowed_origins: p.config.network.allowed_origins,
        allowed_hosts,
        defaults: p.defaults,
        scoring: p.scoring,
        tool_format: p.config.network.tool_call_parser,
        reject_unknown_fields: p.config.network.reject_unknown_fields,
        queue_full_status: StatusCode::from_u16(p.config.admission.queue_full_status)?,
        batches,
        dropped_log_lines: Arc::clone(&p.log.dropped),
        http,
        ..Settings::new(String::new(), p.eos)
    };
    let state = ServerState::new(generator, settings, p.status);
    release_freed_memory();
    tracing::info!("ready in {:.2} s on http://{address}", start.elapsed().as_secs_f64());
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

/// Limits request bodies to parts of the memory that is kept free: all that arrive at once to a quarter, each
/// to a 64th, since a parsed body takes many times its bytes.
fn body_limits(limits: BodyLimits, kept_free: u64) -> BodyLimits {
    let most = |part: u64| usize::try_from(kept_free / part).unwrap_or(usize::MAX);
    BodyLimits {
        max_bytes: limits.max_bytes.min(most(64)),
        max_total_bytes: limits.max_total_bytes.min(most(4)),
        ..limits
    }
}

/// Returns the number of connections for which there are file descriptors and memory, at most `wanted`. Half
/// of the memory that is kept free is for connections. Raises the process's soft limit of open files as far
/// as needed and allowed.
fn connections(wanted: usize, kept_free: u64) -> usize {
    let needed = wanted as u64 + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let others = OTHER_FILES.min(files / 4);
    let possible = usize::try_from(files - others).unwrap_or(usize::MAX).clamp(1, wanted);
    if possible < wanted {
        tracing::warn!(
            "RLIMIT_NOFILE (`ulimit -n`) allows {files} open files: at most {possible} connections instead \
             of {wanted}"
        );
    }
    let fit = usize::try_from(kept_free / 2 / CONNECTION_BYTES).unwrap_or(usize::MAX).clamp(1, possible);
    if fit < possible {
        let kept_free = gib(kept_free);
        tracing::info!(
            "half of the {kept_free} kept free has room for {fit} connections instead of {possible}"
        );
    }
    fit
}

/// Addresses of the management ports and of the server.
fn resolve(network: &NetworkArgs) -> anyhow::Result<(ManagementPorts, Vec<SocketAddr>)> {
    let ports = management_ports(network)?;
    Ok((ports, network.host.resolve(network.port).context("--host")?))
}

/// Addresses of the health port and of the admin port.
fn management_ports(network: &NetworkArgs) -> anyhow::Result<ManagementPorts> {
    let addresses = |flag: &'static str, host: &Host, port: Option<u16>| {
        port.map_or(Ok(Vec::new()), |port| host.resolve(port)).context(flag)
    };
    Ok(ManagementPorts {
        health: addresses("--host", &network.host, network.health_port)?,
        admin: addresses("--admin-host", &network.admin_host, network.admin_port)?,
    })
}

fn log_management_ports(ports: &ManagementPorts) {
    for (name, addresses) in [("health", &ports.health), ("admin", &ports.admin)] {
        if let Some(address) = addresses.first() {
            tracing::info!("{name:<12}http://{address}");
        }
    }
}

pub(super) fn log_banner(p: &Prepared, devices: &Devices) {
    let precision = match p.precision {
        Precision::Fp8 => "FP8 (E4M3 weights and inputs)",
        Precision::None => "unquantised (BF16 inputs)",
    };
    tracing::info!("model       {} ({})", p.config.model.served_names().join(", "), p.model.architecture);
    tracing::info!("parameters  {:.1} M", p.model.parameters() as f64 / 1e6);
    let head = if p.model.head_dtype == HeadDtype::Fp8 { "LM head FP8, " } else { "" };
    tracing::info!("precision   {precision}, {head}KV cache {:?}", p.kv);
    if let Some(draft) = &p.draft {
        let (parameters, weights) = (draft.model.parameters() as f64 / 1e6, gib(draft.needs.weights));
        tracing::info!("drafts      by {}, {parameters:.1} M parameters, {weights}", draft.dir.display());
    }
    if let Some(scoring) = &p.scoring {
        tracing::info!("score       {scoring}");
    }
    tracing::info!("device      {}", devices.describe());
    let each = if devices.ranks() == 1 { "" } else { "of each rank: " };
    let needs = &p.memory.needs;
    tracing::info!(
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
    tracing::info!("usable      {each}{} ({})", gib(p.usable.bytes), p.usable.from);
    tracing::info!(
        "capacity    {} tokens: {} requests of {} tokens",
        p.memory.kv_tokens(),
        p.memory.full_length_requests(),
        p.model.max_positions,
    );
}
