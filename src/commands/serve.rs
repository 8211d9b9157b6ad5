//! `octant serve`: from a configuration to a server that has drained.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::http::StatusCode;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

use super::devices::{self, Devices};
use super::simulated;
use crate::config::{ApiKey, Config, KvCacheDtype, Quantization};
use crate::device::KvDtype;
use crate::engine::{EngineHandle, EngineThread, Recorder};
use crate::generation::Generator;
use crate::model::{GenerationConfig, ModelConfig, Precision, StepRoom};
use crate::request::{MAX_PRIORITY, Tenant};
use crate::runner::{MemoryNeeds, MemoryPlan, gib};
use crate::server::HttpLimits;
use crate::server::middleware::Caller;
use crate::server::validate::Defaults;
use crate::server::{
    self, DrainTimes, Ended, ManagementPorts, ServerState, ServerStatus, Settings, Signals, Stage,
};
use crate::simulator::trace::Recording;
use crate::text::{ChatTemplate, Tokenizer};

/// Bytes of text per token of context that a request may have: no tokenizer in use is that verbose.
const BYTES_PER_TOKEN: usize = 64;

/// What the last step may take once nobody waits for it.
const LAST_STEP: Duration = Duration::from_secs(5);
/// File descriptors for all else than connections.
const OTHER_FILES: u64 = 512;

/// What is known before any weight is read.
pub struct Prepared {
    /// What the operator said.
    pub config: Config,
    /// The architecture, its longest sequence as the operator said.
    pub model: ModelConfig,
    /// Defaults of the model's own.
    pub generation: GenerationConfig,
    /// What becomes of linear weights.
    pub precision: Precision,
    /// Element type of the KV cache.
    pub kv: KvDtype,
    /// What fits.
    pub memory: MemoryPlan,
    /// Where starting says how far it has got.
    pub status: Arc<ServerStatus>,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Hears what the engine does.
    pub recorder: Option<Recorder>,
    template: Option<ChatTemplate>,
}

/// Serves until told to stop. 0 when told to, however far it had got, 1 after a failure.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads.clamp(1, 4))
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    // From the first moment: the first process of a container never hears of a signal that it has no handler for.
    let mut signals = runtime.block_on(async { server::signals() }).context("cannot wait for signals")?;
    let status = ServerStatus::new(config.stall_timeout);
    let ports = ManagementPorts { health: config.health_address, admin: config.admin_address };
    // From the first to the last moment.
    let side = server::management::start(ports, &status).context("cannot listen for probes")?;
    print_side_ports(side.ports);
    let opened = Arc::clone(&status);
    let open = runtime.spawn_blocking(move || open(config, opened));
    let Some(opened) = runtime.block_on(server::unless_told_to_end(&status, &mut signals, open)) else {
        runtime.shutdown_background();
        return Ok(stopped(Ended::Early, false));
    };
    let (mut prepared, place) = opened.context("reading was interrupted")??;
    let recording = record(&mut prepared, &place)?;
    print_banner(&prepared, &place);
    let outcome = runtime.block_on(load_and_serve(prepared, place, &mut signals, start));
    match outcome {
        Ok((Ended::Forced | Ended::Early, _)) => runtime.shutdown_background(),
        _ => runtime.shutdown_timeout(Duration::from_secs(1)),
    }
    let ended = outcome.and_then(|(ended, thread)| join(thread).map(|whole| (ended, whole)));
    // Also after a failure, which is when a recording is wanted most; but an engine in the middle of a step still has it.
    let over = !matches!(ended, Ok((_, false)));
    let recorded = recording.filter(|_| over).map(Recording::finish).transpose().context("--record");
    let (ended, whole) = ended?;
    recorded?;
    Ok(stopped(ended, ended != Ended::Early && !whole))
}

fn stopped(ended: Ended, in_a_step: bool) -> ExitCode {
    tracing::info!(?ended, in_a_step, "stopped");
    ExitCode::SUCCESS
}

/// Everything but the weights.
fn open(config: Config, status: Arc<ServerStatus>) -> anyhow::Result<(Prepared, Devices)> {
    let place = Devices::open(&config)?;
    status.starting(Stage::Reading);
    Ok((prepare(config, &place, status)?, place))
}

/// Begins a recording if one is asked for.
fn record(p: &mut Prepared, place: &Devices) -> anyhow::Result<Option<Recording>> {
    let Some(path) = p.config.record.clone() else { return Ok(None) };
    let (recorder, recording) =
        simulated::record(p, place.ranks(), devices::scheduler(p), place.in_flight(), &path)?;
    p.recorder = Some(recorder);
    Ok(Some(recording))
}

/// Says whether the engine's thread, where there is one, has ended; else it goes down with the process.
fn join(thread: Option<EngineThread>) -> anyhow::Result<bool> {
    let Some(thread) = thread.filter(EngineThread::is_finished) else { return Ok(false) };
    thread.join().map_err(|reason| anyhow::anyhow!("the engine failed: {reason}"))?;
    Ok(true)
}

/// Waits for the engine's last step, and not for ever.
async fn last_step(thread: &EngineThread) {
    let give_up = Instant::now() + LAST_STEP;
    while !thread.is_finished() && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Listens from the first, so that an address in use shows before weights are loaded, and probes get an answer while
/// they are.
async fn load_and_serve(
    p: Prepared,
    place: Devices,
    signals: &mut Signals,
    start: Instant,
) -> anyhow::Result<(Ended, Option<EngineThread>)> {
    let listener =
        server::bind(p.config.address).with_context(|| format!("cannot listen on {}", p.config.address))?;
    let status = Arc::clone(&p.status);
    let load = tokio::task::spawn_blocking(move || place.start(&p).map(|engine| (engine, p)));
    let load = server::while_starting(&listener, &status, load);
    let Some(loaded) = server::unless_told_to_end(&status, signals, load).await else {
        return Ok((Ended::Early, None));
    };
    let ((engine, thread), p) = loaded.context("loading was interrupted")??;
    let mut ended = serve(p, listener, engine.clone(), signals, start).await?;
    engine.stop();
    if ended != Ended::Forced && !signals.leave_time_for(last_step(&thread)).await {
        ended = Ended::Forced;
    }
    Ok((ended, Some(thread)))
}

/// Reads everything but the weights, and refuses what cannot be served.
fn prepare(config: Config, place: &Devices, status: Arc<ServerStatus>) -> anyhow::Result<Prepared> {
    let simulated = config.simulation.as_ref().and_then(|simulation| simulation.config.as_ref());
    let mut model = ModelConfig::from_dir(simulated.unwrap_or(&config.model))?;
    // Its other head, for tokens, was not trained: answers would be noise.
    anyhow::ensure!(
        !model.reward,
        "--model: {} is a reward model, which is not served yet",
        config.model.display()
    );
    if let Some(len) = config.max_model_len {
        let limit = model.max_positions;
        anyhow::ensure!(len <= limit, "--max-model-len: expected at most the model's {limit}, got {len}");
        model.max_positions = len;
    }
    let precision = match config.quantization {
        Quantization::Fp8 => Precision::Fp8,
        Quantization::None => Precision::None,
    };
    let kv = match config.kv_cache_dtype {
        KvCacheDtype::Fp8 => KvDtype::Fp8,
        KvCacheDtype::Bf16 => KvDtype::Bf16,
    };
    let share = model.share(place.ranks()).map_err(anyhow::Error::msg).context("--tensor-parallel-size")?;
    let room = StepRoom {
        ranks: place.ranks(),
        rows: config.max_num_batched_tokens,
        slots: config.max_num_seqs,
        deterministic: config.deterministic,
    };
    let needs = MemoryNeeds::new(&share, &place.layout(), precision, kv, &room);
    let memory = MemoryPlan::new(
        needs,
        place.memory()?,
        config.kv_cache_memory,
        model.max_positions,
        config.max_num_seqs,
    )
    .context("the model does not fit; lower --max-model-len, --max-num-seqs or --kv-cache-memory")?;
    let mut generation = GenerationConfig::from_dir(&config.model)?;
    let tokenizer = Arc::new(Tokenizer::from_dir(&config.model)?);
    let vocab = model.vocab.min(tokenizer.vocab_size());
    generation.eos = generation.eos_within(tokenizer.eos(), vocab)?;
    let template = ChatTemplate::from_dir(&config.model, &tokenizer)?;
    let recorder = None;
    Ok(Prepared { config, model, generation, precision, kv, memory, status, tokenizer, recorder, template })
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
    let mut http = HttpLimits { write_stall: p.config.write_timeout, ..HttpLimits::default() };
    http.max_connections = connections(http.max_connections);
    let settings = Settings {
        models: p.config.served_names,
        api_key: p.config.api_key,
        named_keys: callers(p.config.admission.keys)?,
        defaults: Defaults {
            temperature: p.generation.temperature.unwrap_or(defaults.temperature),
            top_p: p.generation.top_p.unwrap_or(defaults.top_p),
            top_k: p.generation.top_k.unwrap_or(defaults.top_k),
            min_p: p.generation.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: p.generation.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        },
        reject_unknown_fields: p.config.reject_unknown_fields,
        queue_full_status: StatusCode::from_u16(p.config.queue_full_status)?,
        http,
        ..Settings::new(String::new(), p.generation.eos)
    };
    let state = ServerState::new(generator, settings, p.status);
    eprintln!("ready in {:.2} s on http://{address}", start.elapsed().as_secs_f64());
    let times = DrainTimes { grace: p.config.drain_grace, timeout: p.config.drain_timeout };
    let watched = Arc::clone(&state);
    tokio::select! {
        ended = server::serve(listener, state, signals, times) => Ok(ended),
        () = engine_death(&watched) => anyhow::bail!("the engine has stopped; exiting so that a supervisor restarts"),
    }
}

/// Keys as the server's door knows them. A name of a key is not a name that a client could choose.
fn callers(keys: Vec<ApiKey>) -> anyhow::Result<Vec<(String, Caller)>> {
    let caller = |ApiKey { name, key, weight, priority }| {
        let most = MAX_PRIORITY;
        let fits = (-most..=most).contains(&priority);
        anyhow::ensure!(
            fits,
            "--api-keys: {name}: expected a priority from -{most} to {most}, got {priority}"
        );
        let tenant = Tenant { name: format!("key:{name}").into(), weight };
        Ok((key, Caller { tenant, priority }))
    };
    keys.into_iter().map(caller).collect()
}

/// Resolves some moments after the engine has failed: open requests get their errors out first.
async fn engine_death(state: &ServerState) {
    while !state.engine_failed() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// How many connections there are file descriptors for, at most `wanted`: the system's soft limit is raised as far as
/// it takes.
fn connections(wanted: usize) -> usize {
    let needed = wanted as u64 + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (files.saturating_sub(OTHER_FILES) as usize).clamp(1, wanted)
}

fn print_side_ports(ports: ManagementPorts) {
    for (name, address) in [("health", ports.health), ("admin", ports.admin)] {
        if let Some(address) = address {
            eprintln!("{name:<12}http://{address}");
        }
    }
}

fn print_banner(p: &Prepared, place: &Devices) {
    let precision = match p.precision {
        Precision::Fp8 => "FP8 (E4M3 weights and inputs)",
        Precision::None => "unquantised (BF16 inputs)",
    };
    eprintln!("model       {} ({})", p.config.served_names.join(", "), p.model.architecture);
    eprintln!("parameters  {:.1} M", p.model.parameters() as f64 / 1e6);
    eprintln!("precision   {precision}, KV cache {:?}", p.kv);
    eprintln!("device      {}", place.describe());
    let each = if place.ranks() == 1 { "" } else { "of each rank: " };
    let needs = &p.memory.needs;
    eprintln!(
        "memory      {each}weights {}, activations {}, communication {}, scratch {}, recorded steps {} (estimate), \
         KV cache {} = {} blocks of 64 tokens",
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
