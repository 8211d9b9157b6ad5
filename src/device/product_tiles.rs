//! How `kernels/linear.cu` divides a product: into tiles of outputs, chunks of bytes along K, and parts of
//! equal size. The CUDA device launches the kernel so, and the cost model counts what it copies.

/// Outputs of a tile. Outputs are padded with zeros to a multiple of this.
pub(crate) const TILE: usize = 128;

/// Bytes of a chunk of a row.
pub(crate) const CHUNK: usize = 128;

/// Parts that the chunks of all tiles are cut into: one per multiprocessor of an H100. Fixed, since the
/// order of sums depends on the cuts.
pub(crate) const PARTS: usize = 132;

/// Rows of the largest kernel variant.
pub(crate) const MAX_ROWS: usize = 256;

/// The same for E4M3 weights with BF16 inputs, whose weights take registers.
pub(crate) const MAX_ROWS_WIDENED: usize = 128;

/// How blocks divide the work of one launch. Both ways give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Division {
    /// Each block computes one part of the chunks for all rows.
    Spread,
    /// Each block computes whole tiles for [`MAX_ROWS`] rows.
    Whole,
}

/// How the cuts between parts divide the tiles of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cuts {
    tiles: usize,
    /// Chunks of a tile.
    chunks: usize,
    /// Boundaries between parts that are inside a tile.
    inside: usize,
    /// Tiles with such a boundary.
    cut_tiles: usize,
}

/// Times in units of the time of a chunk at 256 rows, in which 48 KiB come from L2: of a chunk whose weights
/// come from memory, at the rates of `models/h100-80gb.toml`; of a tile's F32 sums, 128 KiB; of a tile's BF16
/// outputs, 64 KiB; and of a launch, about 3 µs. No time has been measured on a GPU.
const FROM_MEMORY: f64 = 1.08;
const SUMS: f64 = 128.0 / 48.0;
const OUTPUTS: f64 = 64.0 / 48.0;
const LAUNCH: f64 = 4.0;

impl Cuts {
    /// Counts the cuts of a product of some tiles of `chunks` chunks.
    pub(crate) fn new(tiles: usize, chunks: usize) -> Self {
        let mut cuts = Self { tiles, chunks, inside: 0, cut_tiles: 0 };
        let mut last = None;
        let parts = cuts.parts();
        for at in (1..parts).map(|part| part * tiles * chunks / parts) {
            if at % chunks != 0 {
                cuts.inside += 1;
                cuts.cut_tiles += usize::from(last != Some(at / chunks));
                last = Some(at / chunks);
            }
        }
        cuts
    }

    /// The number of parts.
    pub(crate) fn parts(&self) -> usize {
        PARTS.min(self.tiles * self.chunks)
    }

    /// Sums of a tile that a block writes or reads if the work is spread: a part writes its segments of cut
    /// tiles, and the last block to arrive at a tile reads all of the tile's.
    pub(crate) fn exchanged_if_spread(&self) -> f64 {
        let segments = (self.inside + self.cut_tiles) as f64;
        segments / self.parts() as f64 + segments / (self.cut_tiles as f64).max(1.0)
    }

    /// Sums of a tile that a block writes and reads for each whole tile: each cut separates two segments,
    /// between which the total is kept in memory.
    pub(crate) fn exchanged_if_whole(&self) -> f64 {
        2.0 * self.inside as f64 / self.tiles as f64
    }

    /// The faster division of a product whose rows take `passes` passes over the weights if it is spread.
    pub(crate) fn division(&self, passes: usize) -> Division {
        let part = FROM_MEMORY * (self.tiles * self.chunks).div_ceil(self.parts()) as f64;
        let spread = passes as f64 * (part + self.exchanged_if_spread() * SUMS + OUTPUTS + LAUNCH);
        let tiles = (self.tiles * passes).div_ceil(PARTS) as f64;
        let whole = tiles * (self.chunks as f64 + self.exchanged_if_whole() * SUMS + OUTPUTS) + LAUNCH;
        if passes > 1 && whole < spread { Division::Whole } else { Division::Spread }
    }
}

/// Rows of the smallest kernel variant that takes `rows` rows, or of the largest variant, which has `most`.
pub(crate) fn variant_rows(rows: usize, most: usize) -> usize {
    rows.min(most).next_power_of_two().max(8)
}
