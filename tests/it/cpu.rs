//! The CPU device's operations: against plain references in F64, and row by row the same bits in any company.

mod attention;
mod fp8;
mod linear;
mod rows;
mod sample;

use octant::device::cpu::{Cpu, CpuOptions, Isa};
use octant::device::{ActQuant, Device, HostMatrix, MatrixData, Norm, NormKind, fp8 as codec};

/// A device for each instruction set of this machine.
fn devices() -> Vec<Cpu> {
    Isa::available()
        .into_iter()
        .map(|isa| Cpu::new(CpuOptions { threads: 2, isa: Some(isa) }).unwrap())
        .collect()
}

/// Reproducible noise in about [-2, 2], bell-shaped, by splitmix64.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| next() + next() + next() + next() - 2.0).collect()
}

/// Puts `x` through a device's quantisation by way of a norm that changes nothing: what products then see.
fn acts(cpu: &Cpu, x: &[f32], cols: usize, quant: ActQuant) -> <Cpu as Device>::Acts {
    let rows = x.len() / cols;
    let mut out = cpu.acts(rows, cols).unwrap();
    let mut residual = cpu.floats(rows, cols).unwrap();
    cpu.write(x, &mut residual).unwrap();
    // RMSNorm with an epsilon that dwarfs the variance multiplies by 1e-9; the weight brings it back.
    let norm = Norm {
        kind: NormKind::RmsNorm,
        weight: cpu.vector(&vec![1e9; cols]).unwrap(),
        bias: None,
        eps: 1e18,
    };
    cpu.norm(&mut residual, None, &norm, quant, &mut out).unwrap();
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

/// `[rows, input] x [out, input]` on a device.
fn product(cpu: &Cpu, x: &<Cpu as Device>::Acts, rows: usize, w: HostMatrix<'_>) -> Vec<f32> {
    let matrix = cpu.matrix(w).unwrap();
    let mut out = cpu.floats(rows, w.out).unwrap();
    cpu.linear(x, &matrix, &mut out).unwrap();
    cpu.read(&out).unwrap()
}

fn bf16_matrix(w: &[u16], input: usize) -> HostMatrix<'_> {
    HostMatrix { out: w.len() / input, input, data: MatrixData::Bf16(w) }
}
