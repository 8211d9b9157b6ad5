//! Collective operations between the ranks of a tensor-parallel group.

pub mod local;
#[cfg(feature = "cuda")]
pub mod nccl;
#[cfg(feature = "kernels")]
pub mod p2p;
pub mod single_device;

pub use local::Local;
#[cfg(feature = "cuda")]
pub use nccl::Nccl;
#[cfg(feature = "kernels")]
pub use p2p::{OneShotRows, P2p};
pub use single_device::SingleDeviceGroup;

pub use crate::device::Message;
use crate::device::{ActQuant, Device, DeviceError, Floats, Norm};

/// One rank's handle on its group. Every rank calls the same operations in the same order. The error of an
/// operation that another rank does not reach comes from the operation itself, or from a later call of the
/// device.
pub trait Communicator<D: Device>: Send + 'static {
    /// Whether operations are launches on the device only, so that a device can capture them.
    const CAPTURES: bool = true;
    /// Whether [`Communicator::reduce_norm`] only launches kernels of the device, which [`Device::beside`]
    /// puts on the second stream.
    const RUNS_BESIDE: bool = false;

    /// Registers this rank's buffers that operations take, and returns when every rank has done so. Called
    /// once, after the rank has allocated all its memory and before the first operation.
    fn register(&self, _buffers: GroupBuffers<'_, D>) -> Result<(), DeviceError> {
        Ok(())
    }
    /// x = Σ over ranks of x, summed in F32 and in rank order on every rank.
    fn all_reduce(&self, device: &D, x: &mut Floats<D>) -> Result<(), DeviceError>;
    /// whole \[rows, size × cols\] = the parts \[rows, cols\] of all ranks, side by side in rank order.
    fn all_gather(&self, device: &D, part: &Floats<D>, whole: &mut Floats<D>) -> Result<(), DeviceError>;
    /// delta = x · matrixᵀ, this rank's part of a sum, for the next [`Communicator::reduce_norm`] or
    /// [`Communicator::reduce_add`]. Only these may read `delta` afterwards: a group may store rows of the
    /// part in other ranks' memory.
    fn linear_part(
        &self,
        device: &D,
        x: &D::Acts,
        matrix: &D::Matrix,
        delta: &mut Floats<D>,
    ) -> Result<(), DeviceError> {
        device.linear(x, matrix, delta)
    }
    /// residual += Σ over ranks of delta; out = quant(norm(residual)). The sum is F32, also of BF16 parts; a
    /// group whose sums need not be deterministic may round it to the type of `delta`.
    ///
    /// The parts come from [`Communicator::linear_part`]. Afterwards a rank may lack rows of the residual
    /// until [`Communicator::reduce_add`]. Consecutive sums have different deltas; the part of the second
    /// next sum may overwrite a delta.
    fn reduce_norm(
        &self,
        device: &D,
        update: ResidualUpdate<'_, D>,
        norm: &Norm<D>,
        quant: ActQuant,
        out: &mut D::Acts,
    ) -> Result<(), DeviceError> {
        let ResidualUpdate { residual, delta } = update;
        self.all_reduce(device, delta)?;
        device.norm(residual, Some(delta), norm, quant, out)
    }
    /// residual += Σ over ranks of delta, with parts as those of [`Communicator::reduce_norm`]. Afterwards
    /// every rank has all rows of the residual.
    fn reduce_add(&self, device: &D, update: ResidualUpdate<'_, D>) -> Result<(), DeviceError> {
        let ResidualUpdate { residual, delta } = update;
        self.all_reduce(device, delta)?;
        device.add(std::slice::from_ref(delta), residual)
    }
}

/// Buffers of one rank for the operations of its group.
#[derive(Debug)]
pub struct GroupBuffers<'a, D: Device> {
    /// Operands of reductions and parts of gathers, in the same order on every rank.
    pub floats: &'a [&'a Floats<D>],
    /// Outputs of [`Communicator::reduce_norm`], in the same order on every rank.
    pub acts: &'a [&'a D::Acts],
}

/// The residual stream, and this rank's part of what a layer adds to it; both \[rows, hidden\].
#[derive(Debug)]
pub struct ResidualUpdate<'a, D: Device> {
    /// The residual stream.
    pub residual: &'a mut Floats<D>,
    /// This rank's part.
    pub delta: &'a mut Floats<D>,
}
