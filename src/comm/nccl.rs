//! Groups over NCCL, for where deterministic sums are not wanted or GPUs cannot reach one another's memory. A rank that
//! does not come is not told here: the step takes too long.

use std::time::Duration;

use super::{Communicator, Local, START};
use crate::device::DeviceError;
use crate::device::cuda::{self, Cuda, Floats};

/// A rank of a group over NCCL.
#[derive(Debug)]
pub struct Nccl {
    library: cuda::Nccl,
    /// Where the ranks' threads meet.
    threads: Local,
}

impl Nccl {
    /// The ranks of a group on these devices, whose threads wait for one another for at most `patience`, or
    /// longer while they start.
    ///
    /// # Errors
    /// Without the library, and whatever it finds wrong: it takes no GPU twice.
    pub fn group(devices: &[Cuda], patience: Duration) -> Result<Vec<Self>, DeviceError> {
        let ranks =
            cuda::Nccl::group(devices)?.into_iter().zip(Local::group(devices.len(), patience.max(START)));
        Ok(ranks.map(|(library, threads)| Self { library, threads }).collect())
    }
}

impl Communicator<Cuda> for Nccl {
    fn rank(&self) -> usize {
        self.library.rank()
    }

    fn size(&self) -> usize {
        self.library.size()
    }

    fn meet(&self) -> Result<(), DeviceError> {
        self.threads.meet()
    }

    fn all_reduce(&self, _cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        self.library.reduce(x)
    }

    fn all_gather(&self, _cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        self.library.gather(part, whole)
    }
}
