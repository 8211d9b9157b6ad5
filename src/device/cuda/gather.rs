//! `kernels/gather.cu`.

use super::peers::{MAX_RANKS, Peers, PeersParams};
use super::{Cuda, Floats, Launch};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GatherParams {
    peers: PeersParams,
    parts: [u64; MAX_RANKS],
    whole: u64,
    rows: u32,
    cols: u32,
}
const _: () = assert!(size_of::<GatherParams>() == 168);

const THREADS: u32 = 256;

impl Peers {
    /// whole \[rows, size × cols\] = the parts \[rows, cols\] of all ranks, side by side in rank order.
    /// `part` is shared.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn gather(&self, cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(whole.cols, part.cols * self.size(), "columns of the gathered rows");
        whole.set_rows(part.rows);
        let params = GatherParams {
            peers: self.params(),
            parts: self.addresses(part.data.f32().address()),
            whole: whole.data.f32().address(),
            rows: part.rows as u32,
            cols: part.cols as u32,
        };
        let grid = [self.blocks(part.rows * self.size()), 1, 1];
        let launch = Launch { kernel: "gather", grid, threads: THREADS, shared: 0 };
        // SAFETY: `whole` has room for the rows; parts have the same size on every rank, and the group keeps
        // them alive.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}
