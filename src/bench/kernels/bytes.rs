//! Bytes that a launch moves, by the COST line of each kernel's file, for a model that is served in FP8:
//! inputs of products are E4M3, and results of products are BF16. The names of the functions are those of the
//! kernels. Lists of ids and scales are neglected.

use crate::device::attention_tiles::SPLIT_TOKENS;
use crate::device::{HeadShape, SHORTLIST};

/// How often `sample` reads the logits of a row with top-k and top-p.
const SAMPLE_READS: usize = 30;
/// How often `shortlist` reads the logits of a row.
const SHORTLIST_READS: usize = 13;
/// How often `pick` reads the candidates of a row with top-k and top-p.
const PICK_READS: usize = 29;
/// How often `score` reads the logits of a row, without alternatives.
const SCORE_READS: usize = 3;

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
    let codes = 2 * kv_heads * head_dim;
    let rope = (q_heads + 2 * kv_heads) * head_dim * 2 + q_heads * head_dim * 4 + codes;
    let entries = context.div_ceil(SPLIT_TOKENS);
    let combine = entries * q_heads * (head_dim + 2) * 4 + q_heads * head_dim;
    rows * (rope + context * codes + combine)
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

/// `sample` of `kernels/sample.cu`.
pub(super) fn sample(rows: usize, vocab: usize) -> usize {
    rows * vocab * 4 * SAMPLE_READS
}

/// `shortlist` of `kernels/sample.cu`.
pub(super) fn shortlist(rows: usize, vocab: usize) -> usize {
    rows * vocab * 4 * SHORTLIST_READS
}

/// `pick` of `kernels/sample.cu`.
pub(super) fn pick(rows: usize, ranks: usize) -> usize {
    rows * ranks * SHORTLIST * 4 * PICK_READS
}

/// `score` of `kernels/sample.cu`.
pub(super) fn score(rows: usize, vocab: usize, alternatives: u8) -> usize {
    rows * vocab * 4 * (SCORE_READS + usize::from(alternatives))
}
