//! Measures one kernel: the CPU device's linear (matrix product with FP8 or BF16 weights), over a table of
//! shapes and row counts. No other CPU kernel and no CUDA kernel is measured, and the `COST` lines of the
//! CUDA kernel files are neither computed nor compared here.
//!
//!     cargo bench --bench kernels [-- --threads N]
//!
//! Each line shows the median time of a product, bytes of weights read per second, that rate as a fraction of
//! the machine's read bandwidth (measured at the start of the run), and floating-point operations per second.

use std::time::Instant;

use octant::bench::cpu_read_bandwidth;
use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::{
    ActQuant, Device, HostMatrix, MatrixData, Norm, NormKind, upload_floats, upload_matrix,
};
use octant::statistics::Distribution;

/// A weight matrix to measure: [out, input].
struct Shape {
    name: &'static str,
    out: usize,
    input: usize,
}

/// Shapes of the demo model, of one rank of Nemotron-4 340B with a tenth of its outputs, and one large
/// matrix.
const SHAPES: [Shape; 7] = [
    Shape { name: "demo qkv", out: 960, input: 576 },
    Shape { name: "demo o", out: 576, input: 576 },
    Shape { name: "demo gate+up", out: 3072, input: 576 },
    Shape { name: "demo down", out: 576, input: 1536 },
    Shape { name: "340B up / 10", out: 928, input: 18432 },
    Shape { name: "340B down / 10", out: 1856, input: 9216 },
    Shape { name: "large", out: 16384, input: 4096 },
];

/// Rows of the activations.
const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 64];

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--threads").skip(1);
    let default = octant::machine::cores();
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let cpu = Cpu::new(CpuOptions { threads, isa: None }).expect("a CPU device");
    let memory = cpu_read_bandwidth(threads, 1 << 30);
    println!("{:?}, {threads} threads, reads {:.1} GB/s from 1 GiB", cpu.isa(), memory / 1e9);
    for fp8 in [true, false] {
        for shape in &SHAPES {
            bench(&cpu, shape, fp8, memory);
        }
    }
}

/// Measures one shape with all row counts; `read_bandwidth` is in bytes per second.
fn bench(cpu: &Cpu, &Shape { name, out, input }: &Shape, fp8: bool, read_bandwidth: f64) {
    let codes: Vec<u8> =
        (0..out * input).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x77).collect();
    let halves: Vec<u16> = codes.iter().map(|c| 0x3C00 + u16::from(*c)).collect();
    let scales = vec![1.0; out];
    let data =
        if fp8 { MatrixData::Fp8 { codes: &codes, scales: &scales } } else { MatrixData::Bf16(&halves) };
    let matrix = upload_matrix(cpu, HostMatrix { out, input, data }).expect("memory");
    let bytes = matrix.bytes() as f64;
    for rows in ROWS {
        let x = inputs(cpu, rows, input);
        let mut y = cpu.floats(rows, out).expect("memory");
        let times: Vec<f64> = (0..7)
            .map(|_| {
                let count = ((2e7 / (out * input * rows) as f64) as usize).max(1);
                let start = Instant::now();
                (0..count).for_each(|_| cpu.linear(&x, &matrix, &mut y).expect("a product"));
                start.elapsed().as_secs_f64() / count as f64
            })
            .collect();
        let time = Distribution::of(times).p50;
        let flops = 2.0 * (rows * out * input) as f64 / time;
        println!(
            "{} {name:14} [{out:5}, {input:5}] rows {rows:3}: {:9.1} us {:6.1} GB/s ({:4.2} of read) \
             {:7.1} GFLOP/s",
            if fp8 { "fp8 " } else { "bf16" },
            time * 1e6,
            bytes / time / 1e9,
            bytes / time / read_bandwidth,
            flops / 1e9,
        );
    }
}

/// Returns FP8 activations, quantised per token by a norm.
fn inputs(cpu: &Cpu, rows: usize, cols: usize) -> <Cpu as Device>::Acts {
    let mut residual = cpu.floats(rows, cols).expect("memory");
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 251) as f32 - 125.0).collect();
    cpu.write(&values, &mut residual).expect("whole rows");
    let weight = upload_floats(cpu, cols, &vec![1.0; cols]).expect("memory");
    let norm = Norm { kind: NormKind::RmsNorm, weight, bias: None, eps: 1e-5 };
    let mut acts = cpu.acts(rows, cols).expect("memory");
    cpu.norm(&mut residual, None, &norm, ActQuant::Fp8PerToken, &mut acts).expect("a norm");
    acts
}
