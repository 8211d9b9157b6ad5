//! `kernels/add.cu`.

use super::{Cuda, Floats, Launch};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AddParams {
    x: u64,
    parts: [u64; MAX_PARTS],
    vectors: u64,
    count: u32,
    x_bf16: u32,
    parts_bf16: u32,
    unused: u32,
}
const _: () = assert!(size_of::<AddParams>() == 88);

const MAX_PARTS: usize = 7;
const THREADS: usize = 256;
/// Blocks of a launch: four per multiprocessor of an H100.
const BLOCKS: usize = 528;

pub(super) fn run(cuda: &Cuda, parts: &[Floats], x: &mut Floats) -> Result<(), DeviceError> {
    let elements = x.rows * x.cols;
    assert!(parts.len() <= MAX_PARTS, "{} parts", parts.len());
    assert!(elements.is_multiple_of(4), "{elements} elements");
    assert!(parts.iter().all(|part| part.data.len() >= elements), "{elements} elements of each part");
    let address = |part: usize| parts.get(part).map_or(0, |part| part.data.address());
    let vectors = elements / 4;
    let params = AddParams {
        x: x.data.address(),
        parts: std::array::from_fn(address),
        vectors: vectors as u64,
        count: parts.len() as u32,
        x_bf16: x.is_bf16(),
        parts_bf16: parts_bf16(parts),
        unused: 0,
    };
    let grid = [BLOCKS.min(vectors.div_ceil(THREADS)), 1, 1];
    let launch = Launch { kernel: "add", grid, threads: THREADS as u32, shared: 0 };
    // SAFETY: all buffers have at least `elements` elements.
    unsafe { cuda.driver.launch(launch, &params) }
}

/// Whether the parts are BF16, as a parameter.
fn parts_bf16(parts: &[Floats]) -> u32 {
    let Some((first, others)) = parts.split_first() else { return 0 };
    assert!(others.iter().all(|part| part.float_type == first.float_type), "parts of different types");
    first.is_bf16()
}
