//! The time of matrix products, from what `kernels/linear.cu` copies, multiplies and exchanges.
//! `kernels/README.md` has the same counts per chunk.

use std::iter::Sum;
use std::sync::Arc;

use super::Hardware;
use super::figures::{Kernel, Limit};
use crate::device::product_tiles::{
    BESIDE_BLOCKS, CHUNK, Cuts, Division, MaxRows, PARTS, READ_AHEAD, TILE, stages, variant_rows,
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

    /// Rows of the largest kernel variants.
    fn max_rows(self) -> MaxRows {
        if self == Self::Widened { MaxRows::WIDENED } else { MaxRows::EQUAL }
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

/// The rate at which one multiprocessor reads from memory, relative to its share of the rate of all: its port
/// takes 64 bytes per clock.
const READ_ALONE_RATIO: usize = 5;

/// A matrix of weights as the kernel divides it.
#[derive(Debug, Clone)]
pub(super) struct Product {
    out: usize,
    input: usize,
    operands: Operands,
    tiles: usize,
    /// Chunks of a tile.
    chunks: usize,
    cuts: Cuts,
    /// [`Cuts::completions`].
    completions: Arc<[f64]>,
    /// Bytes of an output.
    out_bytes: usize,
    /// Multiprocessors that launches of whole tiles leave to sums.
    left: usize,
}

impl Product {
    pub(super) fn new(out: usize, input: usize, operands: Operands) -> Self {
        let (tiles, chunks) = (out.div_ceil(TILE), (input * operands.weight_bytes()).div_ceil(CHUNK));
        let out_bytes = operands.out_bytes();
        let cuts = Cuts::new(tiles, chunks);
        Self {
            out,
            input,
            operands,
            tiles,
            chunks,
            cuts,
            completions: cuts.completions().into(),
            out_bytes,
            left: 0,
        }
    }

    /// The same beside a sum.
    pub(super) fn beside_sum(&self) -> Self {
        Self { left: BESIDE_BLOCKS, ..self.clone() }
    }

    /// The time of the product of `rows` rows in each of `layers` layers. With `library`, cuBLASLt computes
    /// it if that is faster.
    pub(super) fn time(&self, rows: usize, layers: usize, gpu: &Hardware, library: bool) -> ProductTime {
        let most = self.operands.max_rows();
        let own = match self.division(rows) {
            Division::Whole => self.whole(rows, gpu),
            Division::Spread => {
                let launches = (0..rows).step_by(most.spread).map(|first| most.spread.min(rows - first));
                launches.map(|rows| self.spread(rows, gpu)).sum()
            }
        };
        let others = library && self.operands == Operands::Fp8 && rows >= LIBRARY_MIN_ROWS;
        let theirs = if others { self.library(rows, gpu) } else { own };
        (if theirs.total < own.total { theirs } else { own }).times(layers as f64)
    }

    fn division(&self, rows: usize) -> Division {
        self.cuts.division(rows, self.operands.max_rows(), self.left)
    }

    /// Seconds of `sending`, the time to send the results to other ranks, that pass while the product of
    /// `rows` rows runs. Tiles are sent as they are completed, one after the other.
    pub(super) fn hidden(&self, sending: f64, rows: usize, gpu: &Hardware) -> f64 {
        match self.division(rows) {
            Division::Spread => {
                let most = self.operands.max_rows().spread;
                let (launches, time) = (rows.div_ceil(most), self.time(rows, 1, gpu, false).total);
                let count = (launches * self.completions.len()) as f64;
                let completed = (0..launches).flat_map(|launch| {
                    self.completions.iter().map(move |at| (launch as f64 + at) / launches as f64)
                });
                // From each tile on, the rest of the results is sent.
                let after = completed
                    .enumerate()
                    .map(|(before, at)| (1.0 - before as f64 / count) * sending - (1.0 - at) * time);
                sending - after.fold(0.0, f64::max)
            }
            // Only the results of each block's last tile are sent after the launch.
            Division::Whole => {
                let before = 1.0 - 1.0 / self.rounds(rows) as f64;
                before * sending.min(self.whole(rows, gpu).total)
            }
        }
    }

    /// Tiles that the busiest block of a launch of whole tiles computes.
    fn rounds(&self, rows: usize) -> usize {
        self.cuts.rounds(rows.div_ceil(self.operands.max_rows().whole), self.left)
    }

    /// A launch in which each block computes one part for all rows. Weights are read from memory once.
    fn spread(&self, rows: usize, gpu: &Hardware) -> ProductTime {
        let columns = variant_rows(rows, self.operands.max_rows().spread);
        let sums = self.cuts.exchanged_if_spread() * (TILE * columns * SUM_BYTES) as f64;
        let work = Work {
            rows: rows.min(columns),
            weight_rows: TILE,
            input_rows: self.operands.input_chunks() * rows.next_multiple_of(8),
            columns,
            imbalance: uneven(self.tiles * self.chunks, self.cuts.parts()),
            exchanged: sums + (TILE * rows * self.out_bytes) as f64,
        };
        self.launch(work, gpu)
    }

    /// A launch in which the blocks of a cluster compute whole tiles, each one for the same rows, of which
    /// each block copies half. The clusters that read a tile run at about the same time, so that its weights
    /// are read from memory once and from L2 once per tile of rows.
    fn whole(&self, rows: usize, gpu: &Hardware) -> ProductTime {
        let columns = self.operands.max_rows().whole;
        let row_tiles = rows.div_ceil(columns);
        let tiles = self.cuts.rounds(row_tiles, self.left) as f64;
        let work = Work {
            rows: columns,
            weight_rows: row_tiles * TILE,
            input_rows: self.operands.input_chunks() * rows.next_multiple_of(8) / 2,
            columns: row_tiles * columns,
            imbalance: tiles * PARTS as f64 / (self.tiles * row_tiles) as f64,
            exchanged: tiles * (TILE * columns * self.out_bytes) as f64,
        };
        self.launch(work, gpu)
    }

    fn launch(&self, work: Work, gpu: &Hardware) -> ProductTime {
        let chunks = (self.tiles * self.chunks) as f64;
        let share = |limit| gpu.share(Kernel::Linear, limit, work.rows);
        let l2 = gpu.l2 * share(Limit::L2);
        // The tensor cores multiply all columns, whatever the rows.
        let elements = CHUNK / self.operands.weight_bytes();
        let flop = (2 * TILE * elements * work.columns) as f64;
        let rate = gpu.products * self.operands.rate() * share(Limit::Arithmetic);
        let time = ProductTime {
            weights: chunks * (TILE * CHUNK) as f64 / (gpu.read * share(Limit::Memory)),
            staging: chunks * ((work.weight_rows + work.input_rows) * CHUNK) as f64 / l2,
            products: chunks * flop / rate,
            total: 0.0,
        };
        let longest = time.weights.max(time.staging).max(time.products);
        let exchange = work.exchanged * PARTS as f64 / l2;
        ProductTime { total: longest * work.imbalance + exchange + gpu.launch, ..time }
    }

    /// Seconds by which the product is shorter because free multiprocessors read its weights during the sum
    /// before it. The sum runs on `busy` multiprocessors. Their blocks start late and read what is left at
    /// the end; fewer than 132 / [`READ_ALONE_RATIO`] blocks cannot use the full rate of memory.
    pub(super) fn saved_by_reading_ahead(&self, rows: usize, busy: usize, gpu: &Hardware) -> f64 {
        let (most, parts) = (self.operands.max_rows(), self.cuts.parts());
        if self.division(rows) == Division::Whole || busy >= PARTS {
            return 0.0;
        }
        let rows = rows.min(most.spread);
        let chunks = self.tiles * self.chunks;
        let copied = stages(self.operands.input_chunks(), variant_rows(rows, most.spread));
        let of_a_part = |count: usize| count.min(chunks / parts) as f64;
        let share =
            |count: usize, late: usize| of_a_part(count) * parts.min(PARTS - late) as f64 / chunks as f64;
        let time = self.spread(rows, gpu);
        let read = time.weights * share(copied + READ_AHEAD, busy.max(PARTS / READ_ALONE_RATIO));
        // The rest of the launch takes at least this long.
        let least = time.products.max(time.staging * (1.0 - share(copied, busy)));
        read.min(time.weights - least).max(0.0)
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

/// The work of a launch.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Rows of the launch, or of a block if it computes one tile of rows after the other: the efficiencies
    /// depend on them.
    rows: usize,
    /// Rows of 128 bytes of the weights and of the inputs that are read from L2 for a chunk of a tile.
    weight_rows: usize,
    input_rows: usize,
    /// Rows that the tensor cores multiply by.
    columns: usize,
    /// The work of the busiest block relative to the mean of all multiprocessors.
    imbalance: f64,
    /// Bytes of sums and outputs that the busiest block exchanges with L2.
    exchanged: f64,
}

/// The most work of one of `workers` that share `work` units, relative to the mean.
fn uneven(work: usize, workers: usize) -> f64 {
    (work.div_ceil(workers) * workers) as f64 / work as f64
}
