//! `octant serve`: from a configuration to a server that has drained.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::http::StatusCode;
use tokio::net::TcpListener;

use super::place::{self, Place};
use super::simulated;
use crate::config::{Config, KvCacheDtype, Quantization};
use crate::device::KvDtype;
use crate::engine::{EngineHandle, EngineThread, Recorder};
use crate::generation::Generator;
use crate::model::{GenerationConfig, ModelConfig, Precision, StepRoom};
use crate::runner::{MemoryNeeds, MemoryPlan, gib};
use crate::server::validate::Defaults;
use crate::server::{self, DrainTimes, Ended, ServerState, Settings};
use crate::simulator::trace::Recording;
use crate::text::{ChatTemplate, Tokenizer};

/// Bytes of text per token of context that a request may have: no tokenizer in use is that verbose.
const BYTES_PER_TOKEN: usize = 64;

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
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Hears what the engine does.
    pub recorder: Option<Recorder>,
    template: Option<ChatTemplate>,
}

/// Serves until told to stop. 0 after a drain, 1 after a failure.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let place = Place::open(&config)?;
    let mut prepared = prepare(config, &place)?;
    let recording = record(&mut prepared, &place)?;
    print_banner(&prepared, &place);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(prepared.config.threads.clamp(1, 4))
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(load_and_serve(prepared, place, start));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let outcome = outcome.and_then(|(ended, thread)| match thread.join() {
        Ok(()) => Ok(ended),
        Err(reason) => anyhow::bail!("the engine failed: {reason}"),
    });
    // Also after a failure, which is when a recording is wanted most.
    let recorded = recording.map(Recording::finish).transpose().context("--record");
    let ended = outcome?;
    recorded?;
    tracing::info!(?ended, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Begins a recording if one is asked for.
fn record(p: &mut Prepared, place: &Place) -> anyhow::Result<Option<Recording>> {
    let Some(path) = p.config.record.clone() else { return Ok(None) };
    let (recorder, recording) =
        simulated::record(p, place.ranks(), place::scheduler(p), place.in_flight(), &path)?;
    p.recorder = Some(recorder);
    Ok(Some(recording))
}

/// Listens from the first, so that an address in use shows before weights are loaded, and probes get an answer while
/// they are.
async fn load_and_serve(p: Prepared, place: Place, start: Instant) -> anyhow::Result<(Ended, EngineThread)> {
    let listener =
        server::bind(p.config.address).with_context(|| format!("cannot listen on {}", p.config.address))?;
    let load = tokio::task::spawn_blocking(move || place.start(&p).map(|engine| (engine, p)));
    let loaded = server::while_starting(&listener, load).await.context("loading was interrupted")?;
    let ((engine, thread), p) = loaded?;
    let ended = serve(p, listener, engine.clone(), start).await?;
    engine.stop();
    Ok((ended, thread))
}

/// Reads everything but the weights, and refuses what cannot be served.
fn prepare(config: Config, place: &Place) -> anyhow::Result<Prepared> {
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
    let needs = MemoryNeeds::new(&share, &place.layout(), (precision, kv), &room);
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
    Ok(Prepared { config, model, generation, precision, kv, memory, tokenizer, recorder: None, template })
}

async fn serve(
    p: Prepared,
    listener: TcpListener,
    engine: EngineHandle,
    start: Instant,
) -> anyhow::Result<Ended> {
    let address = listener.local_addr()?;
    let signals = server::signals()?;
    let max_bytes = p.model.max_positions.saturating_mul(BYTES_PER_TOKEN);
    let generator = Generator::new(engine, p.tokenizer, p.template, max_bytes);
    let defaults = Defaults::default();
    let settings = Settings {
        models: p.config.served_names,
        api_key: p.config.api_key,
        defaults: Defaults {
            temperature: p.generation.temperature.unwrap_or(defaults.temperature),
            top_p: p.generation.top_p.unwrap_or(defaults.top_p),
            top_k: p.generation.top_k.unwrap_or(defaults.top_k),
            min_p: p.generation.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: p.generation.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        },
        reject_unknown_fields: p.config.reject_unknown_fields,
        queue_full_status: StatusCode::from_u16(p.config.queue_full_status)?,
        stalled_after: p.config.stall_timeout,
        ..Settings::new(String::new(), p.generation.eos)
    };
    let state = ServerState::new(generator, settings);
    eprintln!("ready in {:.2} s on http://{address}", start.elapsed().as_secs_f64());
    let times = DrainTimes { grace: p.config.drain_grace, timeout: p.config.drain_timeout };
    let watched = Arc::clone(&state);
    tokio::select! {
        ended = server::serve(listener, state, signals, times) => Ok(ended),
        () = engine_death(&watched) => anyhow::bail!("the engine has stopped; exiting so that a supervisor restarts"),
    }
}

/// Resolves some moments after the engine has failed: open requests get their errors out first.
async fn engine_death(state: &ServerState) {
    while !state.engine_failed() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn print_banner(p: &Prepared, place: &Place) {
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
        gib(needs.recordings),
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
