//! Measures the read bandwidth of a device's memory. `octant bench rank` divides by it to compute the floors
//! that it prints.

use std::hint::black_box;
use std::time::Instant;

use crate::launch::{Devices, NOTHING_TO_MEASURE};

/// Bytes per second that the first rank reads from its memory.
pub(super) fn read_bandwidth(devices: &Devices) -> anyhow::Result<f64> {
    match devices {
        Devices::Cpu(cpus) => Ok(cpu_read_bandwidth(cpus[0].threads(), 1 << 30)),
        Devices::Cuda(gpus) => gpus.read_bandwidth(),
        Devices::Simulated(_) => anyhow::bail!(NOTHING_TO_MEASURE),
    }
}

/// Bytes per second at which `threads` threads sum a buffer of `bytes` bytes, which should be much larger
/// than any cache. The result is the best of three runs.
pub fn cpu_read_bandwidth(threads: usize, bytes: usize) -> f64 {
    let data = vec![1u64; bytes / 8];
    let part = data.len() / threads;
    let run = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for chunk in data.chunks(part) {
                scope.spawn(move || black_box(chunk.iter().fold(0u64, |sum, x| sum.wrapping_add(*x))));
            }
        });
        bytes as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| run()).fold(0.0, f64::max)
}
