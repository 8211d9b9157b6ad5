//! The time of matrix products, from what `kernels/linear.cu` copies, multiplies and exchanges.
//! `kernels/README.md` has the same counts per chunk.

use std::iter::Sum;

use super::Hardware;
use super::figures::{Kernel, Limit};
use crate::device::product_tiles::{
    CHUNK, Cuts, Division, MAX_ROWS, MAX_ROWS_WIDENED, PARTS, TILE, variant_rows,
};

/// Bytes of a sum.
const SUM_BYTES: usize = 4;

/// The smallest number of rows for which cuBLASLt may compute a product.
const LIBRARY_MIN_ROWS: usize = 256;

/// Element types of the operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operands {
    /// Both E4M3.
    Fp8,
    /// E4M3 weights, BF16 inputs.
    Widened,
    /// Both BF16.
    Bf16,
}

impl Operands {
    /// Bytes of a weight.
    fn weight_bytes(self) -> usize {
        if self == Self::Bf16 { 2 } else { 1 }
    }

    /// Bytes of an output: BF16 where inputs are E4M3, otherwise F32.
    fn out_bytes(self) -> usize {
        if self == Self::Fp8 { 2 } else { 4 }
    }

    /// Chunks of the inputs that belong to a chunk of the weights.
    fn input_chunks(self) -> usize {
        if self == Self::Widened { 2 } else { 1 }
    }

    /// Rows of the largest kernel variant.
    fn max_rows(self) -> usize {
        if self == Self::Widened { MAX_ROWS_WIDENED } else { MAX_ROWS }
    }

    /// The tensor cores' rate relative to that of E4M3 inputs.
    fn rate(self) -> f64 {
        if self == Self::Fp8 { 1.0 } else { 0.5 }
    }
}

/// Seconds of products.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProductTime {
    /// Reading weights from memory.
    pub(super) weights: f64,
    /// Copying weights and inputs from L2 to the multiprocessors.
    pub(super) staging: f64,
    /// Multiplying.
    pub(super) products: f64,
    /// All launches, each of which takes the longest of the three and what its parts cost beyond it.
    pub(super) total: f64,
}

impl ProductTime {
    /// The time beyond the longest of the three overlapping terms.
    pub(super) fn cuts(&self) -> f64 {
        (self.total - self.weights.max(self.staging).max(self.products)).max(0.0)
    }

    fn times(self, factor: f64) -> Self {
        Self {
            weights: self.weights * factor,
            staging: self.staging * factor,
            products: self.products * factor,
            total: self.total * factor,
        }
    }
}

impl Sum for ProductTime {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), |a, b| Self {
            weights: a.weights + b.weights,
            staging: a.staging + b.staging,
            products: a.products + b.products,
            total: a.total + b.total,
        })
    }
}

/// A matrix of weights as the kernel divides it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    out: usize,
    input: usize,
    operands: Operands,
    tiles: usize,
    /// Chunks of a tile.
    chunks: usize,
    cuts: Cuts,
    /// Bytes of an output.
    out_bytes: usize,
}

impl Product {
    pub(super) fn new(out: usize, input: usize, operands: Operands) -> Self {
        let (tiles, chunks) = (out.div_ceil(TILE), (input * operands.weight_bytes()).div_ceil(CHUNK));
        let out_bytes = operands.out_bytes();
        Self { out, input, operands, tiles, chunks, cuts: Cuts::new(tiles, chunks), out_bytes }
    }

    /// The time of the product of `rows` rows in each of `layers` layers. With `library`, cuBLASLt computes
    /// it if that is faster.
    pub(super) fn time(&self, rows: usize, layers: usize, gpu: &Hardware, library: bool) -> ProductTime {
        let most = self.operands.max_rows();
        let own = match self.division(rows) {
            Division::Whole => self.whole(rows, gpu),
            Division::Spread => {
                let launches = (0..rows).step_by(most).map(|first| most.min(rows - first));
                launches.map(|rows| self.spread(rows, gpu)).sum()
            }
        };
        let others = library && self.operands == Operands::Fp8 && rows >= LIBRARY_MIN_ROWS;
        let theirs = if others { self.library(rows, gpu) } else { own };
        (if theirs.total < own.total { theirs } else { own }).times(layers as f64)
    }

    fn division(&self, rows: usize) -> Division {
        self.cuts.division(rows.div_ceil(self.operands.max_rows()))
    }

    /// Seconds of `sending`, the time to send the results to other ranks, that pass while the product of
    /// `rows` rows runs. If blocks share the chunks of tiles, all tiles end at about the same time, so none
    /// do. Otherwise only the results of each block's last tile are sent after the launch.
    pub(super) fn hidden(&self, sending: f64, rows: usize, gpu: &Hardware) -> f64 {
        match self.division(rows) {
            Division::Spread => 0.0,
            Division::Whole => {
                let before = 1.0 - 1.0 / self.rounds(rows) as f64;
                before * sending.min(self.whole(rows, gpu).total)
            }
        }
    }

    /// Tiles that the busiest block of a launch of whole tiles computes.
    fn rounds(&self, rows: usize) -> usize {
        (self.tiles * rows.div_ceil(self.operands.max_rows())).div_ceil(PARTS)
    }

    /// A launch in which each block computes one part for all rows. Weights are read from memory once.
    fn spread(&self, rows: usize, gpu: &Hardware) -> ProductTime {
        let columns = variant_rows(rows, self.operands.max_rows());
        let imbalance = uneven(self.tiles * self.chunks, self.cuts.parts());
        let sums = self.cuts.exchanged_if_spread() * (TILE * columns * SUM_BYTES) as f64;
        let bytes = sums + (TILE * rows * self.out_bytes) as f64;
        self.launch(rows, columns, imbalance, bytes, gpu)
    }

    /// A launch in which each block computes whole tiles for 256 rows. The blocks of a tile run at about the
    /// same time, so that its weights are read from memory once and from L2 once per 256 rows.
    fn whole(&self, rows: usize, gpu: &Hardware) -> ProductTime {
        let columns = self.operands.max_rows();
        let items = self.tiles * rows.div_ceil(columns);
        let blocks = PARTS.min(items);
        let sums = self.cuts.exchanged_if_whole() * (TILE * columns * SUM_BYTES) as f64;
        let bytes = self.rounds(rows) as f64 * (sums + (TILE * columns * self.out_bytes) as f64);
        self.launch(rows, columns, uneven(items, blocks), bytes, gpu)
    }

    /// A launch of the variant for `columns` rows whose busiest block has `imbalance` times the mean work
    /// and exchanges `bytes` with L2.
    fn launch(&self, rows: usize, columns: usize, imbalance: f64, bytes: f64, gpu: &Hardware) -> ProductTime {
        let chunks = (self.tiles * self.chunks) as f64;
        let share = |limit| gpu.share(Kernel::Linear, limit, rows.min(columns));
        let l2 = gpu.l2 * share(Limit::L2);
        let passes = rows.div_ceil(columns);
        let copied = passes * TILE + self.operands.input_chunks() * rows.next_multiple_of(8);
        // The tensor cores multiply all columns of the variant, whatever the rows.
        let elements = CHUNK / self.operands.weight_bytes();
        let flop = (2 * TILE * elements * passes * columns) as f64;
        let rate = gpu.products * self.operands.rate() * share(Limit::Arithmetic);
        let time = ProductTime {
            weights: chunks * (TILE * CHUNK) as f64 / (gpu.read * share(Limit::Memory)),
            staging: chunks * (copied * CHUNK) as f64 / l2,
            products: chunks * flop / rate,
            total: 0.0,
        };
        let longest = time.weights.max(time.staging).max(time.products);
        let exchange = bytes * PARTS as f64 / l2;
        ProductTime { total: longest * imbalance + exchange + gpu.launch, ..time }
    }

    /// The library's product, between `unpack` of both operands and `rescale` of the outputs.
    fn library(&self, rows: usize, gpu: &Hardware) -> ProductTime {
        let bytes = gpu.read * gpu.share(Kernel::Rows, Limit::Memory, rows);
        let (elements, inputs) = ((self.out * self.input) as f64, (rows * self.input) as f64);
        let outputs = (rows * self.out * self.out_bytes) as f64;
        let time = ProductTime {
            weights: elements / bytes,
            staging: 0.0,
            products: 2.0 * rows as f64 * elements
                / (gpu.products * gpu.share(Kernel::Cublaslt, Limit::Arithmetic, rows)),
            total: 0.0,
        };
        let around = 2.0 * (elements + inputs + outputs) / bytes;
        ProductTime { total: time.weights.max(time.products) + around + 4.0 * gpu.launch, ..time }
    }
}

/// The most work of one of `workers` that share `work` units, relative to the mean.
fn uneven(work: usize, workers: usize) -> f64 {
    (work.div_ceil(workers) * workers) as f64 / work as f64
}
