//! The CPU device's matrix product over a table of shapes and row counts: time, bytes of weights per second as a
//! fraction of the machine's read bandwidth measured in the same run, and arithmetic per second.
//!
//!     cargo bench --bench kernels [-- --threads N]

use std::time::Instant;

use octant::commands::bench::cpu_read_bandwidth;
use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::{
    ActQuant, Device, HostMatrix, MatrixData, Norm, NormKind, upload_floats, upload_matrix,
};

/// (name, out, in): the demo model's, then one rank's of Nemotron-4 340B cut to a tenth of its outputs.
const SHAPES: [(&str, usize, usize); 7] = [
    ("demo qkv", 960, 576),
    ("demo o", 576, 576),
    ("demo gate+up", 3072, 576),
    ("demo down", 576, 1536),
    ("340B up / 10", 928, 18432),
    ("340B down / 10", 1856, 9216),
    ("large", 16384, 4096),
];
const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 64];

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--threads").skip(1);
    let default = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let cpu = Cpu::new(CpuOptions { threads, isa: None }).expect("the best there is");
    let memory = cpu_read_bandwidth(threads, 1 << 30);
    println!("{:?}, {threads} threads, reads {:.1} GB/s from 1 GiB", cpu.isa(), memory / 1e9);
    for fp8 in [true, false] {
        for (name, out, input) in SHAPES {
            bench(&cpu, name, (out, input), fp8, memory);
        }
    }
}

fn bench(cpu: &Cpu, name: &str, (out, input): (usize, usize), fp8: bool, memory: f64) {
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
        let mut times: Vec<f64> = (0..7)
            .map(|_| {
                let count = ((2e7 / (out * input * rows) as f64) as usize).max(1);
                let start = Instant::now();
                (0..count).for_each(|_| cpu.linear(&x, &matrix, &mut y).expect("a product"));
                start.elapsed().as_secs_f64() / count as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let time = times[times.len() / 2];
        let flops = 2.0 * (rows * out * input) as f64 / time;
        println!(
            "{} {name:14} [{out:5}, {input:5}] rows {rows:3}: {:9.1} us {:6.1} GB/s ({:4.2} of read) {:7.1} GFLOP/s",
            if fp8 { "fp8 " } else { "bf16" },
            time * 1e6,
            bytes / time / 1e9,
            bytes / time / memory,
            flops / 1e9,
        );
    }
}

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
