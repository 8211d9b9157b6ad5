//! `kernels/linear.cu`.

use super::matrix::TILE;
use super::{Acts, Buffer, Cuda, Driver, Floats, Launch, Matrix};
use crate::device::DeviceError;

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LinearParams {
    x: u64,
    x_scales: u64,
    w: u64,
    w_scales: u64,
    out: u64,
    partials: u64,
    counters: u64,
    m: u32,
    n: u32,
    k: u32,
    k_blocks: u32,
    tiles: u32,
    units: u32,
    ctas: u32,
    unused: u32,
}
const _: () = assert!(size_of::<LinearParams>() == 88);

/// Blocks of a launch: two per multiprocessor of an H100. Fixed, since the order of sums depends on how work
/// is cut.
pub(super) const CTAS: usize = 264;
/// K blocks of a unit of work.
const UNIT: usize = 8;
/// Rows of the largest kernel variant. More rows take several passes over the weights.
const MAX_ROWS: usize = 128;
const THREADS: usize = 256;
/// Bytes of scratch per output feature: one F32 sum per row.
pub(super) const SCRATCH_BYTES: usize = 4 * MAX_ROWS;

/// Partial sums of tiles that are cut between blocks.
#[derive(Debug, Default)]
pub(super) struct LinearScratch {
    partials: Option<Buffer<[f32; 4]>>,
    /// For each tile, the number of parts that have been written.
    counters: Option<Buffer<u32>>,
}

impl LinearScratch {
    /// Grows the scratch for products with a matrix.
    pub(super) fn grow(&mut self, driver: &Driver, matrix: &Matrix) -> Result<(), DeviceError> {
        let tiles = matrix.tiles();
        if self.counters.as_ref().is_none_or(|counters| counters.len() < tiles) {
            self.counters = Some(driver.buffer(tiles)?);
            self.partials = None;
            self.partials = Some(driver.buffer((tiles + CTAS) * TILE * MAX_ROWS / 4)?);
        }
        Ok(())
    }
}

pub(super) fn run(cuda: &Cuda, x: &Acts, w: &Matrix, out: &mut Floats) -> Result<(), DeviceError> {
    assert_eq!(
        (x.cols, out.cols),
        (w.input, w.out),
        "input and output of a [{}, {}] product",
        w.out,
        w.input
    );
    assert!(!w.bf16() || x.bf16, "BF16 weights take BF16 inputs");
    out.set_rows(x.rows);
    for first in (0..x.rows).step_by(MAX_ROWS) {
        pass(cuda, x, w, out, first..x.rows.min(first + MAX_ROWS))?;
    }
    Ok(())
}

/// One pass over the weights, for a range of rows.
fn pass(
    cuda: &Cuda,
    x: &Acts,
    w: &Matrix,
    out: &Floats,
    rows: std::ops::Range<usize>,
) -> Result<(), DeviceError> {
    let scratch = &cuda.scratch().linear;
    let made = "the scratch was grown when the matrix was made";
    let (variant, most) = variant(rows.len());
    let (kernel, depth) = match (w.bf16(), x.bf16) {
        (false, false) => (variant.e4m3, 32),
        (false, true) => (variant.e4m3_bf16, 32),
        (true, _) => (variant.bf16, 16),
    };
    let units = w.k_blocks().div_ceil(UNIT);
    let params = LinearParams {
        x: x.values.at(rows.start * x.cols * if x.bf16 { 2 } else { 1 }),
        x_scales: x.scales.at(rows.start),
        w: w.data.address(),
        w_scales: w.scales.as_ref().map_or(0, Buffer::address),
        out: out.data.at(rows.start * out.cols),
        partials: scratch.partials.as_ref().expect(made).address(),
        counters: scratch.counters.as_ref().expect(made).address(),
        m: rows.len() as u32,
        n: w.out as u32,
        k: w.input as u32,
        k_blocks: w.k_blocks() as u32,
        tiles: w.tiles() as u32,
        units: units as u32,
        ctas: CTAS.min(w.tiles() * units) as u32,
        unused: 0,
    };
    // A row of a unit's inputs has two bytes per element, and padding that puts rows on different banks.
    let stride = UNIT * depth + if depth == 16 { 16 } else { 32 };
    let launch = Launch {
        kernel,
        grid: [params.ctas as usize, 1, 1],
        threads: THREADS as u32,
        shared: most * stride * 2,
    };
    // SAFETY: shapes have been checked, and the scratch was grown for the matrix.
    unsafe { cuda.driver.launch(launch, &params) }
}

/// The kernels of one maximum of rows, by types of weights and inputs.
struct Variant {
    e4m3: &'static str,
    e4m3_bf16: &'static str,
    bf16: &'static str,
}

/// The smallest variant that takes `rows` rows, and its maximum of rows.
fn variant(rows: usize) -> (Variant, usize) {
    macro_rules! variant {
        ($n:literal) => {
            (
                Variant {
                    e4m3: concat!("linear_e4m3_", $n),
                    e4m3_bf16: concat!("linear_e4m3_bf16_", $n),
                    bf16: concat!("linear_bf16_", $n),
                },
                8 * $n,
            )
        };
    }
    match rows {
        0..=8 => variant!(1),
        9..=16 => variant!(2),
        17..=32 => variant!(4),
        33..=64 => variant!(8),
        _ => variant!(16),
    }
}
