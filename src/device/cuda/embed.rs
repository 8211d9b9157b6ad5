//! `kernels/embed.cu`.

use super::{Buffer, Cuda, Draws, Floats, Launch, Matrix, Step};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct EmbedParams {
    tokens: u64,
    last: u64,
    table: u64,
    scales: u64,
    out: u64,
    cols: u32,
    k_blocks: u32,
}
const _: () = assert!(size_of::<EmbedParams>() == 48);

pub(super) fn run(
    cuda: &Cuda,
    step: &Step,
    table: &Matrix,
    draws: &Draws,
    out: &mut Floats,
) -> Result<(), DeviceError> {
    assert_eq!(table.input, out.cols, "columns of an embedding of {}", out.cols);
    assert!(step.largest_token < table.out, "token {} of {}", step.largest_token, table.out);
    assert!(step.slots <= draws.slots(), "a slot of {} in {}", step.slots, draws.slots());
    out.resize(step.rows);
    let params = EmbedParams {
        tokens: step.tokens(),
        last: draws.last(),
        table: table.data.address(),
        scales: table.scales.as_ref().map_or(0, Buffer::address),
        out: out.data.address(),
        cols: table.input as u32,
        k_blocks: table.k_blocks() as u32,
    };
    let launch = Launch { kernel: "embed", grid: [step.rows, 1, 1], threads: 256, shared: 0 };
    // SAFETY: the shapes have been compared, and the tokens with the table.
    unsafe { cuda.driver.launch(launch, &params) }
}
