//! Runs the product kernel on the host at the shapes of one of the 340B's eight ranks, with 1 to 16 rows:
//! every row must have the same bits for any number of rows, and agree with the CPU device. It takes minutes
//! and so is no part of the tests.
//!
//!     cargo bench --profile dev --features host-kernels --bench rank_shapes
//!
//! With `OCTANT_HOST_TRUNCATES=1` the emulated tensor cores sum with 13 fraction bits, as Hopper does.

use std::time::Instant;

use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::cuda::{Cuda, Products};
use octant::device::{
    ActQuant, Device, HostMatrix, MatrixData, Norm, NormKind, fp8, upload_floats, upload_matrix,
};
use octant::random::Random;

/// The products of one rank: name, outputs, inputs. 12 query heads and one KV head of 192 elements, a hidden
/// size of 18,432 and an MLP of 73,728.
const SHAPES: [(&str, usize, usize); 4] = [
    ("QKV", 14 * 192, 18_432),
    ("attention output", 18_432, 12 * 192),
    ("MLP up", 73_728 / 8, 18_432),
    ("MLP down", 18_432, 73_728 / 8),
];

/// Numbers of rows.
const ROWS: [usize; 5] = [16, 1, 2, 7, 8];

/// The largest difference from the CPU device, as a share of the sum of absolute terms. Both multiply the
/// same E4M3 values exactly. The CPU adds in F32, whose rounding over 18,432 terms is about 1e-6 of that sum;
/// a truncating accumulator loses up to 2^-13 of the largest term of an instruction.
fn bound() -> f32 {
    let truncates = std::env::var_os("OCTANT_HOST_TRUNCATES").is_some_and(|value| value == "1");
    if truncates { 3e-4 } else { 4e-6 }
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut next = || (random.bits() >> 40) as f32 / (1u64 << 24) as f32;
    (0..len).map(|_| next() + next() + next() + next() - 2.0).collect()
}

/// A product on a device: the quantised input, which a norm that changes nothing makes, times the weights.
fn product<D: Device>(device: &D, x: &[f32], matrix: &D::Matrix, cols: usize, out: usize) -> Vec<f32> {
    let rows = x.len() / cols;
    let mut residual = device.floats(rows, cols).expect("a buffer");
    device.write(x, &mut residual).expect("a copy");
    let norm = Norm {
        kind: NormKind::RmsNorm,
        weight: upload_floats(device, cols, &vec![(1u64 << 30) as f32; cols]).expect("weights"),
        bias: None,
        eps: (1u64 << 60) as f32,
    };
    let mut acts = device.acts(rows, cols).expect("a buffer");
    device.norm(&mut residual, None, &norm, ActQuant::Fp8PerToken, &mut acts).expect("a norm");
    let mut result = device.floats(rows, out).expect("a buffer");
    device.linear(&acts, matrix, &mut result).expect("a product");
    device.read(&result).expect("a copy")
}

fn main() {
    let cpu = Cpu::new(CpuOptions { threads: octant::machine::cores(), ..Default::default() })
        .expect("a CPU device");
    let host = Cuda::on_host(false, Products::default()).expect("kernels on the host");
    let mut failed = false;
    for (name, out, input) in SHAPES {
        let codes: Vec<u8> = noise(1, out * input).into_iter().map(fp8::encode).collect();
        let scales = vec![1.0; out];
        let matrix = HostMatrix { out, input, data: MatrixData::Fp8 { codes: &codes, scales: &scales } };
        let on_cpu = upload_matrix(&cpu, matrix).expect("weights");
        let on_host = upload_matrix(&host, matrix).expect("weights");
        let x = noise(2, ROWS[0] * input);
        let expected = product(&cpu, &x, &on_cpu, input, out);
        // Absolute inputs and weights are about 0.46 and 0.46 on average.
        let size = input as f32 * 0.46 * 0.46;
        let mut all = Vec::new();
        for rows in ROWS {
            let began = Instant::now();
            let got = product(&host, &x[..rows * input], &on_host, input, out);
            let seconds = began.elapsed().as_secs_f64();
            let errors = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs() / size);
            let error = errors.fold(0.0, f32::max);
            if all.is_empty() {
                all.clone_from(&got);
            }
            let same = got[..] == all[..rows * out];
            print!("{name:>18} [{out}, {input}], {rows:>2} rows: ");
            println!("error {error:.1e}, same bits {same}, {seconds:.1} s");
            failed |= !same || error.is_nan() || error > bound();
        }
    }
    assert!(!failed, "a product differs");
}
