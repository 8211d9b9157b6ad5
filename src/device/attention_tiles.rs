//! How the kernels of attention divide their work. The CUDA device launches them so, and the cost model
//! counts what they copy and multiply.

use super::{BLOCK_TOKENS, SPLIT_BLOCKS};

/// Positions of a split, which is multiplied whole.
pub(crate) const SPLIT_TOKENS: usize = SPLIT_BLOCKS * BLOCK_TOKENS;

/// Rows of the longest segment that `attention_decode` computes, in a graph too. It computes the splits of a
/// row in parallel, which is faster for long contexts. Both kernels give the same bits.
pub(crate) const DECODE_ROWS: usize = 4;

/// Query heads of a block of `attention_decode`.
pub(crate) const DECODE_HEADS: usize = 16;

/// Query rows, tokens times heads of a group, of a warpgroup of `attention_prefill`.
pub(crate) const WARPGROUP_ROWS: usize = 48;

/// Query rows of a block of `attention_prefill`, which has two warpgroups that compute.
pub(crate) const PREFILL_ROWS: usize = 2 * WARPGROUP_ROWS;
