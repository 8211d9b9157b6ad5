//! Causal attention over the paged cache. A query visits the blocks of its sequence in order and combines
//! them by the online softmax of Milakov and Gimelshein (arXiv 1805.02867). K and V are read from the cache
//! only.
//!
//! A job is a tile of rows of one sequence and one KV head, so that each block is decoded once for all
//! queries of the tile. The result of a query does not depend on its tile: a query sums over all 64
//! positions of each block in order, and positions after the query have probability 0.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cache::{CacheData, CacheElement};
use super::exp::exp;
use super::isa::{DetectedIsa, by_isa, mul_add};
use super::quant::ActRows;
use super::{Acts, Cache, Cpu, Floats, Parts, Step};
use crate::device::{ActQuant, BLOCK_TOKENS, HeadShape, LayerKv};

/// Rows per tile.
pub(super) const TILE: usize = 16;

/// The operands of one call.
#[derive(Clone, Copy)]
pub(super) struct AttentionInputs<'a> {
    pub(super) step: &'a Step,
    pub(super) qkv: &'a Floats,
    pub(super) kv: LayerKv,
    pub(super) cache: &'a Cache,
    pub(super) quant: ActQuant,
}

/// Floats of scratch per thread: one block of K and of V, and for each query of a tile its sum, maximum and
/// denominator.
pub(super) fn scratch_floats(heads: HeadShape) -> usize {
    let queries = TILE * (heads.q_heads / heads.kv_heads);
    2 * BLOCK_TOKENS * heads.head_dim + queries * (heads.head_dim + 2)
}

pub(super) fn run(cpu: &Cpu, inputs: AttentionInputs<'_>, out: &mut Acts) {
    let heads = inputs.cache.spec.heads;
    let rows = inputs.step.positions.len();
    assert_eq!(inputs.qkv.cols, (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim, "columns of QKV");
    assert_eq!(inputs.qkv.rows, rows, "rows of QKV");
    let width = heads.q_heads * heads.head_dim;
    let mut stage = cpu.stage();
    let stage = &mut stage[..rows * width];
    let staged = Parts::new(stage);
    let jobs = inputs.step.tiles.len() * heads.kv_heads;
    // Threads take jobs one by one, since their cost grows with the position. They start with the last, so
    // that the tiles at the end of a prompt, which cost most, run before those at its beginning.
    let next = AtomicUsize::new(0);
    cpu.pool.split(cpu.pool.threads().min(jobs), |thread, _| {
        let scratch = &mut cpu.scratch(thread).kv[..];
        loop {
            let taken = next.fetch_add(1, Ordering::Relaxed);
            if taken >= jobs {
                return;
            }
            let job = TileJob { inputs, index: jobs - 1 - taken, staged: &staged };
            match &inputs.cache.data {
                CacheData::Fp8(data) => tile_fp8(cpu.isa, job, data, scratch),
                CacheData::Bf16(data) => tile_bf16(cpu.isa, job, data, scratch),
            }
        }
    });
    let stage = &*stage;
    let out = ActRows::new(out, rows, inputs.quant);
    cpu.split_rows(rows, width, |range, _| {
        let (out, stage) = (&out, stage);
        by_isa!(cpu.isa, quantize(out: &ActRows<'_>, stage: &[f32], range: Range<usize>));
    });
}

#[inline(always)]
fn quantize<const FMA: bool>(out: &ActRows<'_>, stage: &[f32], range: Range<usize>) {
    for row in range {
        // SAFETY: the ranges of the threads are disjoint.
        unsafe { out.store(row, &stage[row * out.cols..(row + 1) * out.cols]) };
    }
}

/// The computation of one tile of rows for one KV head. `index` is tile × kv_heads + head.
#[derive(Clone, Copy)]
struct TileJob<'a> {
    inputs: AttentionInputs<'a>,
    index: usize,
    staged: &'a Parts<f32>,
}

fn tile_fp8(isa: DetectedIsa, job: TileJob<'_>, data: &[u8], scratch: &mut [f32]) {
    by_isa!(isa, tile_u8(job: TileJob<'_>, data: &[u8], scratch: &mut [f32]));
}

fn tile_bf16(isa: DetectedIsa, job: TileJob<'_>, data: &[u16], scratch: &mut [f32]) {
    by_isa!(isa, tile_u16(job: TileJob<'_>, data: &[u16], scratch: &mut [f32]));
}

#[inline(always)]
fn tile_u8<const FMA: bool>(job: TileJob<'_>, data: &[u8], scratch: &mut [f32]) {
    tile::<FMA, u8>(job, data, scratch);
}

#[inline(always)]
fn tile_u16<const FMA: bool>(job: TileJob<'_>, data: &[u16], scratch: &mut [f32]) {
    tile::<FMA, u16>(job, data, scratch);
}

#[inline(always)]
fn tile<const FMA: bool, E: CacheElement>(job: TileJob<'_>, data: &[E], scratch: &mut [f32]) {
    let inputs = job.inputs;
    let cache = inputs.cache;
    let HeadShape { q_heads, kv_heads, head_dim } = cache.spec.heads;
    let group = q_heads / kv_heads;
    let (tile, head) = (&inputs.step.tiles[job.index / kv_heads], job.index % kv_heads);
    let segment = &inputs.step.inputs.segments[tile.segment];
    let half = cache.half();
    let (keys, rest) = scratch.split_at_mut(half);
    let (values, rest) = rest.split_at_mut(half);
    let queries = tile.len * group;
    let (sums, rest) = rest.split_at_mut(queries * head_dim);
    let (maxima, rest) = rest.split_at_mut(queries);
    let denominators = &mut rest[..queries];
    sums.fill(0.0);
    maxima.fill(f32::NEG_INFINITY);
    denominators.fill(0.0);
    let end = inputs.step.positions[tile.first + tile.len - 1] as usize + 1;
    for (index, block) in segment.blocks[..end.div_ceil(BLOCK_TOKENS)].iter().enumerate() {
        let start = cache.offset(inputs.kv.layer, *block, head);
        let valid = BLOCK_TOKENS.min(end - index * BLOCK_TOKENS);
        decode_block(&data[start..start + 2 * half], valid, keys, values);
        for query in 0..queries {
            let row = tile.first + query / group;
            let position = inputs.step.positions[row] as usize;
            let Some(visible) =
                (position + 1).checked_sub(index * BLOCK_TOKENS).filter(|visible| *visible > 0)
            else {
                continue;
            };
            let q_head = head * group + query % group;
            let q = &inputs.qkv.row(row)[q_head * head_dim..][..head_dim];
            let state = SoftmaxState {
                sum: &mut sums[query * head_dim..(query + 1) * head_dim],
                maximum: &mut maxima[query],
                denominator: &mut denominators[query],
            };
            let scale = inputs.kv.k_scale / (head_dim as f32).sqrt();
            add_block::<FMA>(q, scale, keys, values, visible.min(BLOCK_TOKENS), state);
        }
    }
    for query in 0..queries {
        let index = (tile.first + query / group) * q_heads + head * group + query % group;
        // SAFETY: each (row, query head) belongs to one job, and each job is taken by one thread.
        let out = unsafe { job.staged.part(index * head_dim..(index + 1) * head_dim) };
        let scale = inputs.kv.v_scale / denominators[query];
        out.iter_mut().zip(&sums[query * head_dim..]).for_each(|(o, s)| *o = s * scale);
    }
}

/// Decodes K and V of a block to F32. V of the positions from `valid` on becomes 0: a previous owner of the
/// block may have left NaN there, and a probability of 0 times NaN is NaN.
#[inline(always)]
fn decode_block<E: CacheElement>(block: &[E], valid: usize, keys: &mut [f32], values: &mut [f32]) {
    let (k, v) = block.split_at(keys.len());
    keys.iter_mut().zip(k).for_each(|(f, e)| *f = e.load());
    values.iter_mut().zip(v).for_each(|(f, e)| *f = e.load());
    if valid < BLOCK_TOKENS {
        let head_dim = values.len() / BLOCK_TOKENS;
        values[valid * head_dim..].fill(0.0);
    }
}

/// The running softmax of one query over the scores s of the blocks visited so far.
struct SoftmaxState<'a> {
    /// Σ e^(s − maximum) × v, \[head_dim\].
    sum: &'a mut [f32],
    /// The largest s.
    maximum: &'a mut f32,
    /// Σ e^(s − maximum).
    denominator: &'a mut f32,
}

/// Adds one block to the softmax of a query, which may see the first `visible` positions of the block.
#[inline(always)]
fn add_block<const FMA: bool>(
    q: &[f32],
    scale: f32,
    keys: &[f32],
    values: &[f32],
    visible: usize,
    state: SoftmaxState<'_>,
) {
    let mut scores = [0.0f32; BLOCK_TOKENS];
    add_weighted_rows::<FMA>(q, keys, BLOCK_TOKENS, &mut scores);
    let mut maximum = *state.maximum;
    for (t, score) in scores.iter_mut().enumerate() {
        *score = if t < visible { *score * scale } else { f32::NEG_INFINITY };
        // A NaN score makes the maximum and then the whole row NaN, so that the sampler reports the row.
        maximum = if *score > maximum || score.is_nan() { *score } else { maximum };
    }
    let correction = exp::<FMA>(*state.maximum - maximum);
    scores.iter_mut().for_each(|score| *score = exp::<FMA>(*score - maximum));
    let mut lanes = [0.0f32; 16];
    for chunk in scores.chunks_exact(16) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, p)| *lane += p);
    }
    *state.denominator = *state.denominator * correction + lanes.iter().sum::<f32>();
    *state.maximum = maximum;
    state.sum.iter_mut().for_each(|s| *s *= correction);
    add_weighted_rows::<FMA>(&scores, values, state.sum.len(), state.sum);
}

/// sums += Σ_i weights\[i\] × rows\[i\] in the order of i; `rows` is \[weights.len(), cols\].
#[inline(always)]
fn add_weighted_rows<const FMA: bool>(weights: &[f32], rows: &[f32], cols: usize, sums: &mut [f32]) {
    let mut at = 0;
    while at + 64 <= cols {
        add_weighted_lanes::<FMA, 4>(weights, &rows[at..], cols, &mut sums[at..at + 64]);
        at += 64;
    }
    while at + 16 <= cols {
        add_weighted_lanes::<FMA, 1>(weights, &rows[at..], cols, &mut sums[at..at + 16]);
        at += 16;
    }
    for (lane, sum) in sums.iter_mut().enumerate().skip(at) {
        for (weight, row) in weights.iter().zip(rows.chunks(cols)) {
            *sum = mul_add::<FMA>(*weight, row[lane], *sum);
        }
    }
}

/// [`add_weighted_rows`] for V vectors of 16 columns, whose sums stay in registers over all rows.
#[inline(always)]
fn add_weighted_lanes<const FMA: bool, const V: usize>(
    weights: &[f32],
    rows: &[f32],
    cols: usize,
    sums: &mut [f32],
) {
    let mut vectors = [[0.0f32; 16]; V];
    for (vector, sums) in vectors.iter_mut().zip(sums.chunks_exact(16)) {
        vector.copy_from_slice(sums);
    }
    for (i, weight) in weights.iter().enumerate() {
        let row = &rows[i * cols..][..V * 16];
        for (vector, row) in vectors.iter_mut().zip(row.chunks_exact(16)) {
            for (lane, x) in vector.iter_mut().zip(row) {
                *lane = mul_add::<FMA>(*weight, *x, *lane);
            }
        }
    }
    for (vector, sums) in vectors.iter().zip(sums.chunks_exact_mut(16)) {
        sums.copy_from_slice(vector);
    }
}
