//! Measures one kernel: the CPU device's linear (matrix product with FP8 or BF16 weights), over a table of
//! shapes and row counts. No other CPU kernel and no CUDA kernel is measured, and the `COST` lines of the
//! CUDA kernel files are neither computed nor compared here.
//!
//!     cargo bench --bench kernels [-- --threads N --cpu-instructions avx512|avx2|portable --pairs true|false
//!         --shape NAME]
//!
//! At its start it measures the peak of the vector instructions and the read bandwidth. Each line shows the
//! median time of a product and the shortest, bytes of weights read per second, that rate as a fraction of
//! the read bandwidth, floating-point operations per second, and these as a fraction of the limit: of the
//! peak, or of what the read bandwidth allows where that is less. Rates are those of the median, and the
//! last figure is the fraction for the shortest time.

use std::time::Instant;

use octant::bench::cpu_read_bandwidth;
use octant::device::cpu::{Cpu, CpuOptions, Isa};
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
const ROWS: [usize; 10] = [1, 2, 4, 6, 8, 11, 16, 64, 200, 512];

/// The limits of this machine.
struct Limits {
    /// Bytes read per second.
    read: f64,
    /// Floating-point operations per second of the fastest instruction.
    flops: f64,
}

/// The value after `name` in the arguments.
fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn main() {
    let threads = argument("--threads").and_then(|n| n.parse().ok()).unwrap_or(octant::machine::cores());
    let isa = argument("--cpu-instructions").map(|name| match name.as_str() {
        "avx512" => Isa::Avx512,
        "avx2" => Isa::Avx2,
        "portable" => Isa::Portable,
        other => panic!("--cpu-instructions {other}: expected avx512, avx2 or portable"),
    });
    let pairs = argument("--pairs").map(|value| value == "true");
    let cpu = Cpu::new(CpuOptions { threads, isa, pairs }).expect("a CPU device");
    let read = cpu_read_bandwidth(threads, 1 << 30);
    let peak = cpu.peak_rates();
    println!("{:?}, {threads} threads, reads {:.1} GB/s from 1 GiB", cpu.isa(), read / 1e9);
    println!(
        "peak of multiply-adds {:.1} GFLOP/s, of dot products of BF16 pairs {:.1}; pairs for all rows: {}",
        peak.multiply_adds / 1e9,
        peak.pairs.unwrap_or(0.0) / 1e9,
        cpu.pairs(),
    );
    let limits = Limits { read, flops: peak.multiply_adds.max(peak.pairs.unwrap_or(0.0)) };
    let only = argument("--shape");
    for fp8 in [true, false] {
        for shape in SHAPES.iter().filter(|shape| only.as_ref().is_none_or(|name| shape.name == name)) {
            bench(&cpu, shape, fp8, &limits);
        }
    }
}

/// Measures one shape with all row counts.
fn bench(cpu: &Cpu, &Shape { name, out, input }: &Shape, fp8: bool, limits: &Limits) {
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
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let time = Distribution::of(times).p50;
        let flops = 2.0 * (rows * out * input) as f64;
        let limit = limits.flops.min(flops / (bytes / limits.read));
        println!(
            "{} {name:14} [{out:5}, {input:5}] rows {rows:3}: {:9.1} us, best {:9.1} {:6.1} GB/s \
             ({:4.2} of read) {:7.1} GFLOP/s ({:4.2} of limit, best {:4.2})",
            if fp8 { "fp8 " } else { "bf16" },
            time * 1e6,
            best * 1e6,
            bytes / time / 1e9,
            bytes / time / limits.read,
            flops / time / 1e9,
            flops / time / limit,
            flops / best / limit,
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
