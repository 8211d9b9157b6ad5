//! How `kernels/linear.cu` divides a product: into tiles of outputs, chunks of bytes along K, and parts of
//! equal size. The CUDA device launches the kernel so, and the cost model counts what it copies.

/// Outputs of a tile. Outputs are padded with zeros to a multiple of this.
pub(crate) const TILE: usize = 128;

/// Bytes of a chunk of a row.
pub(crate) const CHUNK: usize = 128;

/// Parts that the chunks of all tiles are cut into: one per multiprocessor of an H100. Fixed, since the
/// order of sums depends on the cuts.
pub(crate) const PARTS: usize = 132;

/// Chunks of weights that a block reads to L2 while earlier kernels run, behind those that it copies to its
/// stages: 17 MB in all blocks, a third of the L2 cache. `kernels/linear.cu` has the same number.
pub(crate) const READ_AHEAD: usize = 8;

/// Multiprocessors for a sum that runs beside products. By the cost model a sum of 1,024 rows of the 340B
/// takes 177 µs on them, about as long as the attention half of a layer. The products of 1,024 rows need as
/// many rounds of tiles on the others as on all, or ten instead of nine.
pub(crate) const BESIDE_BLOCKS: usize = 12;

/// Blocks of a cluster that computes whole tiles, one tile each.
const PAIR: usize = 2;

/// Rows that the largest kernel variants take at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxRows {
    /// If the work is spread.
    pub(crate) spread: usize,
    /// If each block computes whole tiles, whose totals take registers.
    pub(crate) whole: usize,
}

impl MaxRows {
    /// Those of operands of one type.
    pub(crate) const EQUAL: Self = Self { spread: 256, whole: 128 };
    /// Those of E4M3 weights with BF16 inputs, whose weights take registers.
    pub(crate) const WIDENED: Self = Self { spread: 128, whole: 64 };
}

/// How blocks divide the work of one launch. Both ways give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Division {
    /// Each block computes one part of the chunks for all rows.
    Spread,
    /// Each block computes whole tiles for [`MaxRows::whole`] rows.
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

/// Clocks of a multiprocessor, as `kernels/README.md` counts them at the rates of `models/h100-80gb.toml`. No
/// time has been measured on a GPU.
struct Clocks;

impl Clocks {
    /// A chunk of a part, whose weights come from memory.
    const SPREAD: f64 = 1519.0;
    /// A chunk of a whole tile, for the rows of the largest variant.
    const WHOLE: f64 = 702.0;
    /// A row's F32 sums of a tile, 512 bytes from or to L2.
    const SUMS: f64 = 14.6;
    /// A row's BF16 outputs of a tile.
    const OUTPUTS: f64 = Self::SUMS / 2.0;
    /// A launch, 2.5 µs.
    const LAUNCH: f64 = 4388.0;
}

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

    /// When each tile's last segment is complete if the work is spread, as a share of the time of the longest
    /// part, in ascending order. Every second block begins with its last segment.
    pub(crate) fn completions(&self) -> Vec<f64> {
        let (all, parts) = (self.tiles * self.chunks, self.parts());
        let longest = all.div_ceil(parts) as f64;
        let mut completions = vec![0.0_f64; self.tiles];
        for part in 0..parts {
            let (first, stop) = (part * all / parts, (part + 1) * all / parts);
            for (tile, last) in completions.iter_mut().enumerate() {
                let (begin, end) = (first.max(tile * self.chunks), stop.min((tile + 1) * self.chunks));
                if begin < end {
                    let computed = if part.is_multiple_of(2) { end - first } else { stop - begin };
                    *last = last.max(computed as f64 / longest);
                }
            }
        }
        completions.sort_by(f64::total_cmp);
        completions
    }

    /// Sums of a tile that a block writes or reads if the work is spread: a part writes its segments of cut
    /// tiles, and the last block to arrive at a tile reads the other ones of the tile.
    pub(crate) fn exchanged_if_spread(&self) -> f64 {
        let (inside, cut_tiles) = (self.inside as f64, self.cut_tiles as f64);
        (inside + cut_tiles) / self.parts() as f64 + inside / cut_tiles.max(1.0)
    }

    /// Pairs of a tile and tiles of rows, if tiles are whole. A cluster computes one at a time.
    pub(crate) fn pairs(&self, row_tiles: usize) -> usize {
        self.tiles.div_ceil(PAIR) * row_tiles
    }

    /// Clusters of a launch of whole tiles: at most one for each two multiprocessors, of which `left` are for
    /// other kernels.
    pub(crate) fn clusters(&self, row_tiles: usize, left: usize) -> usize {
        self.pairs(row_tiles).min((PARTS - left) / PAIR)
    }

    /// Blocks of a launch of whole tiles.
    #[cfg(feature = "kernels")]
    pub(crate) fn whole_blocks(&self, row_tiles: usize, left: usize) -> usize {
        self.clusters(row_tiles, left) * PAIR
    }

    /// Tiles that a block of the busiest cluster computes, if tiles are whole.
    pub(crate) fn rounds(&self, row_tiles: usize, left: usize) -> usize {
        self.pairs(row_tiles).div_ceil(self.clusters(row_tiles, left))
    }

    /// The faster division of a product of some rows. If `left` multiprocessors are for other kernels, blocks
    /// compute whole tiles where the rows allow it: parts that wait for these would double the time.
    pub(crate) fn division(&self, rows: usize, most: MaxRows, left: usize) -> Division {
        if rows <= most.whole {
            return Division::Spread;
        }
        if left > 0 {
            return Division::Whole;
        }
        let row_tiles = rows.div_ceil(most.whole);
        let chunks = self.tiles * self.chunks;
        let part = Clocks::SPREAD * chunks.div_ceil(self.parts()) as f64;
        let sums = Clocks::SUMS * self.exchanged_if_spread() + Clocks::OUTPUTS;
        let spread = |rows: usize| part + sums * variant_rows(rows, most.spread) as f64 + Clocks::LAUNCH;
        let spread: f64 = (0..rows).step_by(most.spread).map(|first| spread(rows - first)).sum();
        let whole = self.rounds(row_tiles, 0) as f64
            * (self.chunks as f64 * Clocks::WHOLE + Clocks::OUTPUTS * most.whole as f64);
        // Weights come from memory once.
        let whole = whole.max(Clocks::SPREAD * chunks as f64 / PARTS as f64) + Clocks::LAUNCH;
        if whole < spread { Division::Whole } else { Division::Spread }
    }
}

/// Shared memory of a block: the largest that the kernel asks for, its part for barriers, and the largest
/// number of stages in the rest.
const SHARED_BYTES: usize = 220 << 10;
const BARRIER_BYTES: usize = 256;
const MAX_STAGES: usize = 12;
/// Memory in which the threads of two warpgroups exchange 16 rows of 64 BF16 outputs, or of 32 F32
/// after SwiGLU, with padding.
#[cfg(feature = "kernels")]
const EXCHANGE_BYTES: usize = 2 * 16 * 36 * 4;

/// Bytes of a stage: a chunk of weights, and `input_chunks` chunks of the inputs of `rows` rows.
const fn stage_bytes(input_chunks: usize, rows: usize) -> usize {
    (TILE + input_chunks * rows) * CHUNK
}

/// Chunks of weights that a block has in shared memory at a time.
pub(crate) fn stages(input_chunks: usize, rows: usize) -> usize {
    MAX_STAGES.min((SHARED_BYTES - BARRIER_BYTES) / stage_bytes(input_chunks, rows))
}

/// Bytes of shared memory of a block. Blocks that compute whole tiles, of at most half of the largest number
/// of rows, also exchange outputs there.
#[cfg(feature = "kernels")]
pub(crate) fn shared_bytes(input_chunks: usize, rows: usize, division: Division) -> usize {
    let exchanged = if division == Division::Whole { EXCHANGE_BYTES } else { 0 };
    stages(input_chunks, rows) * stage_bytes(input_chunks, rows) + BARRIER_BYTES + exchanged
}

/// Rows of the smallest kernel variant that takes `rows` rows, or of the largest variant, which has `most`.
pub(crate) fn variant_rows(rows: usize, most: usize) -> usize {
    rows.min(most).next_power_of_two().max(8)
}
