//! `kernels/linear.cu`.

use std::ops::Range;

use super::peers::MAX_RANKS;
use super::{Acts, Buffer, Cuda, Driver, Floats, Launch, Matrix};
use crate::device::product_tiles::{CHUNK, Cuts, Division, MaxRows, PARTS, TILE, shared_bytes, variant_rows};
use crate::device::{DeviceError, FloatType, Layout};

/// `OutputRows` of `kernels/output_rows.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OutputRows {
    base: [u64; MAX_RANKS],
    ends: [u32; MAX_RANKS],
}
const _: () = assert!(size_of::<OutputRows>() == 96);

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LinearParams {
    x: u64,
    x_scales: u64,
    w: u64,
    w_scales: u64,
    out: OutputRows,
    partials: u64,
    counters: u64,
    m: u32,
    n: u32,
    x_rows: u32,
    tiles: u32,
    chunks: u32,
    parts: u32,
    row_tiles: u32,
    out_bf16: u32,
    maxima: u64,
    gated: u32,
    unused: u32,
}
const _: () = assert!(size_of::<LinearParams>() == 192);

const THREADS: usize = 384;
/// Bytes of scratch: a part has at most two segments of cut tiles, with one F32 sum per row.
pub(super) const SCRATCH_BYTES: usize = 2 * PARTS * TILE * MaxRows::EQUAL.spread * 4;

/// Sums of segments of tiles that are cut between blocks.
#[derive(Debug, Default)]
pub(super) struct LinearScratch {
    partials: Option<Buffer<f32>>,
    /// For each tile, the number of segments that have been written.
    counters: Option<Buffer<u32>>,
}

impl LinearScratch {
    /// Grows the scratch for products with a matrix.
    pub(super) fn grow(&mut self, driver: &Driver, matrix: &Matrix) -> Result<(), DeviceError> {
        if self.counters.as_ref().is_none_or(|counters| counters.len() < matrix.tiles()) {
            self.counters = Some(driver.buffer(matrix.tiles())?);
        }
        if self.partials.is_none() {
            self.partials = Some(driver.buffer(SCRATCH_BYTES / 4)?);
        }
        Ok(())
    }
}

/// Rows of a product that one rank sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsOfRank {
    /// The address that row 0 would have if the rank's memory had all rows.
    pub(super) base: u64,
    /// The first row that belongs to a later rank.
    pub(super) end: usize,
}

/// Memory for the rows of a product.
#[derive(Debug)]
pub(super) struct Target {
    float_type: FloatType,
    cols: usize,
    ranks: Vec<RowsOfRank>,
    /// The address for the largest outputs of rows (`RowMaxima` of `kernels/output_rows.cuh`), if a kernel
    /// reads them.
    maxima: Option<u64>,
    /// Whether the kernel multiplies gate and up.
    gated: bool,
}

impl Target {
    /// Rows in this device's memory.
    pub(super) fn local(out: &Floats) -> Self {
        Self::of_ranks(out, [RowsOfRank { base: out.data.address(), end: usize::MAX }])
    }

    /// Rows like those of `out` in the memory of each rank that sums them, in rank order.
    pub(super) fn of_ranks(out: &Floats, ranks: impl IntoIterator<Item = RowsOfRank>) -> Self {
        let (float_type, cols, ranks) = (out.float_type, out.cols, ranks.into_iter().collect());
        Self { float_type, cols, ranks, maxima: None, gated: false }
    }

    /// The same rows, whose largest outputs are stored as well: two F32 for each tile, from `maxima` on. The
    /// rows are BF16.
    pub(super) fn with_maxima(self, maxima: u64) -> Self {
        assert!(self.float_type == FloatType::Bf16, "maxima of {:?}", self.float_type);
        Self { maxima: Some(maxima), ..self }
    }

    /// The same, for SwiGLU of outputs in the order of `GatedRows`: instead of a row of BF16 outputs, the
    /// kernel stores F32, one for each gate, in the same memory. The maxima are of their magnitudes.
    pub(super) fn gated(self) -> Self {
        Self { gated: true, ..self }
    }

    /// The kernel's parameter for the largest outputs, in a launch whose first row is `first`.
    fn maxima_from(&self, first: usize) -> u64 {
        let row_bytes = self.cols.div_ceil(TILE) * 2 * size_of::<f32>();
        self.maxima.map_or(0, |address| address + (first * row_bytes) as u64)
    }

    /// The kernel's parameter for a launch whose first row is `first`.
    fn rows_from(&self, first: usize) -> OutputRows {
        let mut rows = OutputRows { base: [0; MAX_RANKS], ends: [u32::MAX; MAX_RANKS] };
        let bytes = (first * self.cols * Layout::CUDA.float_bytes(self.float_type)) as u64;
        for (index, rank) in self.ranks.iter().enumerate() {
            rows.base[index] = rank.base + bytes;
            if index + 1 < self.ranks.len() {
                rows.ends[index] = rank.end.saturating_sub(first) as u32;
            }
        }
        rows
    }
}

pub(super) fn run(cuda: &Cuda, x: &Acts, w: &Matrix, out: &mut Floats) -> Result<(), DeviceError> {
    out.set_rows(x.rows);
    run_to(cuda, x, w, &Target::local(out))
}

/// Computes x · wᵀ.
pub(super) fn run_to(cuda: &Cuda, x: &Acts, w: &Matrix, target: &Target) -> Result<(), DeviceError> {
    assert_eq!(
        (x.cols, target.cols),
        (w.input, w.out),
        "input and output of a [{}, {}] product",
        w.out,
        w.input
    );
    assert!(!w.bf16() || x.bf16, "BF16 weights take BF16 inputs");
    let types = Types { w_bf16: w.bf16(), x_bf16: x.bf16 };
    let most = types.max_rows();
    match Cuts::new(w.tiles(), w.chunks()).division(x.rows, most, cuda.left_to_sums()) {
        Division::Whole => launch(cuda, x, w, target, 0..x.rows, Division::Whole),
        Division::Spread => (0..x.rows).step_by(most.spread).try_for_each(|first| {
            launch(cuda, x, w, target, first..x.rows.min(first + most.spread), Division::Spread)
        }),
    }
}

/// Computes some rows of a product.
pub(super) fn launch(
    cuda: &Cuda,
    x: &Acts,
    w: &Matrix,
    target: &Target,
    rows: Range<usize>,
    division: Division,
) -> Result<(), DeviceError> {
    let swiglu_fits = !w.bf16() && !x.bf16 && target.maxima.is_some() && w.out.is_multiple_of(16);
    assert!(swiglu_fits || !target.gated, "SwiGLU of a [{}, {}] product", w.out, w.input);
    let scratch = &cuda.scratch().linear;
    let made = "the scratch was grown when the matrix was made";
    let types = Types { w_bf16: w.bf16(), x_bf16: x.bf16 };
    let Variant { kernel, rows: most } = types.variant(rows.len(), division);
    let cuts = Cuts::new(w.tiles(), w.chunks());
    let row_tiles = rows.len().div_ceil(most);
    // The kernel computes the cuts in 32 bits.
    assert!(w.tiles() * w.chunks() <= u32::MAX as usize / PARTS, "a [{}, {}] product", w.out, w.input);
    let blocks = match division {
        Division::Spread => cuts.parts(),
        Division::Whole => cuts.whole_blocks(row_tiles, cuda.left_to_sums()),
    };
    let params = LinearParams {
        // A row is at the same place in every chunk.
        x: x.values.at(rows.start * CHUNK),
        x_scales: x.scales.at(rows.start),
        w: w.data.address(),
        w_scales: w.scales.as_ref().map_or(0, Buffer::address),
        out: target.rows_from(rows.start),
        partials: scratch.partials.as_ref().expect(made).address(),
        counters: scratch.counters.as_ref().expect(made).address(),
        m: rows.len() as u32,
        n: w.out as u32,
        x_rows: x.chunk_rows() as u32,
        tiles: w.tiles() as u32,
        chunks: w.chunks() as u32,
        parts: cuts.parts() as u32,
        row_tiles: row_tiles as u32,
        out_bf16: u32::from(target.float_type == FloatType::Bf16),
        maxima: target.maxima_from(rows.start),
        gated: u32::from(target.gated),
        unused: 0,
    };
    let shared = shared_bytes(types.x_chunks(), most, division);
    let launch = Launch { kernel, grid: [blocks, 1, 1], threads: THREADS as u32, shared };
    // SAFETY: shapes have been checked, and the scratch was grown for the matrix.
    unsafe { cuda.driver.launch(launch, &params) }
}

/// Element types of a product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Types {
    pub(super) w_bf16: bool,
    pub(super) x_bf16: bool,
}

/// The pairs of types that products have.
pub(super) const TYPES: [Types; 3] = [
    Types { w_bf16: false, x_bf16: false },
    Types { w_bf16: false, x_bf16: true },
    Types { w_bf16: true, x_bf16: true },
];

/// A variant of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    pub(super) kernel: &'static str,
    /// Rows that a block computes at a time.
    pub(super) rows: usize,
}

impl Types {
    /// Chunks of the inputs that belong to a chunk of the weights.
    fn x_chunks(self) -> usize {
        if self.x_bf16 && !self.w_bf16 { 2 } else { 1 }
    }

    /// Rows of the largest variants.
    fn max_rows(self) -> MaxRows {
        if self.x_chunks() == 2 { MaxRows::WIDENED } else { MaxRows::EQUAL }
    }

    /// All variants of these types that spread the work, the smallest first.
    pub(super) fn variants(self) -> Vec<Variant> {
        let sizes = [8, 16, 32, 64, 128, 256].into_iter().filter(|rows| *rows <= self.max_rows().spread);
        sizes.map(|rows| self.variant(rows, Division::Spread)).collect()
    }

    /// The variant that computes whole tiles.
    pub(super) fn whole(self) -> Variant {
        let kernel = match (self.w_bf16, self.x_bf16) {
            (false, false) => "linear_e4m3_whole",
            (false, true) => "linear_e4m3_bf16_whole",
            (true, _) => "linear_bf16_whole",
        };
        Variant { kernel, rows: self.max_rows().whole }
    }

    /// The variant of a division: of those that spread the work the smallest that takes `rows` rows, or else
    /// the largest.
    fn variant(self, rows: usize, division: Division) -> Variant {
        if division == Division::Whole {
            return self.whole();
        }
        macro_rules! variant {
            ($n:literal) => {
                Variant {
                    kernel: match (self.w_bf16, self.x_bf16) {
                        (false, false) => concat!("linear_e4m3_", $n),
                        (false, true) => concat!("linear_e4m3_bf16_", $n),
                        (true, _) => concat!("linear_bf16_", $n),
                    },
                    rows: $n,
                }
            };
        }
        match variant_rows(rows, self.max_rows().spread) {
            8 => variant!(8),
            16 => variant!(16),
            32 => variant!(32),
            64 => variant!(64),
            128 => variant!(128),
            _ => variant!(256),
        }
    }
}
