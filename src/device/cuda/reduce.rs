//! `kernels/reduce.cu`.

use std::ops::Range;

use super::peers::{MAX_RANKS, Peers, PeersParams};
use super::{Cuda, Floats, Launch};
use crate::device::{DeviceError, FloatType};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReduceParams {
    peers: PeersParams,
    parts: [u64; MAX_RANKS],
    targets: [u64; MAX_RANKS],
    base: u64,
    first: u64,
    last: u64,
    parts_bf16: u32,
    unused: u32,
}
const _: () = assert!(size_of::<ReduceParams>() == 248);

const THREADS: usize = 256;

/// The division of a reduction's rows among ranks. It decides which rows of the residual each rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceMode {
    /// Every rank reads all parts and sums all rows. Every rank has the whole residual.
    OneShot,
    /// Every rank sums its share of the rows, which the products of all ranks have stored in its memory, and
    /// writes the results to the others. It has its own rows of the residual only.
    TwoShot,
}

/// Operands of a reduction.
#[derive(Debug)]
pub struct Reduction<'a> {
    /// This rank's residual; in two-shot mode only its share of the rows is valid.
    pub residual: &'a mut Floats,
    /// This rank's part, which is shared; or memory to which the ranks have pushed their parts. Two
    /// consecutive reductions have different ones, since in one-shot mode other ranks may still read the
    /// first.
    pub delta: &'a Floats,
    /// The division of the rows.
    pub mode: ReduceMode,
}

impl Peers {
    /// x = Σ over ranks of x, on every rank. `x` is F32 and shared.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn reduce(&self, cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        let share = self.own_share(vectors(x));
        let operands = Operands { parts: self.addresses(x.data.address()), of: x, base: None, targets: x };
        self.launch(cuda, operands, share)
    }

    /// residual += Σ over ranks of delta, all rows on every rank. Both are shared.
    ///
    /// # Errors
    /// If the launch is refused.
    pub fn reduce_add(&self, cuda: &Cuda, reduction: Reduction<'_>) -> Result<(), DeviceError> {
        let Reduction { residual, delta, mode } = reduction;
        assert_eq!((residual.rows, residual.cols), (delta.rows, delta.cols), "shapes of residual and delta");
        let share = match mode {
            ReduceMode::OneShot => self.own_share(vectors(delta)),
            ReduceMode::TwoShot => {
                let (rows, each) = (self.own_share(delta.rows), vectors(delta) / delta.rows.max(1));
                rows.start * each..rows.end * each
            }
        };
        let parts = self.part_addresses(delta, mode);
        self.launch(cuda, Operands { parts, of: delta, base: Some(residual), targets: residual }, share)
    }

    fn launch(&self, cuda: &Cuda, operands: Operands<'_>, share: Range<usize>) -> Result<(), DeviceError> {
        let Operands { parts, of, base, targets } = operands;
        let params = ReduceParams {
            peers: self.params(),
            parts,
            targets: self.addresses(targets.data.f32().address()),
            base: base.map_or(0, |base| base.data.f32().address()),
            first: share.start as u64,
            last: share.end as u64,
            parts_bf16: of.is_bf16(),
            unused: 0,
        };
        let grid = [self.blocks(share.len().div_ceil(THREADS)), 1, 1];
        let launch = Launch { kernel: "reduce", grid, threads: THREADS as u32, shared: 0 };
        // SAFETY: parts and targets have the same number of rows on every rank, and the group keeps them
        // alive.
        unsafe { cuda.driver.launch(launch, &params) }
    }
}

/// Operands of a launch.
struct Operands<'a> {
    /// The address of each rank's part.
    parts: [u64; MAX_RANKS],
    /// This rank's buffer for parts.
    of: &'a Floats,
    /// Added to the sum.
    base: Option<&'a Floats>,
    /// This rank's buffer for results.
    targets: &'a Floats,
}

/// The number of groups of 16 bytes: four F32 elements, or eight of BF16.
fn vectors(x: &Floats) -> usize {
    let (elements, each) = (x.rows * x.cols, if x.float_type == FloatType::Bf16 { 8 } else { 4 });
    assert!(elements.is_multiple_of(each), "{elements} elements of {:?}", x.float_type);
    elements / each
}
