//! Causal attention over the paged cache: for each query, one block of 64 positions after the other, with the online
//! softmax of Milakov and Gimelshein (arXiv 1805.02867). K and V come from the cache alone.
//!
//! An item of work is a tile of rows of one sequence and one KV head: each block is decoded once for all queries of
//! the tile. What is computed for a query does not depend on its tile: every block is summed over all its 64
//! positions in order, and positions after the query count as probability 0.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cache::{Element, Store};
use super::exp::exp;
use super::isa::{Checked, by_isa, mul_add};
use super::quant::Rows;
use super::{Acts, Cache, Cpu, Floats, Parts, Step};
use crate::device::{ActQuant, BLOCK_TOKENS, Cached, HeadShape};

/// Rows per tile.
pub(super) const TILE: usize = 16;

/// A call's operands.
#[derive(Clone, Copy)]
pub(super) struct AttentionInputs<'a> {
    pub(super) step: &'a Step,
    pub(super) qkv: &'a Floats,
    pub(super) cached: Cached<'a, Cache>,
    pub(super) quant: ActQuant,
}

/// Floats that a thread needs: K, V, the sums of a tile's queries, and their running maximum and denominator.
pub(super) fn scratch_floats(heads: HeadShape) -> usize {
    let queries = TILE * (heads.q_heads / heads.kv_heads);
    2 * BLOCK_TOKENS * heads.head_dim + queries * (heads.head_dim + 2)
}

pub(super) fn run(cpu: &Cpu, job: AttentionInputs<'_>, out: &mut Acts) {
    let heads = job.cached.cache.spec.heads;
    let rows = job.step.positions.len();
    assert_eq!(job.qkv.cols, (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim, "columns of QKV");
    assert_eq!(job.qkv.rows, rows, "rows of QKV");
    let width = heads.q_heads * heads.head_dim;
    let mut stage = cpu.stage();
    let stage = &mut stage[..rows * width];
    let staged = Parts::new(stage);
    let items = job.step.tiles.len() * heads.kv_heads;
    // Items differ in cost with their position, so threads take them one by one, the costly ones first.
    let next = AtomicUsize::new(0);
    cpu.pool.split(cpu.pool.threads().min(items), |thread, _| {
        let scratch = &mut cpu.scratch(thread).kv[..];
        loop {
            let taken = next.fetch_add(1, Ordering::Relaxed);
            if taken >= items {
                return;
            }
            let item = Item { job, index: items - 1 - taken, staged: &staged };
            match &job.cached.cache.data {
                Store::Fp8(data) => tile_fp8(cpu.isa, item, data, scratch),
                Store::Bf16(data) => tile_bf16(cpu.isa, item, data, scratch),
            }
        }
    });
    let stage = &*stage;
    let out = Rows::new(out, rows, job.quant);
    cpu.split_rows(rows, width, |range, _| {
        let (out, stage) = (&out, stage);
        by_isa!(cpu.isa, quantize(out: &Rows<'_>, stage: &[f32], range: Range<usize>));
    });
}

#[inline(always)]
fn quantize<const FMA: bool>(out: &Rows<'_>, stage: &[f32], range: Range<usize>) {
    for row in range {
        // SAFETY: each row is in one range.
        unsafe { out.store(row, &stage[row * out.cols..(row + 1) * out.cols]) };
    }
}

/// One tile of one KV head.
#[derive(Clone, Copy)]
struct Item<'a> {
    job: AttentionInputs<'a>,
    index: usize,
    staged: &'a Parts<f32>,
}

fn tile_fp8(isa: Checked, item: Item<'_>, data: &[u8], scratch: &mut [f32]) {
    by_isa!(isa, tile_u8(item: Item<'_>, data: &[u8], scratch: &mut [f32]));
}

fn tile_bf16(isa: Checked, item: Item<'_>, data: &[u16], scratch: &mut [f32]) {
    by_isa!(isa, tile_u16(item: Item<'_>, data: &[u16], scratch: &mut [f32]));
}

#[inline(always)]
fn tile_u8<const FMA: bool>(item: Item<'_>, data: &[u8], scratch: &mut [f32]) {
    tile::<FMA, u8>(item, data, scratch);
}

#[inline(always)]
fn tile_u16<const FMA: bool>(item: Item<'_>, data: &[u16], scratch: &mut [f32]) {
    tile::<FMA, u16>(item, data, scratch);
}

#[inline(always)]
fn tile<const FMA: bool, E: Element>(item: Item<'_>, data: &[E], scratch: &mut [f32]) {
    let job = item.job;
    let cache = job.cached.cache;
    let HeadShape { q_heads, kv_heads, head_dim } = cache.spec.heads;
    let group = q_heads / kv_heads;
    let (tile, head) = (&job.step.tiles[item.index / kv_heads], item.index % kv_heads);
    let segment = &job.step.inputs.segments[tile.segment];
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
    let end = job.step.positions[tile.first + tile.len - 1] as usize + 1;
    for (index, block) in segment.blocks[..end.div_ceil(BLOCK_TOKENS)].iter().enumerate() {
        let start = cache.offset(job.cached.kv.layer, *block, head);
        let valid = BLOCK_TOKENS.min(end - index * BLOCK_TOKENS);
        load_block(&data[start..start + 2 * half], valid, keys, values);
        for query in 0..queries {
            let row = tile.first + query / group;
            let position = job.step.positions[row] as usize;
            let Some(seen) = (position + 1).checked_sub(index * BLOCK_TOKENS).filter(|seen| *seen > 0) else {
                continue;
            };
            let q_head = head * group + query % group;
            let q = &job.qkv.row(row)[q_head * head_dim..][..head_dim];
            let state = State {
                sum: &mut sums[query * head_dim..(query + 1) * head_dim],
                maximum: &mut maxima[query],
                denominator: &mut denominators[query],
            };
            let scale = job.cached.kv.k_scale / (head_dim as f32).sqrt();
            absorb::<FMA>(q, scale, (keys, values), seen.min(BLOCK_TOKENS), state);
        }
    }
    for query in 0..queries {
        let place = (tile.first + query / group) * q_heads + head * group + query % group;
        // SAFETY: (row, query head) belongs to one item.
        let out = unsafe { item.staged.part(place * head_dim..(place + 1) * head_dim) };
        let scale = job.cached.kv.v_scale / denominators[query];
        out.iter_mut().zip(&sums[query * head_dim..]).for_each(|(o, s)| *o = s * scale);
    }
}

/// Decodes a block. Positions that no query of the tile sees become 0: what a former owner left there may be NaN,
/// and 0 × NaN is NaN.
#[inline(always)]
fn load_block<E: Element>(block: &[E], valid: usize, keys: &mut [f32], values: &mut [f32]) {
    let (k, v) = block.split_at(keys.len());
    keys.iter_mut().zip(k).for_each(|(f, e)| *f = e.load());
    values.iter_mut().zip(v).for_each(|(f, e)| *f = e.load());
    if valid < BLOCK_TOKENS {
        let head_dim = values.len() / BLOCK_TOKENS;
        values[valid * head_dim..].fill(0.0);
    }
}

/// A query's softmax so far: Σ e^(s - maximum) v, the maximum, and Σ e^(s - maximum).
struct State<'a> {
    sum: &'a mut [f32],
    maximum: &'a mut f32,
    denominator: &'a mut f32,
}

/// Takes one block into a query's softmax; `seen` positions of it count.
#[inline(always)]
fn absorb<const FMA: bool>(q: &[f32], scale: f32, block: (&[f32], &[f32]), seen: usize, state: State<'_>) {
    let mut scores = [0.0f32; BLOCK_TOKENS];
    weigh::<FMA>(q, block.0, BLOCK_TOKENS, &mut scores);
    let mut maximum = *state.maximum;
    for (t, score) in scores.iter_mut().enumerate() {
        *score = if t < seen { *score * scale } else { f32::NEG_INFINITY };
        // A NaN score makes the maximum NaN, and with it the row, which the sampler then reports.
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
    weigh::<FMA>(&scores, block.1, state.sum.len(), state.sum);
}

/// sums += Σ_i weights\[i\] × rows\[i\], in the order of i, for rows of `cols` elements one after the other.
#[inline(always)]
fn weigh<const FMA: bool>(weights: &[f32], rows: &[f32], cols: usize, sums: &mut [f32]) {
    let mut at = 0;
    while at + 64 <= cols {
        weigh_lanes::<FMA, 4>(weights, &rows[at..], cols, &mut sums[at..at + 64]);
        at += 64;
    }
    while at + 16 <= cols {
        weigh_lanes::<FMA, 1>(weights, &rows[at..], cols, &mut sums[at..at + 16]);
        at += 16;
    }
    for (lane, sum) in sums.iter_mut().enumerate().skip(at) {
        for (weight, row) in weights.iter().zip(rows.chunks(cols)) {
            *sum = mul_add::<FMA>(*weight, row[lane], *sum);
        }
    }
}

/// V vectors of 16 lanes, kept in registers over all rows.
#[inline(always)]
fn weigh_lanes<const FMA: bool, const V: usize>(
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
