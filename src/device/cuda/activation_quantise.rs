//! `kernels/activation_quantise.cu`, after the product whose rows it takes.

use super::linear::{self, Target};
use super::row::Quantised;
use super::{Acts, Cuda, Floats, Launch, Matrix};
use crate::device::{ActQuant, DeviceError};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ActivationQuantiseParams {
    h: u64,
    maxima: u64,
    out: Quantised,
    cols: u32,
    unused: u32,
}
const _: () = assert!(size_of::<ActivationQuantiseParams>() == 56);

const THREADS: usize = 96;
/// Columns that a block computes: four groups of eight per thread.
const BLOCK_COLS: usize = THREADS * 4 * 8;

/// Computes h = x · wᵀ with the largest outputs of each row, and out = quant(relu(h)²) with their scales.
pub(super) fn run(
    cuda: &Cuda,
    x: &Acts,
    w: &Matrix,
    h: &mut Floats,
    out: &mut Acts,
) -> Result<(), DeviceError> {
    let (rows, cols) = (x.rows, out.cols);
    assert_eq!(h.cols, cols, "columns of the input of an activation");
    let maxima = out.maxima(rows);
    h.set_rows(rows);
    linear::run_to(cuda, x, w, &Target::local(h).with_maxima(maxima))?;
    let params = ActivationQuantiseParams {
        h: h.data.address(),
        maxima,
        out: out.target(rows, ActQuant::Fp8PerToken),
        cols: cols as u32,
        unused: 0,
    };
    let grid = [rows, cols.div_ceil(BLOCK_COLS), 1];
    let launch = Launch { kernel: "activation_quantise", grid, threads: THREADS as u32, shared: 0 };
    // SAFETY: shapes have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
