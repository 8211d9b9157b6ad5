//! `kernels/reward_head.cu`.

use super::row::{MAX_COLS, threads};
use super::{Cuda, Floats, Launch, norm};
use crate::device::{DeviceError, Norm, RewardWeights};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RewardHeadParams {
    hidden: u64,
    norm_weight: u64,
    norm_bias: u64,
    weight: u64,
    bias: u64,
    out: u64,
    cols: u32,
    width: u32,
    layer_norm: u32,
    eps: f32,
}
const _: () = assert!(size_of::<RewardHeadParams>() == 64);

pub(super) fn run(
    cuda: &Cuda,
    hidden: &Floats,
    norm: &Norm<Cuda>,
    head: &RewardWeights<Cuda>,
    out: &mut Floats,
) -> Result<(), DeviceError> {
    let (rows, cols, width) = (hidden.rows, hidden.cols, head.weight.rows);
    let shape = |floats: &Floats| (floats.rows, floats.cols);
    assert!(cols.is_multiple_of(8) && cols <= MAX_COLS, "rows of {cols} elements");
    assert_eq!(shape(&norm.weight), (1, cols), "weights of a norm over {cols}");
    assert_eq!(norm.bias.as_ref().map_or((1, cols), shape), (1, cols), "biases of a norm over {cols}");
    assert_eq!(head.weight.cols, cols, "columns of a reward head after rows of {cols}");
    assert_eq!(shape(&head.bias), (1, width), "biases of a reward head of {width} values");
    assert_eq!(out.cols, width, "columns for a reward head of {width} values");
    out.set_rows(rows);
    let params = RewardHeadParams {
        hidden: hidden.data.f32().address(),
        norm_weight: norm.weight.data.f32().address(),
        norm_bias: norm.bias.as_ref().map_or(0, |bias| bias.data.f32().address()),
        weight: head.weight.data.f32().address(),
        bias: head.bias.data.f32().address(),
        out: out.data.f32().address(),
        cols: cols as u32,
        width: width as u32,
        layer_norm: norm::layer_norm(norm.kind),
        eps: norm.eps,
    };
    let launch =
        Launch { kernel: "reward_head", grid: [rows, 1, 1], threads: threads(cols), shared: 4 * cols };
    // SAFETY: shapes have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
