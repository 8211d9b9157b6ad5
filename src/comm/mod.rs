//! Collective operations between the ranks of a tensor-parallel group.

pub mod local;
#[cfg(feature = "cuda")]
pub mod nccl;
#[cfg(feature = "kernels")]
pub mod p2p;
pub mod single_device;

use std::time::Duration;

pub use local::Local;
#[cfg(feature = "cuda")]
pub use nccl::Nccl;
#[cfg(feature = "kernels")]
pub use p2p::P2p;
pub use single_device::SingleDeviceGroup;

use crate::device::{ActQuant, Device, DeviceError, Norm};

/// [`DeviceError::op`] of a failure that is another rank's, which says more about it than this one can.
pub const PEER: &str = "peer";

/// One rank's handle on its group. Every rank calls the same operations in the same order.
pub trait Communicator<D: Device>: Send + 'static {
    /// This rank, below `size`.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// Whether operations are launches of the device alone, so that it can record them.
    fn captures(&self) -> bool {
        true
    }
    /// A buffer that operations of the group take.
    fn floats(&self, device: &D, rows: usize, cols: usize) -> Result<D::Floats, DeviceError> {
        device.floats(rows, cols)
    }
    /// As [`Communicator::floats`], of inputs of products.
    fn acts(&self, device: &D, rows: usize, cols: usize) -> Result<D::Acts, DeviceError> {
        device.acts(rows, cols)
    }
    /// Finds out how to be fast for at most \[rows, cols\]. Done once, before the first operation.
    fn prepare(&self, _device: &D, _rows: usize, _cols: usize) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Waits, on the host, until every rank is here.
    fn meet(&self) -> Result<(), DeviceError>;
    /// x = Σ over ranks of x, summed in rank order on every rank.
    fn all_reduce(&self, device: &D, x: &mut D::Floats) -> Result<(), DeviceError>;
    /// Concatenates each rank's `part` \[rows, cols\] by columns, in rank order: `whole` \[rows, size × cols\].
    fn all_gather(&self, device: &D, part: &D::Floats, whole: &mut D::Floats) -> Result<(), DeviceError>;
    /// residual += Σ over ranks of delta; out = quant(norm(residual)). A rank need not have all rows of the residual
    /// until [`Communicator::settle`]. Two calls in a row have different deltas, which the next but one may overwrite.
    fn reduce_norm(
        &self,
        device: &D,
        (residual, delta): (&mut D::Floats, &mut D::Floats),
        norm: &Norm<D::Vector>,
        quant: ActQuant,
        out: &mut D::Acts,
    ) -> Result<(), DeviceError> {
        self.all_reduce(device, delta)?;
        device.norm(residual, Some(delta), norm, quant, out)
    }
    /// residual += Σ over ranks of delta, all rows of it on every rank.
    fn settle(&self, device: &D, residual: &mut D::Floats, delta: &mut D::Floats) -> Result<(), DeviceError> {
        self.all_reduce(device, delta)?;
        device.add(std::slice::from_ref(delta), residual)
    }
    /// Whether an operation that has been waited for failed for want of another rank, if only this tells.
    fn check(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// How long threads wait for one another while they allocate and measure, which takes some longer than others.
#[cfg(feature = "kernels")]
const START: Duration = Duration::from_secs(600);

/// What a rank says of another that has ended.
fn has_ended(rank: usize) -> DeviceError {
    DeviceError { op: PEER, message: format!("rank {rank} has ended") }
}

/// What a rank says of another that it waited for in vain.
fn did_not_come(rank: usize, patience: Duration) -> DeviceError {
    let message = format!("rank {rank} did not come within {} s", patience.as_secs_f64());
    DeviceError { op: PEER, message }
}
