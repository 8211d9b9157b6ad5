//! Opens the NVIDIA GPUs that a command uses. `no_cuda.rs` takes the place of this file in builds without the
//! feature `cuda`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::draft::{Groups, LargestMessages};
use super::{numa, nvml};
use crate::comm::{Message, Nccl, OneShotRows, P2p, SingleDeviceGroup};
use crate::config::CommunicatorName;
use crate::cost::Hardware;
use crate::device::MakeRandomMatrix;
use crate::device::cuda::{Cuda, Products};

/// Opened GPUs, one for each rank.
pub(crate) struct CudaGpus(Vec<Cuda>);

/// The communicators of the models, one for each rank.
pub(crate) enum CudaGroup {
    /// A single rank.
    Alone(Groups<SingleDeviceGroup<Cuda>>),
    /// Kernels that read the memory of the other GPUs.
    P2p(Groups<P2p>),
    /// NVIDIA's library.
    Nccl(Groups<Nccl>),
}

impl CudaGpus {
    /// Opens the GPUs with these numbers, and checks that their products are exact.
    pub(crate) fn open(gpus: &[usize], deterministic: bool) -> anyhow::Result<Self> {
        let products = match deterministic {
            true => Products::Deterministic,
            false => Products::Fastest { cache: cache_folder().map(|dir| dir.join("cublaslt.json")) },
        };
        let open = |gpu: &usize| {
            let cuda = Cuda::new(*gpu, products.clone()).context("--device cuda")?;
            cuda.self_test().with_context(|| format!("--device cuda: GPU {gpu}"))?;
            Ok(cuda)
        };
        Ok(Self(gpus.iter().map(open).collect::<anyhow::Result<_>>()?))
    }

    /// Name of the first GPU.
    pub(crate) fn describe(&self) -> String {
        self.0[0].name()
    }

    /// Number of ranks.
    pub(crate) fn ranks(&self) -> usize {
        self.0.len()
    }

    /// Bytes of memory that each rank may use. Ranks on one GPU share its free memory. The default fraction
    /// is that of the GPU that `octant plan` knows.
    pub(crate) fn memory(&self, fraction: Option<f64>) -> anyhow::Result<u64> {
        let addresses = self.0.iter().map(Cuda::pci).collect::<Result<Vec<_>, _>>()?;
        let mut available = u64::MAX;
        for (gpu, address) in self.0.iter().zip(&addresses) {
            let sharing = addresses.iter().filter(|other| *other == address).count() as u64;
            available = available.min(gpu.free_memory()? / sharing);
        }
        let hardware = Hardware::named(Hardware::H100).map_err(anyhow::Error::msg)?;
        Ok((available as f64 * fraction.unwrap_or(hardware.usable)) as u64)
    }

    /// Bytes per second that the first GPU reads from its memory, measured now.
    pub(crate) fn read_bandwidth(&self) -> anyhow::Result<f64> {
        Ok(self.0[0].stream_read(&vec![1; 1 << 30], 20)?.0)
    }

    /// A function that makes random weights in a GPU's own memory.
    pub(crate) fn random_weights(&self) -> MakeRandomMatrix<Cuda> {
        Cuda::random_weights
    }

    /// A function that queries clocks, temperature, power and errors of the first GPU.
    pub(crate) fn conditions(&self) -> anyhow::Result<impl Fn() -> String + use<>> {
        let pci = self.0[0].pci()?;
        Ok(move || nvml::conditions_at(&pci))
    }

    /// CPUs near the GPU of each rank. Empty if the system does not say.
    pub(crate) fn nearby_cpus(&self) -> anyhow::Result<Vec<Vec<usize>>> {
        self.0.iter().map(|gpu| Ok(numa::nearby_cpus(&gpu.pci()?))).collect()
    }

    /// Logs hardware errors of every GPU until the process ends.
    pub(crate) fn log_hardware_errors(&self) -> anyhow::Result<()> {
        self.0.iter().try_for_each(|gpu| {
            nvml::log_hardware_errors(gpu.pci()?);
            Ok(())
        })
    }

    /// Creates the communicators of the model and of a draft model. A rank that does not arrive within
    /// `timeout` fails the group. Peer-to-peer reductions are tuned for messages of at most these sizes.
    pub(crate) fn group(
        &self,
        name: CommunicatorName,
        timeout: Duration,
        largest: LargestMessages,
    ) -> anyhow::Result<CudaGroup> {
        let p2p = |largest: Message| {
            P2p::group(&self.0, timeout, largest, OneShotRows::Measured)
                .context("--communicator p2p (--communicator nccl works without peer access)")
        };
        let nccl = |_: Message| Nccl::group(&self.0, timeout).context("--communicator nccl");
        Ok(match (self.0.len(), name) {
            (1, _) => CudaGroup::Alone(groups(largest, |_| Ok(vec![SingleDeviceGroup::alone()]))?),
            (_, CommunicatorName::P2p) => CudaGroup::P2p(groups(largest, p2p)?),
            (_, CommunicatorName::Nccl) => CudaGroup::Nccl(groups(largest, nccl)?),
        })
    }

    /// The devices, one for each rank.
    pub(crate) fn into_devices(self) -> Vec<Cuda> {
        self.0
    }
}

/// A group for each model.
fn groups<C>(
    largest: LargestMessages,
    group: impl Fn(Message) -> anyhow::Result<Vec<C>>,
) -> anyhow::Result<Groups<C>> {
    Ok(Groups { target: group(largest.target)?, draft: largest.draft.map(group).transpose()? })
}

/// Folder for results that the server can compute again: `$XDG_CACHE_HOME/octant` or `~/.cache/octant`.
fn cache_folder() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")))?;
    Some(folder.join("octant"))
}
