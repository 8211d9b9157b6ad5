//! `kernels/embed.cu`.

use super::{Buffer, Cuda, Floats, Launch, Matrix, Step};
use crate::device::{DeviceError, EmbeddingTable};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct EmbedParams {
    tokens: u64,
    last: u64,
    table: u64,
    scales: u64,
    out: u64,
    cols: u32,
    chunks: u32,
    first: u32,
    rows: u32,
}
const _: () = assert!(size_of::<EmbedParams>() == 56);

pub(super) fn run(
    cuda: &Cuda,
    step: &Step,
    table: EmbeddingTable<'_, Matrix>,
    out: &mut Floats,
) -> Result<(), DeviceError> {
    let EmbeddingTable { matrix, first } = table;
    let (step, sampled) = (&step.tables, &step.sampled);
    assert_eq!(matrix.input, out.cols, "columns of an embedding of {}", out.cols);
    assert!(step.slots <= sampled.slots(), "slot {} of {}", step.slots, sampled.slots());
    out.set_rows(step.rows);
    let params = EmbedParams {
        tokens: step.tokens(),
        last: sampled.last(),
        table: matrix.data.address(),
        scales: matrix.scales.as_ref().map_or(0, Buffer::address),
        out: out.data.f32().address(),
        cols: matrix.input as u32,
        chunks: matrix.chunks() as u32,
        first: first as u32,
        rows: matrix.out as u32,
    };
    let launch = Launch { kernel: "embed", grid: [step.rows, 1, 1], threads: 256, shared: 0 };
    // SAFETY: shapes and slots have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
