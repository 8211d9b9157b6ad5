//! The device that a command runs on, chosen at run time.

use std::time::Duration;

use anyhow::Context;

use super::bench::cpu_read_bandwidth;
use super::progress::Progress;
use super::serve::Prepared;
use super::simulated::{SimulatedGpus, forecast};
use crate::comm::{Communicator, Local};
#[cfg(feature = "cuda")]
use crate::comm::{Nccl, P2p};
#[cfg(feature = "cuda")]
use crate::config::CommunicatorName;
use crate::config::{Config, DeviceName};
#[cfg(feature = "cuda")]
use crate::cost::Hardware;
use crate::device::cpu::{Cpu, CpuOptions};
#[cfg(feature = "cuda")]
use crate::device::cuda::{Cuda, Products};
use crate::device::{Device, Layout};
use crate::engine::{Engine, EngineHandle, EngineThread, Forecast, SchedulerConfig, Start};
use crate::model::Model;
use crate::runner::{RankParts, Runner};
use crate::scheduler::Policy;
use crate::server::Stage;

/// Of the memory that is available, what the server may plan with.
const CPU_SHARE: f64 = 0.8;

/// Steps in flight: on a CPU, planning competes with the step that it would overlap.
const CPU_IN_FLIGHT: usize = 1;
/// On GPUs, as the simulated ones are.
const GPU_IN_FLIGHT: usize = 2;
/// Why nothing else is done with them.
pub(super) const NOT_THERE: &str =
    "--device simulate: there is nothing to measure on GPUs that are not there";

/// Devices, opened, one for each rank.
pub enum Devices {
    /// This machine's processor.
    Cpu(Vec<Cpu>),
    /// NVIDIA GPUs.
    #[cfg(feature = "cuda")]
    Cuda(Vec<Cuda>),
    /// GPUs that are not there.
    Simulated(SimulatedGpus),
}

/// How devices are opened.
#[derive(Debug, Clone)]
pub struct DeviceChoice {
    /// Which kind.
    pub device: DeviceName,
    /// A GPU for each rank, by its number; of other devices, as many.
    pub gpus: Vec<usize>,
    /// Threads of a CPU, of all ranks together.
    pub threads: usize,
    /// Only a GPU may be told not to be.
    pub deterministic: bool,
}

impl Devices {
    /// Opens the devices that the configuration names.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let Config { device, threads, deterministic, .. } = *config;
        if let Some(simulation) = &config.simulation {
            return Ok(Self::Simulated(SimulatedGpus::new(simulation, config.ranks)?));
        }
        Self::open_devices(&DeviceChoice { device, gpus: config.gpus.clone(), threads, deterministic })
    }

    /// Opens devices.
    pub fn open_devices(choice: &DeviceChoice) -> anyhow::Result<Self> {
        let DeviceChoice { device, ref gpus, threads, deterministic } = *choice;
        match device {
            DeviceName::Simulate => anyhow::bail!(NOT_THERE),
            DeviceName::Cpu if !deterministic => {
                anyhow::bail!("--deterministic false: expected --device cuda")
            }
            DeviceName::Cpu => {
                let options = CpuOptions { threads: (threads / gpus.len()).max(1), isa: None };
                let cpus = gpus.iter().map(|_| Cpu::new(options));
                Ok(Self::Cpu(cpus.collect::<Result<_, _>>()?))
            }
            #[cfg(feature = "cuda")]
            DeviceName::Cuda => {
                let products = match deterministic {
                    true => Products::Deterministic,
                    false => Products::Fastest { cache: cache_folder().map(|dir| dir.join("cublaslt.json")) },
                };
                let open = |gpu: &usize| Cuda::new(*gpu, products.clone()).context("--device cuda");
                Ok(Self::Cuda(gpus.iter().map(open).collect::<Result<_, _>>()?))
            }
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda => anyhow::bail!(
                "--device cuda: this binary was built without CUDA (cargo build --release --features cuda)"
            ),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        let (first, ranks) = match self {
            Self::Cpu(cpus) => {
                (format!("CPU, {} threads, {:?}", cpus[0].threads(), cpus[0].isa()), cpus.len())
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => (gpus[0].name(), gpus.len()),
            Self::Simulated(gpus) => (gpus.describe(), gpus.ranks),
        };
        if ranks == 1 { first } else { format!("{ranks} ranks, each {first}") }
    }

    /// Ranks.
    pub fn ranks(&self) -> usize {
        match self {
            Self::Cpu(cpus) => cpus.len(),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => gpus.len(),
            Self::Simulated(gpus) => gpus.ranks,
        }
    }

    /// Steps in flight here: 1 or 2.
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Cpu(_) => CPU_IN_FLIGHT,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => GPU_IN_FLIGHT,
            Self::Simulated(_) => GPU_IN_FLIGHT,
        }
    }

    /// Asks for clocks, temperature and the like, without which a measurement on a GPU is worth little.
    pub fn conditions(&self) -> anyhow::Result<impl Fn() -> Option<String> + use<>> {
        let pci: Option<String> = match self {
            Self::Cpu(_) | Self::Simulated(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => Some(gpus[0].pci()?),
        };
        Ok(move || {
            #[cfg(feature = "cuda")]
            return pci.as_deref().map(super::gpu::conditions_at);
            #[cfg(not(feature = "cuda"))]
            pci.clone()
        })
    }

    /// Bytes per second that the first rank reads, measured now.
    pub fn read_bandwidth(&self) -> anyhow::Result<f64> {
        match self {
            Self::Cpu(cpus) => Ok(cpu_read_bandwidth(cpus[0].threads(), 1 << 30)),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => Ok(gpus[0].stream_read(&vec![1; 1 << 30], 20)?.0),
            Self::Simulated(_) => anyhow::bail!(NOT_THERE),
        }
    }

    /// Bytes that each rank may plan with.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let (available, share) = match self {
            // They have one memory.
            Self::Cpu(cpus) => (available_memory()? / cpus.len() as u64, CPU_SHARE),
            #[cfg(feature = "cuda")]
            // The devices are of one kind, as `octant plan` knows it.
            Self::Cuda(gpus) => {
                let hardware = Hardware::named(Hardware::H100).map_err(anyhow::Error::msg)?;
                (free_memory(gpus)?, hardware.usable)
            }
            Self::Simulated(gpus) => return Ok(gpus.memory()),
        };
        Ok((available as f64 * share) as u64)
    }

    /// What its devices add to what they are given.
    pub fn layout(&self) -> Layout {
        match self {
            Self::Cpu(_) => Cpu::LAYOUT,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => Cuda::LAYOUT,
            Self::Simulated(_) => Layout::CUDA,
        }
    }

    /// Loads the weights and starts the engine over them.
    pub fn start(self, p: &Prepared) -> anyhow::Result<(EngineHandle, EngineThread)> {
        // A rank that fails by itself, or does not come at all, is named before the step as a whole is given up.
        let patience = p.config.step_timeout.mul_f64(0.75);
        match self {
            Self::Cpu(cpus) => {
                let group = Local::group(cpus.len(), patience);
                // Processors may take long for a prompt, and the first is as good a prompt as any.
                let start = Start {
                    unknown_step: p.config.step_timeout,
                    ..how(p, CPU_IN_FLIGHT, Forecast::default())
                };
                start_on(Ranks { devices: cpus, group, near: Vec::new() }, start, p)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(gpus) => start_on_gpus(gpus, patience, p),
            Self::Simulated(gpus) => {
                p.status.starting(Stage::Preparing);
                let executor = Box::new(gpus.executor(p)?);
                let forecast = forecast(&gpus.about(p).cost()?, &scheduler(p), gpus.settings.pace);
                Ok(Engine::start_as(scheduler(p), executor, how(p, GPU_IN_FLIGHT, forecast)))
            }
        }
    }
}

/// What ranks are made of before there is a model.
struct Ranks<D, C> {
    devices: Vec<D>,
    group: Vec<C>,
    /// Of each rank, the processors near its device; nothing for any.
    near: Vec<Vec<usize>>,
}

/// As much as every rank can have: those that share a GPU share its memory.
#[cfg(feature = "cuda")]
fn free_memory(gpus: &[Cuda]) -> anyhow::Result<u64> {
    let places = gpus.iter().map(Cuda::pci).collect::<Result<Vec<_>, _>>()?;
    let mut least = u64::MAX;
    for (gpu, place) in gpus.iter().zip(&places) {
        let sharing = places.iter().filter(|other| *other == place).count() as u64;
        least = least.min(gpu.free_memory()? / sharing);
    }
    Ok(least)
}

#[cfg(feature = "cuda")]
fn start_on_gpus(
    gpus: Vec<Cuda>,
    patience: std::time::Duration,
    p: &Prepared,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let mut near = Vec::new();
    let start = how(p, GPU_IN_FLIGHT, Forecast::default());
    for gpu in &gpus {
        let pci = gpu.pci()?;
        near.push(super::numa::processors_near(&pci));
        super::gpu::watch(pci);
    }
    match (gpus.len(), p.config.communicator) {
        (1, _) => start_on(Ranks { devices: gpus, group: vec![Local::alone()], near }, start, p),
        (_, CommunicatorName::P2p) => {
            let group = P2p::group(&gpus, patience, None)
                .context("--communicator p2p (--communicator nccl does without)")?;
            start_on(Ranks { devices: gpus, group, near }, start, p)
        }
        (_, CommunicatorName::Nccl) => {
            let group = Nccl::group(&gpus, patience).context("--communicator nccl")?;
            start_on(Ranks { devices: gpus, group, near }, start, p)
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

/// How the engine is started.
fn how(p: &Prepared, in_flight: usize, forecast: Forecast) -> Start {
    let max_ttft = p.config.admission.max_ttft.map(Duration::from_secs_f64);
    let (recorder, stream_interval) = (p.recorder.clone(), p.config.stream_interval);
    let longest_step = p.config.step_timeout;
    Start { recorder, max_ttft, forecast, stream_interval, longest_step, ..Start::new(in_flight) }
}

/// The limits that a configuration gives the scheduler.
pub(super) fn scheduler(p: &Prepared) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: p.config.max_num_seqs,
        max_num_batched_tokens: p.config.max_num_batched_tokens,
        max_model_len: p.model.max_positions,
        num_blocks: p.memory.blocks,
        vocab_size: p.model.vocab.min(p.tokenizer.vocab_size()),
        max_queue_requests: p.config.max_queue_requests,
        max_queue_tokens: p.config.max_queue_tokens,
        prefix_caching: p.config.prefix_caching,
        policy: Policy {
            ageing_steps: p.config.admission.ageing_steps,
            max_preemptions: p.config.admission.max_preemptions,
            kv_reserve: p.config.admission.kv_reserve,
        },
    }
}

fn start_on<D: Device, C: Communicator<D>>(
    ranks: Ranks<D, C>,
    start: Start,
    p: &Prepared,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let Ranks { devices, group, mut near } = ranks;
    let scheduler = scheduler(p);
    let share = p.model.share(devices.len()).map_err(anyhow::Error::msg)?;
    let loaded = load(devices, p)?;
    near.resize(loaded.len(), Vec::new());
    let ranks =
        loaded.into_iter().zip(group).zip(near).map(|(((device, model), comm), processors)| RankParts {
            device,
            comm,
            processors,
            model,
            cache: p.memory.cache(&share, p.kv),
            max_num_seqs: scheduler.max_num_seqs,
            max_num_batched_tokens: scheduler.max_num_batched_tokens,
            vocab: scheduler.vocab_size,
        });
    let mut runner = Runner::start(ranks.collect(), p.config.step_timeout);
    // Whoever is told that the server is ready is not to wait for recordings.
    runner.prepared()?;
    // Its steps are measured from the first on.
    Ok(Engine::start_as(scheduler, Box::new(runner), start))
}

/// Loads every rank's part onto its device, all at the same time.
fn load<D: Device>(devices: Vec<D>, p: &Prepared) -> anyhow::Result<Vec<(D, Model<D>)>> {
    let mut progress = Progress::start();
    p.status.starting(Stage::Loading);
    let models = Model::load_all(&p.config.model, &p.model, p.precision, &devices, &mut |done| {
        p.status.loading(done.done, done.total);
        progress.update(&done);
    })?;
    p.status.starting(Stage::Preparing);
    progress.finish();
    Ok(devices.into_iter().zip(models).collect())
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
