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
use super::isa::{DetectedIsa, Isa, by_isa, mul_add};
use super::quant::ActRows;
use super::{Acts, Cache, Cpu, Floats, Parts, Step, Tile};
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
            let job = TileJob { isa: cpu.isa, inputs, index: jobs - 1 - taken, staged: &staged };
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
    isa: DetectedIsa,
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
    let positions = &inputs.step.positions[tile.first..tile.first + tile.len];
    for (index, block) in segment.blocks[..end.div_ceil(BLOCK_TOKENS)].iter().enumerate() {
        let start = cache.offset(inputs.kv.layer, *block, head);
        let valid = BLOCK_TOKENS.min(end - index * BLOCK_TOKENS);
        decode_block(job.isa, &data[start..start + 2 * half], valid, keys, values);
        let block = Block {
            keys: &*keys,
            values: &*values,
            first: index * BLOCK_TOKENS,
            scale: inputs.kv.k_scale / (head_dim as f32).sqrt(),
        };
        // The rows before the block see none of it.
        let mut query = group * positions.partition_point(|position| (*position as usize) < block.first);
        while query < queries {
            let count = at_once(job.isa).min(queries - query);
            let state = SoftmaxState {
                sums: &mut sums[query * head_dim..],
                maxima: &mut maxima[query..],
                denominators: &mut denominators[query..],
            };
            let of_job = QueryRows { job, tile, first: query };
            query += match count {
                4.. => add_block::<FMA, 4>(of_job, block, state),
                2.. => add_block::<FMA, 2>(of_job, block, state),
                _ => add_block::<FMA, 1>(of_job, block, state),
            };
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

/// The most queries that are computed at once, so that they share the reads of K and V. Their sums take 16
/// registers of AVX-512; other instruction sets have no registers for more than one query.
fn at_once(isa: DetectedIsa) -> usize {
    if isa.isa() == Isa::Avx512 { 4 } else { 1 }
}

/// Decodes K and V of a block to F32. V of the positions from `valid` on becomes 0: a previous owner of the
/// block may have left NaN there, and a probability of 0 times NaN is NaN.
#[inline(always)]
fn decode_block<E: CacheElement>(
    isa: DetectedIsa,
    block: &[E],
    valid: usize,
    keys: &mut [f32],
    values: &mut [f32],
) {
    let (k, v) = block.split_at(keys.len());
    E::load_all(isa, k, keys);
    E::load_all(isa, v, values);
    if valid < BLOCK_TOKENS {
        let head_dim = values.len() / BLOCK_TOKENS;
        values[valid * head_dim..].fill(0.0);
    }
}

/// A decoded block of one KV head.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// \[head_dim\]\[64\].
    keys: &'a [f32],
    /// \[64\]\[head_dim\].
    values: &'a [f32],
    /// The block's first position.
    first: usize,
    /// Factor on q·k.
    scale: f32,
}

/// Consecutive queries of a tile, from query `first` on.
#[derive(Clone, Copy)]
struct QueryRows<'a> {
    job: TileJob<'a>,
    tile: &'a Tile,
    first: usize,
}

impl<'a> QueryRows<'a> {
    /// A query, and its position.
    #[inline(always)]
    fn get(&self, index: usize) -> (&'a [f32], usize) {
        let inputs = self.job.inputs;
        let HeadShape { q_heads, kv_heads, head_dim } = inputs.cache.spec.heads;
        let group = q_heads / kv_heads;
        let (query, head) = (self.first + index, self.job.index % kv_heads);
        let row = self.tile.first + query / group;
        let q_head = head * group + query % group;
        let q = &inputs.qkv.row(row)[q_head * head_dim..][..head_dim];
        (q, inputs.step.positions[row] as usize)
    }
}

/// The running softmax of consecutive queries over the scores s of the blocks visited so far.
struct SoftmaxState<'a> {
    /// Σ e^(s − maximum) × v, \[query\]\[head_dim\].
    sums: &'a mut [f32],
    /// The largest s of each query.
    maxima: &'a mut [f32],
    /// Σ e^(s − maximum) of each query.
    denominators: &'a mut [f32],
}

/// Adds one block to the softmax of Q queries, all of which see its first position. Returns Q.
#[inline(always)]
fn add_block<const FMA: bool, const Q: usize>(
    rows: QueryRows<'_>,
    block: Block<'_>,
    state: SoftmaxState<'_>,
) -> usize {
    let queries: [(&[f32], usize); Q] = std::array::from_fn(|i| rows.get(i));
    let head_dim = queries[0].0.len();
    let sums = &mut state.sums[..Q * head_dim];
    let mut scores = [[0.0f32; BLOCK_TOKENS]; Q];
    add_weighted_rows::<FMA, Q>(queries.map(|(q, _)| q), block.keys, BLOCK_TOKENS, scores.as_flattened_mut());
    for (i, scores) in scores.iter_mut().enumerate() {
        let visible = BLOCK_TOKENS.min(queries[i].1 + 1 - block.first);
        let sum = &mut sums[i * head_dim..(i + 1) * head_dim];
        let (maximum, denominator) = (&mut state.maxima[i], &mut state.denominators[i]);
        let correction = weigh::<FMA>(scores, block.scale, visible, maximum, denominator);
        sum.iter_mut().for_each(|s| *s *= correction);
    }
    let scores = scores.each_ref().map(|scores| &scores[..]);
    add_weighted_rows::<FMA, Q>(scores, block.values, head_dim, sums);
    Q
}

/// Turns q·k of a block into weights e^(s − maximum), and updates maximum and denominator. The first
/// `visible` positions count. Returns the factor that takes earlier sums to the new maximum.
#[inline(always)]
fn weigh<const FMA: bool>(
    scores: &mut [f32; BLOCK_TOKENS],
    scale: f32,
    visible: usize,
    maximum: &mut f32,
    denominator: &mut f32,
) -> f32 {
    let before = *maximum;
    // The largest of each lane, then of all. A NaN score makes the maximum and then the whole row NaN, so
    // that the sampler reports the row.
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    for (first, chunk) in (0..).step_by(16).zip(scores.chunks_exact_mut(16)) {
        for (t, (score, lane)) in chunk.iter_mut().zip(&mut lanes).enumerate() {
            *score = if first + t < visible { *score * scale } else { f32::NEG_INFINITY };
            *lane = larger(*lane, *score);
        }
    }
    *maximum = lanes.into_iter().fold(before, larger);
    let correction = exp::<FMA>(before - *maximum);
    scores.iter_mut().for_each(|score| *score = exp::<FMA>(*score - *maximum));
    let mut lanes = [0.0f32; 16];
    for chunk in scores.chunks_exact(16) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, p)| *lane += p);
    }
    *denominator = *denominator * correction + lanes.iter().sum::<f32>();
    correction
}

/// sums\[q\] += Σ_i weights\[q\]\[i\] × rows\[i\] in the order of i, for Q rows of sums; `rows` is
/// \[weights, cols\], `sums` \[Q, cols\].
#[inline(always)]
fn add_weighted_rows<const FMA: bool, const Q: usize>(
    weights: [&[f32]; Q],
    rows: &[f32],
    cols: usize,
    sums: &mut [f32],
) {
    let mut at = 0;
    while at + 64 <= cols {
        add_weighted_lanes::<FMA, Q, 4>(weights, &rows[at..], cols, &mut sums[at..]);
        at += 64;
    }
    while at + 16 <= cols {
        add_weighted_lanes::<FMA, Q, 1>(weights, &rows[at..], cols, &mut sums[at..]);
        at += 16;
    }
    for (weights, sums) in weights.iter().zip(sums.chunks_exact_mut(cols)) {
        for (lane, sum) in sums.iter_mut().enumerate().skip(at) {
            for (weight, row) in weights.iter().zip(rows.chunks(cols)) {
                *sum = mul_add::<FMA>(*weight, row[lane], *sum);
            }
        }
    }
}

/// [`add_weighted_rows`] for V vectors of 16 columns, whose sums stay in registers over all rows.
#[inline(always)]
fn add_weighted_lanes<const FMA: bool, const Q: usize, const V: usize>(
    weights: [&[f32]; Q],
    rows: &[f32],
    cols: usize,
    sums: &mut [f32],
) {
    let mut vectors = [[[0.0f32; 16]; V]; Q];
    for (q, vectors) in vectors.iter_mut().enumerate() {
        vectors.as_flattened_mut().copy_from_slice(&sums[q * cols..][..V * 16]);
    }
    let count = weights[0].len();
    let weights = weights.map(|weights| &weights[..count]);
    for i in 0..count {
        let row = &rows[i * cols..][..V * 16];
        for q in 0..Q {
            let weight = weights[q][i];
            for v in 0..V {
                for lane in 0..16 {
                    vectors[q][v][lane] = mul_add::<FMA>(weight, row[v * 16 + lane], vectors[q][v][lane]);
                }
            }
        }
    }
    for (q, vectors) in vectors.iter().enumerate() {
        sums[q * cols..][..V * 16].copy_from_slice(vectors.as_flattened());
    }
}
