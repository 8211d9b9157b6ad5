//! `kernels/stream_read.cu`: measures the device's read bandwidth, the bound of products of few rows.

use std::time::Instant;

use super::{Cuda, Launch};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct StreamReadParams {
    data: u64,
    out: u64,
    vectors: u64,
}
const _: () = assert!(size_of::<StreamReadParams>() == 24);

/// Blocks of a launch: four per multiprocessor of an H100.
const BLOCKS: usize = 528;

/// Reads `words`, whose number is a multiple of 4, once, and then `times` more times, which are timed.
/// Returns bytes per second and the XOR of all words.
pub(super) fn run(cuda: &Cuda, words: &[u32], times: usize) -> Result<(f64, u32), DeviceError> {
    let data = cuda.driver.buffer::<u32>(words.len())?;
    data.write(0, words)?;
    let out = cuda.driver.buffer::<u32>(BLOCKS)?;
    let params =
        StreamReadParams { data: data.address(), out: out.address(), vectors: (words.len() / 4) as u64 };
    let launch = Launch { kernel: "stream_read", grid: [BLOCKS, 1, 1], threads: 512, shared: 0 };
    // SAFETY: both buffers have the lengths in the parameters.
    let launch_once = || unsafe { cuda.driver.launch(launch, &params) };
    launch_once()?;
    let sum = out.read(BLOCKS)?.into_iter().fold(0, |sum, x| sum ^ x);
    let start = Instant::now();
    for _ in 0..times {
        launch_once()?;
    }
    out.read(1)?;
    Ok(((words.len() * 4 * times) as f64 / start.elapsed().as_secs_f64(), sum))
}
