//! Tests of every device: operations against plain references in F64, equal bits of a row in any batch, and
//! whole models against transformers. Each test binary has its own `dev`, which makes the device under test.

mod attention;
mod bench_kernels;
pub mod determinism;
mod float_types;
pub mod golden;
pub mod grammars;
mod linear;
mod matrix_builder;
mod mlp;
pub mod model;
mod prompt_logprobs;
mod random_requests;
mod random_weights;
pub mod reward;
mod rows;
mod sample;
mod smollm2;
mod speculation;

use octant::device::{
    ActQuant, Device, HostMatrix, MatrixData, Norm, NormKind, fp8 as codec, upload_floats, upload_matrix,
};
use octant::random::Random;

use crate::dev::Dev;

/// Reproducible noise in about [-2, 2], bell-shaped.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut next = || (random.bits() >> 40) as f32 / (1u64 << 24) as f32;
    (0..len).map(|_| next() + next() + next() + next() - 2.0).collect()
}

/// Uploads `x` as the input of a matrix product. A norm that leaves the values unchanged quantises them.
pub fn acts(device: &Dev, x: &[f32], cols: usize, quant: ActQuant) -> <Dev as Device>::Acts {
    let rows = x.len() / cols;
    let mut out = device.acts(rows, cols).unwrap();
    let mut residual = device.floats(rows, cols).unwrap();
    device.write(x, &mut residual).unwrap();
    // RMSNorm with an epsilon far above the variance multiplies by 2^-30; the weight undoes that exactly.
    let norm = Norm {
        kind: NormKind::RmsNorm,
        weight: upload_floats(device, cols, &vec![(1u64 << 30) as f32; cols]).unwrap(),
        bias: None,
        eps: (1u64 << 60) as f32,
    };
    device.norm(&mut residual, None, &norm, quant, &mut out).unwrap();
    out
}

/// Rows of a matrix as E4M3 codes with their scales.
fn quantized(w: &[f32], input: usize) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; w.len()];
    let rows = w.chunks_exact(input).zip(codes.chunks_exact_mut(input));
    let scales = rows.map(|(row, codes)| codec::quantize_row(row, codes)).collect();
    (codes, scales)
}

fn bf16(w: &[f32]) -> Vec<u16> {
    w.iter().map(|x| codec::bf16_bits(*x)).collect()
}

/// Multiplies `x`, `[rows, input]`, by the transpose of `w`, `[out, input]`, on a device.
fn product(device: &Dev, x: &<Dev as Device>::Acts, rows: usize, w: HostMatrix<'_>) -> Vec<f32> {
    let matrix = upload_matrix(device, w).unwrap();
    let mut out = device.floats(rows, w.out).unwrap();
    device.linear(x, &matrix, &mut out).unwrap();
    device.read(&out).unwrap()
}

fn bf16_matrix(w: &[u16], input: usize) -> HostMatrix<'_> {
    HostMatrix { out: w.len() / input, input, data: MatrixData::Bf16(w) }
}

/// Reads quantised rows back as F32: multiplies them by the identity matrix, which E4M3 holds exactly.
fn seen(device: &Dev, acts: &<Dev as Device>::Acts, rows: usize, cols: usize) -> Vec<f32> {
    let codes: Vec<u8> =
        (0..cols * cols).map(|i| if i / cols == i % cols { codec::encode(1.0) } else { 0 }).collect();
    let data = MatrixData::Fp8 { codes: &codes, scales: &vec![1.0; cols] };
    product(device, acts, rows, HostMatrix { out: cols, input: cols, data })
}
