//! `kernels/norm.cu`.

use super::row::{self, Quantised};
use super::{Acts, Cuda, Floats, Launch};
use crate::device::{ActQuant, DeviceError, Norm, NormKind};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormParams {
    residual: u64,
    delta: u64,
    weight: u64,
    bias: u64,
    out: Quantised,
    cols: u32,
    layer_norm: u32,
    eps: f32,
    delta_bf16: u32,
}
const _: () = assert!(size_of::<NormParams>() == 80);

pub(super) fn run(
    cuda: &Cuda,
    residual: &mut Floats,
    delta: Option<&Floats>,
    norm: &Norm<Cuda>,
    quant: ActQuant,
    out: &mut Acts,
) -> Result<(), DeviceError> {
    let (rows, cols) = (residual.rows, residual.cols);
    check_shapes(norm, cols, out);
    if let Some(delta) = delta {
        assert_eq!((delta.rows, delta.cols), (rows, cols), "shape of the delta");
    }
    let params = NormParams {
        residual: residual.data.f32().address(),
        delta: delta.map_or(0, |delta| delta.data.address()),
        weight: norm.weight.data.f32().address(),
        bias: norm.bias.as_ref().map_or(0, |bias| bias.data.f32().address()),
        out: out.target(rows, quant),
        cols: cols as u32,
        layer_norm: layer_norm(norm.kind),
        eps: norm.eps,
        delta_bf16: delta.map_or(0, Floats::is_bf16),
    };
    let launch = Launch { kernel: "norm", grid: [rows, 1, 1], threads: row::threads(cols), shared: 4 * cols };
    // SAFETY: shapes have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}

/// The parameter `layer_norm` of kernels that compute a norm.
pub(super) fn layer_norm(kind: NormKind) -> u32 {
    match kind {
        NormKind::LayerNorm1p => 1,
        NormKind::RmsNorm => 0,
    }
}

/// Checks the weights and the output of a norm over rows of `cols` elements.
pub(super) fn check_shapes(norm: &Norm<Cuda>, cols: usize, out: &Acts) {
    let shape = |floats: &Floats| (floats.rows, floats.cols);
    assert_eq!(shape(&norm.weight), (1, cols), "weights of a norm over {cols}");
    assert_eq!(out.cols, cols, "output of a norm over {cols}");
    assert_eq!(norm.bias.as_ref().map_or((1, cols), shape), (1, cols), "biases of a norm over {cols}");
}
