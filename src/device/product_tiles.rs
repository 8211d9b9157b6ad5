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

/// The faster division of a product whose rows take `passes` passes over the weights if it is spread. The
/// unit of both estimates is the time of a chunk; they have not been compared with times on a GPU.
pub(crate) fn division(tiles: usize, chunks: usize, passes: usize) -> Division {
    // A part writes and reads the sums of two segments, about as many bytes as six chunks; a whole tile has
    // one or two cuts, and is stored.
    let spread = passes * ((tiles * chunks).div_ceil(PARTS) + 6);
    let whole = (tiles * passes).div_ceil(PARTS) * (chunks + 2);
    if passes > 1 && whole < spread { Division::Whole } else { Division::Spread }
}

/// Rows of the smallest kernel variant that takes `rows` rows, or of the largest variant, which has `most`.
pub(crate) fn variant_rows(rows: usize, most: usize) -> usize {
    rows.min(most).next_power_of_two().max(8)
}
