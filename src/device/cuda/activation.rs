//! `kernels/activation.cu`.

use super::row::{self, Quantised};
use super::{Acts, Cuda, Floats, Launch};
use crate::device::{ActQuant, Activation, DeviceError};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ActivationParams {
    h: u64,
    out: Quantised,
    cols: u32,
    gated: u32,
    bf16: u32,
    unused: u32,
}
const _: () = assert!(size_of::<ActivationParams>() == 56);

/// Whether an activation with `cols` outputs has a gate; `h`, its input, must have the columns for it. The
/// kernels have one formula with a gate and one without.
pub(super) fn gated(kind: Activation, h: &Floats, cols: usize) -> bool {
    let gated = match kind {
        Activation::SquaredRelu => false,
        Activation::SwiGlu => true,
    };
    let width = if gated { 2 * cols } else { cols };
    assert_eq!(h.cols, width, "columns of the input of {kind:?} with {cols} outputs");
    gated
}

pub(super) fn run(
    cuda: &Cuda,
    kind: Activation,
    h: &Floats,
    quant: ActQuant,
    out: &mut Acts,
) -> Result<(), DeviceError> {
    let (rows, cols) = (h.rows, out.cols);
    let gated = gated(kind, h, cols);
    let params = ActivationParams {
        h: h.data.address(),
        out: out.target(rows, quant),
        cols: cols as u32,
        gated: u32::from(gated),
        bf16: h.is_bf16(),
        unused: 0,
    };
    let launch =
        Launch { kernel: "activation", grid: [rows, 1, 1], threads: row::threads(cols), shared: 4 * cols };
    // SAFETY: shapes have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
