//! `octant serve`: from a configuration to a server that has drained.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::progress::Progress;
use crate::comm::Local;
use crate::config::{Config, KvCacheDtype, Quantization};
use crate::device::KvDtype;
use crate::device::cpu::{Cpu, CpuOptions};
use crate::engine::{Engine, EngineHandle, EngineThread, SchedulerConfig};
use crate::generation::Generator;
use crate::model::{GenerationConfig, Model, ModelConfig, Precision};
use crate::runner::{MemoryNeeds, MemoryPlan, RankParts, Runner, gib};
use crate::server::validate::Defaults;
use crate::server::{self, DrainTimes, Ended, ServerState, Settings};
use crate::text::{ChatTemplate, Tokenizer};

/// Of the memory that is available, what the server may plan with.
const MEMORY_SHARE: f64 = 0.8;

/// Steps in flight: on a CPU, planning competes with the step it would overlap.
const IN_FLIGHT: usize = 1;

/// Bytes of text per token of context that a request may have: no tokenizer in use is that verbose.
const BYTES_PER_TOKEN: usize = 64;

/// What is known before any weight is read.
struct Prepared {
    config: Config,
    model: ModelConfig,
    generation: GenerationConfig,
    precision: Precision,
    kv: KvDtype,
    memory: MemoryPlan,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
}

/// Serves until told to stop. 0 after a drain, 1 after a failure.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let prepared = prepare(config)?;
    let (engine, thread) = start_engine(&prepared)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(prepared.config.threads.clamp(1, 4))
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let ended = runtime.block_on(serve(prepared, engine.clone(), start))?;
    engine.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    let failure = thread.join();
    if let Err(reason) = failure {
        anyhow::bail!("the engine failed: {reason}");
    }
    tracing::info!(?ended, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Reads everything but the weights, and refuses what cannot be served.
fn prepare(config: Config) -> anyhow::Result<Prepared> {
    let mut model = ModelConfig::from_dir(&config.model)?;
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
    let needs = MemoryNeeds::new(&model, precision, kv, config.max_num_batched_tokens);
    let available = (available_memory()? as f64 * MEMORY_SHARE) as u64;
    let memory =
        MemoryPlan::new(needs, available, config.kv_cache_memory, model.max_positions, config.max_num_seqs)
            .context("the model does not fit; lower --max-model-len, --max-num-seqs or --kv-cache-memory")?;
    let generation = GenerationConfig::from_dir(&config.model)?;
    let tokenizer = Arc::new(Tokenizer::from_dir(&config.model)?);
    let template = ChatTemplate::from_dir(&config.model, &tokenizer)?;
    Ok(Prepared { config, model, generation, precision, kv, memory, tokenizer, template })
}

/// Loads the weights and starts the engine over them.
fn start_engine(p: &Prepared) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let device = Cpu::new(CpuOptions { threads: p.config.threads, isa: None })?;
    let mut progress = Progress::start();
    let model =
        Model::load(&p.config.model, &p.model, p.precision, &device, &mut |done| progress.update(&done))?;
    progress.finish();
    print_banner(p, &device);
    let scheduler = SchedulerConfig {
        max_num_seqs: p.config.max_num_seqs,
        max_num_batched_tokens: p.config.max_num_batched_tokens,
        max_model_len: p.model.max_positions,
        num_blocks: p.memory.blocks,
        vocab_size: p.model.vocab.min(p.tokenizer.vocab_size()),
        max_queue_requests: p.config.max_queue_requests,
        max_queue_tokens: p.config.max_queue_tokens,
        prefix_caching: p.config.prefix_caching,
    };
    let rank = RankParts {
        device,
        comm: Local::alone(),
        model,
        cache: p.memory.cache(&p.model, p.kv),
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        vocab: scheduler.vocab_size,
    };
    let runner = Runner::start(vec![rank]);
    Ok(Engine::start(scheduler, IN_FLIGHT, Box::new(runner)))
}

async fn serve(p: Prepared, engine: EngineHandle, start: Instant) -> anyhow::Result<Ended> {
    let listener =
        server::bind(p.config.address).with_context(|| format!("cannot listen on {}", p.config.address))?;
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

fn print_banner(p: &Prepared, device: &Cpu) {
    let precision = match p.precision {
        Precision::Fp8 => "FP8 (E4M3 weights and inputs)",
        Precision::None => "unquantised (BF16 inputs)",
    };
    eprintln!("model       {} ({})", p.config.served_names.join(", "), p.model.architecture);
    eprintln!("parameters  {:.1} M", p.model.parameters() as f64 / 1e6);
    eprintln!("precision   {precision}, KV cache {:?}", p.kv);
    eprintln!("device      CPU, {} threads, {:?}", device.threads(), device.isa());
    eprintln!(
        "memory      weights {}, workspace {}, KV cache {} = {} blocks of 64 tokens",
        gib(p.memory.needs.weights),
        gib(p.memory.needs.workspace),
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

/// Bytes that the system can give without swapping, or that the control group allows, whichever is less.
fn available_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|limit| limit.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    Ok((kib * 1024).min(group))
}
