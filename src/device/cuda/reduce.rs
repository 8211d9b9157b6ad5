//! `kernels/reduce.cu`.

use super::peers::{MOST_RANKS, Peers, PeersParams};
use super::{Cuda, Floats, Launch};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReduceParams {
    peers: PeersParams,
    parts: [u64; MOST_RANKS],
    targets: [u64; MOST_RANKS],
    base: u64,
    first: u64,
    last: u64,
}
const _: () = assert!(size_of::<ReduceParams>() == 240);

const THREADS: usize = 256;

/// How a residual lies on the ranks of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every rank has all rows.
    Everywhere,
    /// Each has its share, and something else in the others.
    SharedOut,
}

impl Peers {
    /// x = Σ over ranks of x, on every rank. `x` was offered.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn reduce(&self, cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        let vectors = vectors(x);
        self.launch(cuda, x, None, x, self.share(vectors))
    }

    /// residual += Σ over ranks of delta, all rows on every rank. Both were offered.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn settle(
        &self,
        cuda: &Cuda,
        residual: &mut Floats,
        delta: &Floats,
        rows: Rows,
    ) -> Result<(), DeviceError> {
        assert_eq!((residual.rows, residual.cols), (delta.rows, delta.cols), "shapes of residual and delta");
        let share = match rows {
            Rows::Everywhere => self.share(vectors(delta)),
            Rows::SharedOut => {
                let rows = self.share(delta.rows);
                rows.start * delta.cols / 4..rows.end * delta.cols / 4
            }
        };
        self.launch(cuda, delta, Some(residual), residual, share)
    }

    fn launch(
        &self,
        cuda: &Cuda,
        parts: &Floats,
        base: Option<&Floats>,
        targets: &Floats,
        share: std::ops::Range<usize>,
    ) -> Result<(), DeviceError> {
        let params = ReduceParams {
            peers: self.params(),
            parts: self.addresses(&parts.data),
            targets: self.addresses(&targets.data),
            base: base.map_or(0, |base| base.data.address()),
            first: share.start as u64,
            last: share.end as u64,
        };
        let grid = [self.blocks(share.len().div_ceil(THREADS)), 1, 1];
        let launch = Launch { kernel: "reduce", grid, threads: THREADS as u32, shared: 0 };
        // SAFETY: parts and targets have as many elements on every rank, since all have the same rows of them; the
        // group keeps them.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}

fn vectors(x: &Floats) -> usize {
    let elements = x.rows * x.cols;
    assert!(elements.is_multiple_of(4), "{elements} elements");
    elements / 4
}
