//! Groups over NCCL, for where deterministic sums are not wanted or GPUs cannot reach one another's memory. A rank that
//! does not come is not told here: the step takes too long.

use super::Communicator;
use crate::device::DeviceError;
use crate::device::cuda::{Cuda, Floats, Nccl};

impl Communicator<Cuda> for Nccl {
    fn rank(&self) -> usize {
        Self::rank(self)
    }

    fn size(&self) -> usize {
        Self::size(self)
    }

    fn all_reduce(&self, _cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        self.reduce(x)
    }

    fn all_gather(&self, _cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        self.gather(part, whole)
    }
}
