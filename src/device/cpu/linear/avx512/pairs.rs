//! Products by dot products of BF16 pairs. The sums of a tile, some rows × some panels, stay in registers
//! while all its inputs or a chunk of them are added.
//!
//! Few rows decode the weights in registers, beside the dot products of the pair before. For many rows the
//! thread decodes a chunk of two panels into its scratch memory, where it stays in the L1 cache while all
//! rows are computed.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::super::Acts;
use super::super::super::matrix::PANEL;
use super::super::{Product, store};
use super::PanelWeights;

/// The fewest rows for which decoding a chunk of panels once is faster than decoding it for each tile.
pub(super) const MANY_ROWS: usize = 24;

/// The most rows of a tile. Its 6 rows × 2 panels have 24 vectors of sums.
const TILE_ROWS: usize = 6;

/// The most rows of a tile whose weights are decoded one pair ahead. More rows need those registers for sums.
const AHEAD_ROWS: usize = 4;

/// Pairs decoded at a time: 18 KiB of two panels, about half of a 32 KiB L1 cache.
const CHUNK_PAIRS: usize = 72;

/// Floats that hold the decoded weights of a chunk of one panel. A pair of inputs has 64 BF16.
const CHUNK_FLOATS: usize = CHUNK_PAIRS * 32;

/// Floats of scratch per thread that a product of `rows` rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    2 * CHUNK_FLOATS + 2 * rows * PANEL
}

/// Rows per tile, such that the tiles of `rows` rows have about equal size.
fn tile_rows(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TILE_ROWS))
}

/// Computes fewer than [`MANY_ROWS`] rows of some panels. `source` returns the weights of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn few_rows<W: PanelWeights>(
    product: &Product<'_>,
    panels: Range<usize>,
    source: impl Fn(usize) -> W,
) {
    let mut panel = panels.start;
    // One row needs four panels to hide the latency of its dot products.
    while product.x.rows == 1 && panel + 4 <= panels.end {
        tile::<1, 4, W>(product, 0, panel, [0, 1, 2, 3].map(|p| source(panel + p)));
        panel += 4;
    }
    while panel + 2 <= panels.end {
        tiles::<2, W>(product, panel, [source(panel), source(panel + 1)]);
        panel += 2;
    }
    if panel < panels.end {
        tiles::<1, W>(product, panel, [source(panel)]);
    }
}

/// Computes the tiles of all rows of P panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tiles<const P: usize, W: PanelWeights>(product: &Product<'_>, panel: usize, weights: [W; P]) {
    let rows = product.x.rows;
    let size = tile_rows(rows);
    for first in (0..rows).step_by(size) {
        match size.min(rows - first) {
            1 => tile::<1, P, W>(product, first, panel, weights),
            2 => tile::<2, P, W>(product, first, panel, weights),
            3 => tile::<3, P, W>(product, first, panel, weights),
            4 => tile::<4, P, W>(product, first, panel, weights),
            5 => tile::<5, P, W>(product, first, panel, weights),
            _ => tile::<TILE_ROWS, P, W>(product, first, panel, weights),
        }
    }
}

/// Computes R rows × P panels of 32 outputs, and decodes the weights in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tile<const R: usize, const P: usize, W: PanelWeights>(
    product: &Product<'_>,
    first: usize,
    panel: usize,
    weights: [W; P],
) {
    let x = product.x;
    let pairs = x.cols / 2;
    let inputs: [*const u16; R] =
        std::array::from_fn(|r| x.values[(first + r) * x.cols..][..x.cols].as_ptr());
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    // SAFETY: a panel has at least as many pairs as a row, at least one, and a pair of a row is 4 bytes.
    unsafe {
        let mut next = load(weights, 0);
        for pair in 0..pairs {
            let current = if R <= AHEAD_ROWS { next } else { load(weights, pair) };
            if R <= AHEAD_ROWS {
                next = load(weights, (pair + 1).min(pairs - 1));
            }
            add_pair(&mut sums, &current, &inputs, pair);
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, halves) in sums.iter().enumerate() {
            let mut out = [0.0f32; PANEL];
            // SAFETY: `out` has 32 floats.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), halves[0]);
                _mm512_storeu_ps(out[16..].as_mut_ptr(), halves[1]);
            }
            store(product, first + r, panel + p, &out);
        }
    }
}

/// Loads and decodes a pair of each panel.
///
/// # Safety
/// `pair` must be inside the panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
unsafe fn load<const P: usize, W: PanelWeights>(weights: [W; P], pair: usize) -> [[__m512i; 2]; P] {
    let mut loaded = [[_mm512_setzero_si512(); 2]; P];
    for (loaded, weights) in loaded.iter_mut().zip(weights) {
        // SAFETY: the caller keeps the pair inside the panels.
        *loaded = unsafe { weights.pair(pair) };
    }
    loaded
}

/// Adds the products of one pair of inputs to the sums of R rows × P panels.
///
/// # Safety
/// Each row of the inputs must have more than `pair` pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
unsafe fn add_pair<const R: usize, const P: usize>(
    sums: &mut [[[__m512; 2]; P]; R],
    weights: &[[__m512i; 2]; P],
    inputs: &[*const u16; R],
    pair: usize,
) {
    for r in 0..R {
        // SAFETY: a pair is 4 bytes, and the caller's rows have this pair.
        let value = _mm512_set1_epi32(unsafe { inputs[r].add(pair * 2).cast::<i32>().read_unaligned() });
        for p in 0..P {
            sums[r][p][0] = dot(sums[r][p][0], weights[p][0], value);
            sums[r][p][1] = dot(sums[r][p][1], weights[p][1], value);
        }
    }
}

/// sum + w\[2i\] × x\[2i\] + w\[2i + 1\] × x\[2i + 1\] for 16 outputs i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn dot(sum: __m512, weights: __m512i, values: __m512i) -> __m512 {
    // SAFETY: the types have the same size, and any bit pattern is a vector of BF16.
    let (weights, values): (__m512bh, __m512bh) = unsafe {
        (std::mem::transmute::<__m512i, __m512bh>(weights), std::mem::transmute::<__m512i, __m512bh>(values))
    };
    _mm512_dpbf16_ps(sum, weights, values)
}

/// Computes [`MANY_ROWS`] rows or more of some panels. `source` returns the weights of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn many_rows<W: PanelWeights>(
    product: &Product<'_>,
    panels: Range<usize>,
    source: impl Fn(usize) -> W,
    scratch: &mut [f32],
) {
    let mut panel = panels.start;
    while panel + 2 <= panels.end {
        all_rows::<2, W>(product, panel, [source(panel), source(panel + 1)], scratch);
        panel += 2;
    }
    if panel < panels.end {
        all_rows::<1, W>(product, panel, [source(panel)], scratch);
    }
}

/// Computes all rows of P panels, [`CHUNK_PAIRS`] at a time. Scratch holds the decoded weights of a chunk,
/// and the sums of all rows between chunks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn all_rows<const P: usize, W: PanelWeights>(
    product: &Product<'_>,
    panel: usize,
    weights: [W; P],
    scratch: &mut [f32],
) {
    let rows = product.x.rows;
    let pairs = product.x.cols / 2;
    let (decoded, sums) = scratch.split_at_mut(P * CHUNK_FLOATS);
    let sums = &mut sums[..rows * P * PANEL];
    sums.fill(0.0);
    let size = tile_rows(rows);
    for start in (0..pairs).step_by(CHUNK_PAIRS) {
        let count = CHUNK_PAIRS.min(pairs - start);
        let mut chunk = [std::ptr::null(); P];
        for (p, room) in decoded.chunks_exact_mut(CHUNK_FLOATS).enumerate() {
            // SAFETY: the pairs are inside the panel, and `room` has space for CHUNK_PAIRS of them.
            chunk[p] = unsafe { weights[p].decoded(start, count, room.as_mut_ptr().cast()) };
        }
        for (tile, sums) in sums.chunks_mut(size * P * PANEL).enumerate() {
            let inputs = Inputs { x: product.x, first: tile * size, start, count };
            // SAFETY: `chunk` points to `count` decoded pairs of each panel.
            unsafe { chunk_of(&inputs, chunk, sums) };
        }
    }
    for (row, sums) in sums.chunks_exact(P * PANEL).enumerate() {
        for (p, sums) in sums.as_chunks::<PANEL>().0.iter().enumerate() {
            store(product, row, panel + p, sums);
        }
    }
}

/// The inputs of a tile: `count` pairs from pair `start` on, of the rows from `first` on.
struct Inputs<'a> {
    x: &'a Acts,
    first: usize,
    start: usize,
    count: usize,
}

/// Calls [`chunk_tile`] for the number of rows that `sums` has.
///
/// # Safety
/// Each pointer of `weights` must point to as many decoded pairs as the inputs have.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
unsafe fn chunk_of<const P: usize>(inputs: &Inputs<'_>, weights: [*const u16; P], sums: &mut [f32]) {
    // SAFETY: the caller's contract is that of `chunk_tile`.
    unsafe {
        match sums.len() / (P * PANEL) {
            1 => chunk_tile::<1, P>(inputs, weights, sums),
            2 => chunk_tile::<2, P>(inputs, weights, sums),
            3 => chunk_tile::<3, P>(inputs, weights, sums),
            4 => chunk_tile::<4, P>(inputs, weights, sums),
            5 => chunk_tile::<5, P>(inputs, weights, sums),
            _ => chunk_tile::<TILE_ROWS, P>(inputs, weights, sums),
        }
    }
}

/// Adds the products of a chunk to the sums of R rows × P panels.
///
/// # Safety
/// Each pointer of `weights` must point to as many decoded pairs as the inputs have.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
unsafe fn chunk_tile<const R: usize, const P: usize>(
    inputs: &Inputs<'_>,
    weights: [*const u16; P],
    sums: &mut [f32],
) {
    let Inputs { x, first, start, count } = *inputs;
    assert_eq!(sums.len(), R * P * PANEL, "the sums of {R} rows");
    let rows: [*const u16; R] =
        std::array::from_fn(|r| x.values[(first + r) * x.cols + start * 2..][..count * 2].as_ptr());
    let mut totals = [[[_mm512_setzero_ps(); 2]; P]; R];
    // SAFETY: `sums` has 32 floats for each row and panel, each row `count` pairs of 4 bytes, and by the
    // caller's contract each panel `count` pairs of 64 values.
    unsafe {
        for (halves, sums) in totals.as_flattened_mut().iter_mut().zip(sums.as_chunks::<PANEL>().0) {
            *halves = [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums.as_ptr().add(16))];
        }
        for pair in 0..count {
            let current = weights.map(|panel| {
                let at = panel.add(pair * 64);
                [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(32).cast())]
            });
            add_pair(&mut totals, &current, &rows, pair);
        }
        for (halves, sums) in totals.as_flattened().iter().zip(sums.as_chunks_mut::<PANEL>().0) {
            _mm512_storeu_ps(sums.as_mut_ptr(), halves[0]);
            _mm512_storeu_ps(sums.as_mut_ptr().add(16), halves[1]);
        }
    }
}
