//! `kernels/activation_quantise.cu`, after the product whose rows it takes.

use super::activation;
use super::linear::{self, Target};
use super::row::Quantised;
use super::{Acts, Cuda, Floats, Launch, Matrix};
use crate::device::{ActQuant, Activation, DeviceError, FloatType, QuantisedActivation};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ActivationQuantiseParams {
    h: u64,
    maxima: u64,
    out: Quantised,
    cols: u32,
    gated: u32,
}
const _: () = assert!(size_of::<ActivationQuantiseParams>() == 56);

const THREADS: usize = 96;
/// Bytes of a row that a block reads: four times 16 per thread.
const BLOCK_BYTES: usize = THREADS * 4 * 16;

/// Whether a product can store what the kernel reads.
pub(super) fn fits(x: &Acts, w: &Matrix, activation: QuantisedActivation, h: &Floats) -> bool {
    let QuantisedActivation { kind, quant } = activation;
    // Gated outputs are stored by products of E4M3 only.
    let e4m3 = !w.bf16() && !x.bf16;
    quant == ActQuant::Fp8PerToken && h.float_type == FloatType::Bf16 && (e4m3 || !kind.is_gated())
}

/// Computes x · wᵀ, to memory of `h`, and its activation and quantisation. The product stores the largest
/// magnitudes of each row, and the activation if it has a gate; the kernel quantises with their scales.
pub(super) fn run(
    cuda: &Cuda,
    x: &Acts,
    w: &Matrix,
    kind: Activation,
    h: &mut Floats,
    out: &mut Acts,
) -> Result<(), DeviceError> {
    let (rows, cols) = (x.rows, out.cols);
    let gated = activation::gated(kind, h, cols);
    let maxima = out.maxima(rows);
    h.set_rows(rows);
    let target = Target::local(h).with_maxima(maxima);
    linear::run_to(cuda, x, w, &if gated { target.gated() } else { target })?;
    let params = ActivationQuantiseParams {
        h: h.data.address(),
        maxima,
        out: out.target(rows, ActQuant::Fp8PerToken),
        cols: cols as u32,
        gated: u32::from(gated),
    };
    // A row has h.cols BF16 outputs, or half as many F32, which are as many bytes.
    let grid = [rows, (2 * h.cols).div_ceil(BLOCK_BYTES), 1];
    let launch = Launch { kernel: "activation_quantise", grid, threads: THREADS as u32, shared: 0 };
    // SAFETY: shapes have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
