//! The work of attention, from what `kernels/attention_decode.cu` and `kernels/attention_prefill.cu` copy and
//! multiply. `kernels/README.md` has the counts per block of 64 positions.

use super::RowShape;
use crate::device::attention_tiles::{DECODE_HEADS, DECODE_ROWS, PREFILL_ROWS, SPLIT_TOKENS, WARPGROUP_ROWS};
use crate::device::product_tiles::PARTS;
use crate::device::{BLOCK_TOKENS, HeadShape, Layout};

/// The work of a layer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AttentionWork {
    /// Elements of keys and values read from memory.
    elements: f64,
    /// Floating-point operations of the tensor cores.
    flop: f64,
    /// Those of the block of prefill with the most of them.
    longest: f64,
}

impl AttentionWork {
    /// Adds a row.
    pub(super) fn add(&mut self, row: RowShape, heads: HeadShape) {
        let (position, tokens) = (row.position as usize, row.tokens as usize);
        let head_dim = heads.head_dim.next_multiple_of(Layout::CUDA.head_dim);
        let group = heads.q_heads / heads.kv_heads;
        // Whole blocks are copied.
        let positions = (position + tokens).next_multiple_of(BLOCK_TOKENS);
        self.elements += (2 * heads.kv_heads * head_dim * positions) as f64;
        let of_pair = (4 * head_dim) as f64;
        let last = (position + tokens).next_multiple_of(SPLIT_TOKENS);
        // Splits are multiplied whole, by all query rows of a warpgroup.
        let pairs = (rounded_ends(position + tokens) - rounded_ends(position)) as f64;
        let (rows, longest) = if tokens <= DECODE_ROWS {
            // The time of a single split is a part of `layer_overhead`.
            (group.next_multiple_of(DECODE_HEADS) as f64, 0)
        } else {
            let rows = (tokens * group).next_multiple_of(WARPGROUP_ROWS);
            (rows as f64 / tokens as f64, PREFILL_ROWS * last)
        };
        self.flop += of_pair * rows * pairs * heads.kv_heads as f64;
        self.longest = self.longest.max(of_pair * longest as f64);
    }

    /// Seconds of reading keys and values, of `width` bytes per element, at `rate` bytes per second.
    pub(super) fn reading(&self, width: f64, rate: f64) -> f64 {
        self.elements * width / rate
    }

    /// Seconds of the products at `rate` operations per second of all multiprocessors; of the longest block
    /// alone if the others have less to do.
    pub(super) fn multiplying(&self, rate: f64) -> f64 {
        self.flop.max(self.longest * PARTS as f64) / rate
    }
}

/// The sum of the positions that the first `tokens` tokens of a sequence multiply, each of whole splits.
fn rounded_ends(tokens: usize) -> usize {
    let (splits, rest) = (tokens / SPLIT_TOKENS, tokens % SPLIT_TOKENS);
    SPLIT_TOKENS * (SPLIT_TOKENS * splits * (splits + 1) / 2 + rest * (splits + 1))
}
