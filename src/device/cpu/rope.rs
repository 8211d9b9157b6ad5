//! Turns Q and K of each row by its position, in place, and writes K and V into the cache.
//!
//! Pair (i, i + half) of a head turns by position × inv_freq\[i\], as in Su et al., "RoFormer" (arXiv 2104.09864),
//! in the half-split form; what is beyond the rotary dimensions passes through.

use super::cache::{Element, Store};
use super::{Cache, Cpu, Floats, Parts, Step};
use crate::device::{BLOCK_TOKENS, HeadShape, LayerKv, Rope};

/// What a call works on, besides the buffers it writes.
#[derive(Clone, Copy)]
pub(super) struct RopeInputs<'a> {
    pub(super) step: &'a Step,
    pub(super) rope: &'a Rope,
    pub(super) kv: LayerKv,
}

pub(super) fn run(cpu: &Cpu, job: RopeInputs<'_>, qkv: &mut Floats, cache: &mut Cache) {
    let heads = cache.spec.heads;
    let cols = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim;
    assert_eq!(qkv.cols, cols, "columns of a QKV row of {heads:?}");
    assert!(2 * job.rope.inv_freq.len() <= heads.head_dim, "rotary dimensions of a head");
    let rows = job.step.positions.len();
    assert_eq!(qkv.rows, rows, "rows of QKV");
    for segment in &job.step.inputs.segments {
        let blocks = (segment.position + segment.len).div_ceil(BLOCK_TOKENS);
        assert!(segment.blocks.len() >= blocks, "a segment that ends in block {blocks} has fewer");
        segment.blocks[..blocks].iter().for_each(|block| _ = cache.offset(job.kv.layer, *block, 0));
    }
    let shape = Shape { heads, layer: job.kv.layer, blocks: cache.spec.blocks };
    let qkv = Parts::new(qkv.resize(rows));
    match &mut cache.data {
        Store::Fp8(data) => turn_all(cpu, job, shape, &qkv, &Parts::new(data)),
        Store::Bf16(data) => turn_all(cpu, job, shape, &qkv, &Parts::new(data)),
    }
}

/// What locates a head's part of the cache.
#[derive(Clone, Copy)]
struct Shape {
    heads: HeadShape,
    layer: usize,
    blocks: usize,
}

fn turn_all<E: Element>(cpu: &Cpu, job: RopeInputs<'_>, shape: Shape, qkv: &Parts<f32>, cache: &Parts<E>) {
    let cols = (shape.heads.q_heads + 2 * shape.heads.kv_heads) * shape.heads.head_dim;
    cpu.split_rows(job.step.positions.len(), cols, |range, _| {
        for row in range {
            // SAFETY: each row is in one range.
            let x = unsafe { qkv.part(row * cols..(row + 1) * cols) };
            turn(job, shape, row, x);
            store(job, shape, row, x, cache);
        }
    });
}

/// Rotates the query and key heads of one row.
fn turn(job: RopeInputs<'_>, shape: Shape, row: usize, x: &mut [f32]) {
    let HeadShape { q_heads, kv_heads, head_dim } = shape.heads;
    let half = job.rope.inv_freq.len();
    let position = job.step.positions[row] as f32;
    for (i, inv_freq) in job.rope.inv_freq.iter().enumerate() {
        let (sin, cos) = (position * inv_freq).sin_cos();
        for head in x.chunks_exact_mut(head_dim).take(q_heads + kv_heads) {
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }
}

/// Writes one row's keys and values to their place.
fn store<E: Element>(job: RopeInputs<'_>, shape: Shape, row: usize, x: &[f32], cache: &Parts<E>) {
    let HeadShape { q_heads, kv_heads, head_dim } = shape.heads;
    let position = job.step.positions[row] as usize;
    let (block, at) = (job.step.block(row), position % BLOCK_TOKENS);
    let half = BLOCK_TOKENS * head_dim;
    let (keys, values) = x[q_heads * head_dim..].split_at(kv_heads * head_dim);
    let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
    for (head, (k, v)) in heads.enumerate() {
        let start = ((shape.layer * shape.blocks + block) * kv_heads + head) * 2 * half;
        for (d, k) in k.iter().enumerate() {
            let place = start + d * BLOCK_TOKENS + at;
            // SAFETY: a position of a block belongs to one row of the step.
            unsafe { cache.set(place, E::store(*k, 1.0 / job.kv.k_scale)) };
        }
        let place = start + half + at * head_dim;
        // SAFETY: as above.
        let target = unsafe { cache.part(place..place + head_dim) };
        target.iter_mut().zip(v).for_each(|(t, v)| *t = E::store(*v, 1.0 / job.kv.v_scale));
    }
}
