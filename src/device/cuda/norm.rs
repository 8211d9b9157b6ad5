//! `kernels/norm.cu`.

use super::row::{self, Quantised};
use super::{Acts, Buffer, Cuda, Floats, Launch};
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
    unused: u32,
}
const _: () = assert!(size_of::<NormParams>() == 72);

pub(super) fn run(
    cuda: &Cuda,
    residual: &mut Floats,
    delta: Option<&Floats>,
    norm: &Norm<Buffer<f32>>,
    quant: ActQuant,
    out: &mut Acts,
) -> Result<(), DeviceError> {
    let (rows, cols) = (residual.rows, residual.cols);
    assert_eq!((norm.weight.len(), out.cols), (cols, cols), "weights and output of a norm over {cols}");
    assert_eq!(norm.bias.as_ref().map_or(cols, Buffer::len), cols, "biases of a norm over {cols}");
    if let Some(delta) = delta {
        assert_eq!((delta.rows, delta.cols), (rows, cols), "shape of what is added to the residual");
    }
    let params = NormParams {
        residual: residual.data.address(),
        delta: delta.map_or(0, |delta| delta.data.address()),
        weight: norm.weight.address(),
        bias: norm.bias.as_ref().map_or(0, Buffer::address),
        out: out.target(rows, quant),
        cols: cols as u32,
        layer_norm: u32::from(norm.kind == NormKind::LayerNorm1p),
        eps: norm.eps,
        unused: 0,
    };
    let launch = Launch { kernel: "norm", grid: [rows, 1, 1], threads: row::threads(cols), shared: 4 * cols };
    // SAFETY: the shapes have been compared.
    unsafe { cuda.driver.launch(launch, &params) }
}
