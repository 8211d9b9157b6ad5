//! `kernels/random_weights.cu`.

use super::{Buffer, Cuda, Launch, Matrix};
use crate::device::{DeviceError, MatrixShape, RandomWeights};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RandomWeightsParams {
    w: u64,
    scales: u64,
    seed: u64,
    codes: [u64; 32],
    n: u32,
    k: u32,
    chunks: u32,
    scale: f32,
}
const _: () = assert!(size_of::<RandomWeightsParams>() == 296);

/// Blocks of a launch: eight per multiprocessor of an H100.
const BLOCKS: usize = 1056;
const THREADS: usize = 256;

pub(super) fn run(cuda: &Cuda, weights: &RandomWeights<'_>) -> Result<Matrix, DeviceError> {
    let matrix = Matrix::zeros(
        &cuda.driver,
        MatrixShape { out: weights.out, input: weights.input, bf16: weights.bf16 },
    )?;
    let codes = std::array::from_fn(|word| {
        u64::from_le_bytes(std::array::from_fn(|byte| weights.codes[word * 8 + byte]))
    });
    let params = RandomWeightsParams {
        w: matrix.data.address(),
        scales: matrix.scales.as_ref().map_or(0, Buffer::address),
        seed: weights.seed,
        codes,
        n: matrix.out as u32,
        k: matrix.input as u32,
        chunks: matrix.chunks() as u32,
        scale: weights.scale,
    };
    let blocks = BLOCKS.min((weights.out * weights.input / 8).div_ceil(THREADS));
    let (kernel, grid) = ("random_weights", [blocks, 1, 1]);
    let launch = Launch { kernel, grid, threads: THREADS as u32, shared: 0 };
    // SAFETY: the matrix has memory for all outputs and inputs.
    unsafe { cuda.driver.launch(launch, &params) }?;
    Ok(matrix)
}
