//! Groups over NCCL, for GPUs that cannot access one another's memory, or where sums need not be
//! deterministic. BF16 parts are summed to BF16. NCCL does not report a rank that is missing; the step then
//! exceeds its timeout.

use std::time::Duration;

use super::p2p::START_TIMEOUT;
use super::{Communicator, GroupBuffers, Local};
use crate::device::DeviceError;
use crate::device::cuda::{self, Cuda, Floats};

/// A rank of a group over NCCL.
#[derive(Debug)]
pub struct Nccl {
    library: cuda::Nccl,
    /// The barrier of the ranks' threads.
    threads: Local,
}

impl Nccl {
    /// Makes a group with one rank per device. The ranks' threads wait for one another for at most `timeout`
    /// or `START_TIMEOUT`, whichever is longer.
    ///
    /// # Errors
    /// If the library cannot be loaded, or refuses the group: it refuses two ranks on one GPU.
    pub fn group(devices: &[Cuda], timeout: Duration) -> Result<Vec<Self>, DeviceError> {
        let threads = Local::group(devices.len(), timeout.max(START_TIMEOUT));
        let ranks = cuda::Nccl::group(devices)?.into_iter().zip(threads);
        Ok(ranks.map(|(library, threads)| Self { library, threads }).collect())
    }
}

impl Communicator<Cuda> for Nccl {
    fn register(&self, _buffers: GroupBuffers<'_, Cuda>) -> Result<(), DeviceError> {
        self.threads.barrier()
    }

    fn all_reduce(&self, _cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        self.library.reduce(x)
    }

    fn all_gather(&self, _cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        self.library.gather(part, whole)
    }
}
