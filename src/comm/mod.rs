//! Collective operations between the ranks of a tensor-parallel group.

pub mod local;
pub mod stand_in;

pub use local::Local;
pub use stand_in::StandIn;

use crate::device::{Device, DeviceError};

/// [`DeviceError::op`] of a failure that is another rank's, which says more about it than this one can.
pub const PEER: &str = "peer";

/// One rank's handle on its group. Every rank calls the same operations in the same order.
pub trait Communicator<D: Device>: Send + 'static {
    /// This rank, below `size`.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// x = Σ over ranks of x, summed in rank order on every rank.
    fn all_reduce(&self, device: &D, x: &mut D::Floats) -> Result<(), DeviceError>;
    /// Concatenates each rank's `part` \[rows, cols\] by columns, in rank order: `whole` \[rows, size × cols\].
    fn all_gather(&self, device: &D, part: &D::Floats, whole: &mut D::Floats) -> Result<(), DeviceError>;
}
