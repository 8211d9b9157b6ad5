//! Bytes that a launch reads from memory or writes there, by the COST line of each kernel's file, for a model
//! that is served in FP8: inputs of products are E4M3, and results of products are BF16. Lists of ids and
//! scales are neglected.

use crate::device::attention_tiles::SPLIT_TOKENS;
use crate::device::{BLOCK_TOKENS, HeadShape, SHORTLIST};

/// Heads in the cache have a multiple of this many elements.
const CACHED_HEAD_DIM: usize = 64;

/// `kernels/embed.cu` with a BF16 table.
pub(super) fn embed(rows: usize, cols: usize) -> usize {
    rows * cols * (4 + 2)
}

/// `kernels/norm.cu` with a BF16 delta.
pub(super) fn norm(rows: usize, cols: usize) -> usize {
    rows * cols * (4 + 2 + 4 + 1) + cols * 8
}

/// `kernels/activation.cu`. `input` counts the gate.
pub(super) fn activation(rows: usize, input: usize, cols: usize) -> usize {
    rows * (2 * input + cols)
}

/// `kernels/rope.cu` from BF16, `kernels/attention_decode.cu` over an E4M3 cache, and
/// `kernels/attention_combine.cu` to E4M3, for rows that attend to `context` positions each.
pub(super) fn attention(rows: usize, context: usize, heads: HeadShape) -> usize {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    let rope = (q_heads + 2 * kv_heads) * head_dim * 2 + q_heads * head_dim * 4 + 2 * kv_heads * head_dim;
    // Heads in the cache are padded, and whole blocks are read.
    let positions = context.next_multiple_of(BLOCK_TOKENS);
    let cached = positions * 2 * kv_heads * head_dim.next_multiple_of(CACHED_HEAD_DIM);
    let entries = context.div_ceil(SPLIT_TOKENS);
    let combine = entries * q_heads * (head_dim + 2) * 4 + q_heads * head_dim;
    rows * (rope + cached + combine)
}

/// `kernels/add.cu` with BF16 elements.
pub(super) fn add(elements: usize, parts: usize) -> usize {
    elements * 2 * (parts + 2)
}

/// `kernels/select.cu`.
pub(super) fn select(rows: usize, cols: usize) -> usize {
    rows * cols * 8
}

/// `kernels/reward_head.cu`.
pub(super) fn reward_head(rows: usize, cols: usize, width: usize) -> usize {
    rows * cols * 4 + width * cols * 4
}

/// `sample` and `score` of `kernels/sample.cu` over all logits, and `shortlist` over a rank's. They read the
/// logits again from L2.
pub(super) fn logits(rows: usize, vocab: usize) -> usize {
    rows * vocab * 4
}

/// `pick` of `kernels/sample.cu`, which reads the logits of the candidates again from L2.
pub(super) fn pick(rows: usize, ranks: usize) -> usize {
    rows * ranks * SHORTLIST * 4
}
