//! The device that a command runs on, chosen at run time.

use anyhow::Context;

use super::bench::cpu_read_bandwidth;
use super::progress::Progress;
use super::serve::Prepared;
use crate::comm::Local;
use crate::config::{Config, DeviceName};
use crate::device::cpu::{Cpu, CpuOptions};
#[cfg(feature = "cuda")]
use crate::device::cuda::{Cuda, Products};
use crate::device::{Device, KvDtype};
use crate::engine::{Engine, EngineHandle, EngineThread, SchedulerConfig};
use crate::model::{Model, ModelConfig, Precision};
use crate::runner::{MemoryNeeds, RankParts, Runner};

/// Of the memory that is available, what the server may plan with.
const CPU_SHARE: f64 = 0.8;
#[cfg(feature = "cuda")]
const GPU_SHARE: f64 = 0.92;

/// Steps in flight: on a CPU, planning competes with the step that it would overlap.
const CPU_IN_FLIGHT: usize = 1;
#[cfg(feature = "cuda")]
const GPU_IN_FLIGHT: usize = 2;

/// A device, opened.
pub enum Place {
    /// This machine's processor.
    Cpu(Cpu),
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

impl Place {
    /// Opens the device that the configuration names.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        Self::open_device(config.device, config.threads, config.deterministic)
    }

    /// Opens a device; `threads` are those of a CPU, and only a GPU may be told not to be `deterministic`.
    pub fn open_device(device: DeviceName, threads: usize, deterministic: bool) -> anyhow::Result<Self> {
        match device {
            DeviceName::Cpu if !deterministic => {
                anyhow::bail!("--deterministic false: expected --device cuda")
            }
            DeviceName::Cpu => Ok(Self::Cpu(Cpu::new(CpuOptions { threads, isa: None })?)),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda => {
                let products = match deterministic {
                    true => Products::Deterministic,
                    false => Products::Fastest { cache: cache_folder().map(|dir| dir.join("cublaslt.json")) },
                };
                Ok(Self::Cuda(Box::new(Cuda::new(0, products).context("--device cuda")?)))
            }
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda => anyhow::bail!(
                "--device cuda: this binary was built without CUDA (cargo build --release --features cuda)"
            ),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("CPU, {} threads, {:?}", cpu.threads(), cpu.isa()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.name(),
        }
    }

    /// Asks for clocks, temperature and the like, without which a measurement on a GPU is worth little.
    pub fn conditions(&self) -> anyhow::Result<impl Fn() -> Option<String> + use<>> {
        let pci: Option<String> = match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Some(cuda.pci()?),
        };
        Ok(move || {
            #[cfg(feature = "cuda")]
            return pci.as_deref().map(super::gpu::conditions_at);
            #[cfg(not(feature = "cuda"))]
            pci.clone()
        })
    }

    /// Bytes per second that it reads, measured now.
    pub fn read_bandwidth(&self) -> anyhow::Result<f64> {
        match self {
            Self::Cpu(cpu) => Ok(cpu_read_bandwidth(cpu.threads(), 1 << 30)),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Ok(cuda.stream_read(&vec![1; 1 << 30], 20)?.0),
        }
    }

    /// Bytes to plan with.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let (available, share) = match self {
            Self::Cpu(_) => (available_memory()?, CPU_SHARE),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => (cuda.free_memory()?, GPU_SHARE),
        };
        Ok((available as f64 * share) as u64)
    }

    /// What a model needs here.
    pub fn needs(&self, config: &ModelConfig, precision: Precision, kv: KvDtype, rows: usize) -> MemoryNeeds {
        match self {
            Self::Cpu(_) => MemoryNeeds::new::<Cpu>(config, precision, kv, rows),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => {
                let needs = MemoryNeeds::new::<Cuda>(config, precision, kv, rows);
                let largest = config.linear_shapes().into_iter().map(|(out, input)| out * input).max();
                let workspace = needs.workspace + cuda.large_bytes(largest.unwrap_or(0));
                MemoryNeeds { workspace, ..needs }
            }
        }
    }

    /// Loads the weights and starts the engine over them.
    pub fn start(self, p: &Prepared) -> anyhow::Result<(EngineHandle, EngineThread)> {
        match self {
            Self::Cpu(cpu) => start_on(cpu, CPU_IN_FLIGHT, p),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => {
                super::gpu::watch(cuda.pci()?);
                start_on(*cuda, GPU_IN_FLIGHT, p)
            }
        }
    }
}

/// Where this user's programs keep what they can find out again.
#[cfg(feature = "cuda")]
fn cache_folder() -> Option<std::path::PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from);
    let folder = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")))?;
    Some(folder.join("octant"))
}

fn start_on<D: Device>(
    device: D,
    in_flight: usize,
    p: &Prepared,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let mut progress = Progress::start();
    let model =
        Model::load(&p.config.model, &p.model, p.precision, &device, &mut |done| progress.update(&done))?;
    progress.finish();
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
    let runner = Runner::start(vec![rank], p.config.step_timeout);
    Ok(Engine::start(scheduler, in_flight, Box::new(runner)))
}

/// Bytes that the system can give without swapping, or that the control group allows, whichever is less.
pub fn available_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|limit| limit.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    Ok((kib * 1024).min(group))
}
