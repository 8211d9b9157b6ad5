//! The devices of a command, opened at run time.

use super::cuda::CudaGpus;
use super::simulated::SimulatedGpus;
use crate::config::{DeviceName, ServeArgs};
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::device::{Device, Layout};
use crate::machine::{self, MemoryLimit};
use crate::runner::gib;

/// Error text of a measurement on simulated GPUs.
pub(crate) const NOTHING_TO_MEASURE: &str = "--device simulate: simulated GPUs cannot be measured";

/// Fraction of the available memory that a server on CPUs uses at most.
const CPU_MEMORY_FRACTION: f64 = 0.8;

/// Minimum host memory that a server leaves free, for what the plan does not list: connections, request
/// bodies, queued requests, the scheduler's tables, stacks, and what the allocator keeps.
const HOST_MEMORY_RESERVE: u64 = 64 << 20;

/// Steps in flight on a CPU: planning a step would compete for the cores with the step that runs.
const CPU_IN_FLIGHT: usize = 1;
/// Steps in flight on GPUs, real or simulated.
pub(crate) const GPU_IN_FLIGHT: usize = 2;

/// Opened devices, one for each rank.
pub(crate) enum Devices {
    /// This machine's CPU.
    Cpu(Vec<Cpu>),
    /// NVIDIA GPUs.
    Cuda(CudaGpus),
    /// Modelled GPUs.
    Simulated(Box<SimulatedGpus>),
}

/// Devices to open.
#[derive(Debug, Clone)]
pub(crate) struct DeviceChoice {
    /// Kind of device; not [`DeviceName::Simulate`].
    pub(crate) device: DeviceName,
    /// GPU number of each rank. On a CPU only the length counts, which is the number of ranks.
    pub(crate) gpus: Vec<usize>,
    /// CPU threads of all ranks together.
    pub(crate) threads: usize,
    /// Instruction set of a CPU; `None` for the fastest.
    pub(crate) isa: Option<Isa>,
    /// Deterministic products. False is allowed on CUDA only.
    pub(crate) deterministic: bool,
}

/// Memory that each rank may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsableMemory {
    /// Bytes of each rank.
    pub(crate) bytes: u64,
    /// Bytes of host memory that the plan leaves free.
    pub(crate) kept_free: u64,
    /// Explanation of the number, for logs and errors.
    pub(crate) from: String,
}

impl UsableMemory {
    /// The share of each of `ranks` ranks on CPUs, which share `fraction` of the memory that `limit` leaves.
    fn of_cpus(limit: &MemoryLimit, ranks: usize, fraction: f64) -> Self {
        let available = limit.available();
        let usable = (available as f64 * fraction) as u64;
        let usable = usable.min(available.saturating_sub(HOST_MEMORY_RESERVE));
        let mut from = describe_limit(limit);
        let kept_free = available - usable;
        from += &format!(", {} kept free", gib(kept_free));
        if ranks > 1 {
            from += &format!(", the rest divided by {ranks} ranks");
        }
        Self { bytes: usable / ranks as u64, kept_free, from }
    }

    /// Memory of a GPU. The plan takes no host memory: page-locked buffers are allocated when a GPU is
    /// opened, and loading uses a part of what is available.
    ///
    /// # Errors
    /// Too little host memory is available.
    fn of_gpu(bytes: u64) -> anyhow::Result<Self> {
        let limit = machine::memory_limit()?;
        let kept_free = limit.available();
        anyhow::ensure!(
            kept_free >= HOST_MEMORY_RESERVE,
            "a server needs {} of host memory, but {} are available ({})",
            gib(HOST_MEMORY_RESERVE),
            gib(kept_free),
            describe_limit(&limit)
        );
        Ok(Self { bytes, kept_free, from: "memory of a GPU".to_owned() })
    }
}

/// A limit on memory, with its source and the part in use.
pub(crate) fn describe_limit(limit: &MemoryLimit) -> String {
    format!("{} by {}, {} in use", gib(limit.bytes), limit.source, gib(limit.used))
}

impl Devices {
    /// Opens the devices of a server.
    pub(crate) fn for_server(config: &ServeArgs) -> anyhow::Result<Self> {
        if config.device.device == DeviceName::Simulate {
            let gpus = SimulatedGpus::new(&config.simulation, config.device.ranks())?;
            return Ok(Self::Simulated(Box::new(gpus)));
        }
        Self::open(&DeviceChoice {
            device: config.device.device,
            gpus: config.device.gpus(),
            threads: config.device.threads(),
            isa: config.device.cpu_instructions.map(Isa::from),
            deterministic: config.device.deterministic,
        })
    }

    /// Opens real devices.
    pub(crate) fn open(choice: &DeviceChoice) -> anyhow::Result<Self> {
        let DeviceChoice { device, ref gpus, threads, isa, deterministic } = *choice;
        match device {
            DeviceName::Simulate => anyhow::bail!(NOTHING_TO_MEASURE),
            DeviceName::Cpu if !deterministic => {
                anyhow::bail!("--deterministic false: expected --device cuda")
            }
            DeviceName::Cpu => {
                let threads = (threads / gpus.len()).max(1);
                let options = CpuOptions { threads, isa, ..Default::default() };
                let cpus = gpus.iter().map(|_| Cpu::new(options));
                Ok(Self::Cpu(cpus.collect::<Result<_, _>>()?))
            }
            DeviceName::Cuda => Ok(Self::Cuda(CudaGpus::open(gpus, deterministic)?)),
        }
    }

    /// One line of text for logs.
    pub(crate) fn describe(&self) -> String {
        let first = match self {
            Self::Cpu(cpus) => format!("CPU, {} threads, {:?}", cpus[0].threads(), cpus[0].isa()),
            Self::Cuda(gpus) => gpus.describe(),
            Self::Simulated(gpus) => gpus.describe(),
        };
        let ranks = self.ranks();
        if ranks == 1 { first } else { format!("{ranks} ranks, each {first}") }
    }

    /// Number of ranks.
    pub(crate) fn ranks(&self) -> usize {
        match self {
            Self::Cpu(cpus) => cpus.len(),
            Self::Cuda(gpus) => gpus.ranks(),
            Self::Simulated(gpus) => gpus.ranks,
        }
    }

    /// Steps in flight: 1 or 2.
    pub(crate) fn in_flight(&self) -> usize {
        match self {
            Self::Cpu(_) => CPU_IN_FLIGHT,
            Self::Cuda(_) | Self::Simulated(_) => GPU_IN_FLIGHT,
        }
    }

    /// Memory that each rank may use now: this fraction of what is free, or the device's own default.
    pub(crate) fn memory(&self, fraction: Option<f64>) -> anyhow::Result<UsableMemory> {
        match self {
            Self::Cpu(cpus) => {
                let fraction = fraction.unwrap_or(CPU_MEMORY_FRACTION);
                Ok(UsableMemory::of_cpus(&machine::memory_limit()?, cpus.len(), fraction))
            }
            Self::Cuda(gpus) => UsableMemory::of_gpu(gpus.memory(fraction)?),
            Self::Simulated(gpus) => UsableMemory::of_gpu(gpus.memory(fraction)),
        }
    }

    /// Padding and alignment of the device's buffers.
    pub(crate) fn layout(&self) -> Layout {
        match self {
            Self::Cpu(_) => Cpu::LAYOUT,
            Self::Cuda(_) | Self::Simulated(_) => Layout::CUDA,
        }
    }
}
