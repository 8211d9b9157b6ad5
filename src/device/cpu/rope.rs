//! The rotary embedding: rotates Q and K of each row by its position, in place, and writes K and V to the
//! cache.
//!
//! Pair (i, i + half) of a head is rotated by the angle position × inv_freq\[i\] (Su et al., "RoFormer",
//! arXiv 2104.09864, in the half-split form). Elements beyond the rotary dimensions do not change.

use super::cache::{CacheData, CacheElement};
use super::{Cache, Cpu, Floats, Parts, Step};
use crate::device::{BLOCK_TOKENS, HeadShape, LayerKv, Rope};

/// The inputs of one call.
#[derive(Clone, Copy)]
pub(super) struct RopeInputs<'a> {
    pub(super) step: &'a Step,
    pub(super) rope: &'a Rope,
    pub(super) kv: LayerKv,
}

pub(super) fn run(cpu: &Cpu, inputs: RopeInputs<'_>, qkv: &mut Floats, cache: &mut Cache) {
    let heads = cache.spec.heads;
    let cols = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim;
    assert_eq!(qkv.cols, cols, "columns of QKV of {heads:?}");
    assert!(2 * inputs.rope.inv_freq.len() <= heads.head_dim, "the rotary dimensions exceed the head's");
    let rows = inputs.step.positions.len();
    assert_eq!(qkv.rows, rows, "rows of QKV");
    for segment in &inputs.step.inputs.segments {
        let blocks = (segment.position + segment.len).div_ceil(BLOCK_TOKENS);
        assert!(segment.blocks.len() >= blocks, "a segment of {blocks} blocks lists fewer");
        segment.blocks[..blocks].iter().for_each(|block| _ = cache.offset(inputs.kv.layer, *block, 0));
    }
    let shape = LayerShape { heads, layer: inputs.kv.layer, blocks: cache.spec.blocks };
    let qkv = Parts::new(qkv.resize(rows));
    match &mut cache.data {
        CacheData::Fp8(data) => rotate_and_store(cpu, inputs, shape, &qkv, &Parts::new(data)),
        CacheData::Bf16(data) => rotate_and_store(cpu, inputs, shape, &qkv, &Parts::new(data)),
    }
}

/// The layer of the cache that a call writes, and the sizes that locate a head in it.
#[derive(Clone, Copy)]
struct LayerShape {
    heads: HeadShape,
    layer: usize,
    blocks: usize,
}

/// Rotates all rows and writes their K and V to the cache.
fn rotate_and_store<E: CacheElement>(
    cpu: &Cpu,
    inputs: RopeInputs<'_>,
    shape: LayerShape,
    qkv: &Parts<f32>,
    cache: &Parts<E>,
) {
    let cols = (shape.heads.q_heads + 2 * shape.heads.kv_heads) * shape.heads.head_dim;
    cpu.split_rows(inputs.step.positions.len(), cols, |range, _| {
        for row in range {
            // SAFETY: the ranges of the threads are disjoint.
            let x = unsafe { qkv.part(row * cols..(row + 1) * cols) };
            rotate(inputs, shape, row, x);
            store(inputs, shape, row, x, cache);
        }
    });
}

/// Rotates the query and key heads of one row.
fn rotate(inputs: RopeInputs<'_>, shape: LayerShape, row: usize, x: &mut [f32]) {
    let HeadShape { q_heads, kv_heads, head_dim } = shape.heads;
    let half = inputs.rope.inv_freq.len();
    let position = inputs.step.positions[row] as f32;
    for (i, inv_freq) in inputs.rope.inv_freq.iter().enumerate() {
        let (sin, cos) = (position * inv_freq).sin_cos();
        for head in x.chunks_exact_mut(head_dim).take(q_heads + kv_heads) {
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }
}

/// Writes K and V of one row to the cache.
fn store<E: CacheElement>(
    inputs: RopeInputs<'_>,
    shape: LayerShape,
    row: usize,
    x: &[f32],
    cache: &Parts<E>,
) {
    let HeadShape { q_heads, kv_heads, head_dim } = shape.heads;
    let position = inputs.step.positions[row] as usize;
    let (block, at) = (inputs.step.block(row), position % BLOCK_TOKENS);
    let half = BLOCK_TOKENS * head_dim;
    let (keys, values) = x[q_heads * head_dim..].split_at(kv_heads * head_dim);
    let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
    for (head, (k, v)) in heads.enumerate() {
        let start = ((shape.layer * shape.blocks + block) * kv_heads + head) * 2 * half;
        for (d, k) in k.iter().enumerate() {
            let place = start + d * BLOCK_TOKENS + at;
            // SAFETY: each position of a block belongs to one row of the step, and each row to one thread.
            unsafe { cache.set(place, E::store(*k, 1.0 / inputs.kv.k_scale)) };
        }
        let place = start + half + at * head_dim;
        // SAFETY: see above.
        let target = unsafe { cache.part(place..place + head_dim) };
        target.iter_mut().zip(v).for_each(|(t, v)| *t = E::store(*v, 1.0 / inputs.kv.v_scale));
    }
}
