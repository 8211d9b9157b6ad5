//! Products of many rows by F32 multiply-adds over panels that are decoded to F32.

use std::arch::x86_64::*;

use super::super::super::Acts;
use super::super::super::matrix::PANEL;
use super::super::{Product, store};
use super::PanelWeights;

/// Rows per register tile over decoded panels. Their 12 × 2 sums leave registers for weights and input.
const TILE_ROWS: usize = 12;

/// Pairs decoded at a time: 24 KiB of F32, half of a 48 KiB L1 cache.
const CHUNK_PAIRS: usize = 96;

/// Floats of scratch per thread that a product of `rows` rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    CHUNK_PAIRS * 64 + rows * PANEL
}

/// Decodes pairs of a panel, from pair `first` on, to F32. In each pair the 32 outputs of the second input
/// come first, since [`tile_floats`] adds them first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn widen<W: PanelWeights>(weights: W, first: usize, floats: &mut [f32]) {
    let upper = _mm512_set1_epi32(-65536);
    for (pair, out) in floats.chunks_exact_mut(64).enumerate() {
        // SAFETY: each chunk has room for the 64 elements of a pair, and the pairs are inside the panel.
        unsafe {
            for (half, pairs) in weights.pair(first + pair).into_iter().enumerate() {
                let odd = _mm512_and_si512(pairs, upper);
                let even = _mm512_slli_epi32::<16>(pairs);
                _mm512_storeu_si512(out[half * 16..].as_mut_ptr().cast(), odd);
                _mm512_storeu_si512(out[32 + half * 16..].as_mut_ptr().cast(), even);
            }
        }
    }
}

/// Computes all rows of one panel, [`CHUNK_PAIRS`] at a time, so that the decoded weights stay in the L1
/// cache. Scratch holds the sums of the rows between chunks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn all_rows<W: PanelWeights>(
    product: &Product<'_>,
    panel: usize,
    weights: W,
    scratch: &mut [f32],
) {
    let rows = product.x.rows;
    let pairs = product.x.cols / 2;
    let (floats, sums) = scratch.split_at_mut(CHUNK_PAIRS * 64);
    let sums = &mut sums[..rows * PANEL];
    sums.fill(0.0);
    // Tiles have about equal size, since a small last tile would not hide the latency of its multiply-adds.
    let size = rows.div_ceil(rows.div_ceil(TILE_ROWS));
    for start in (0..pairs).step_by(CHUNK_PAIRS) {
        let floats = &mut floats[..CHUNK_PAIRS.min(pairs - start) * 64];
        widen(weights, start, floats);
        for (tile, sums) in sums.chunks_mut(size * PANEL).enumerate() {
            tile_of(product.x, tile * size, start, floats, sums);
        }
    }
    for (row, sums) in sums.as_chunks::<PANEL>().0.iter().enumerate() {
        store(product, row, panel, sums);
    }
}

/// Calls [`tile_floats`] for the number of rows that `sums` has.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tile_of(x: &Acts, first: usize, start: usize, floats: &[f32], sums: &mut [f32]) {
    match sums.len() / PANEL {
        1 => tile_floats::<1>(x, first, start, floats, sums),
        2 => tile_floats::<2>(x, first, start, floats, sums),
        3 => tile_floats::<3>(x, first, start, floats, sums),
        4 => tile_floats::<4>(x, first, start, floats, sums),
        5 => tile_floats::<5>(x, first, start, floats, sums),
        6 => tile_floats::<6>(x, first, start, floats, sums),
        7 => tile_floats::<7>(x, first, start, floats, sums),
        8 => tile_floats::<8>(x, first, start, floats, sums),
        9 => tile_floats::<9>(x, first, start, floats, sums),
        10 => tile_floats::<10>(x, first, start, floats, sums),
        11 => tile_floats::<11>(x, first, start, floats, sums),
        _ => tile_floats::<TILE_ROWS>(x, first, start, floats, sums),
    }
}

/// Adds the products of some decoded pairs to the sums of R rows × 32 outputs. `first` is the first row,
/// `start` the first pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
#[expect(clippy::needless_range_loop, reason = "sums that an iterator borrows may not stay in registers")]
fn tile_floats<const R: usize>(x: &Acts, first: usize, start: usize, floats: &[f32], sums: &mut [f32]) {
    assert_eq!(sums.len(), R * PANEL, "32 sums per row");
    let depth = floats.len() / PANEL;
    let inputs: [&[f32]; R] = std::array::from_fn(|r| &x.floats[(first + r) * x.cols + start * 2..][..depth]);
    let mut totals = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: each row has 32 sums. A pair of `floats` is 64 weights, and the indices of its two inputs are
    // below `depth`.
    unsafe {
        for r in 0..R {
            let at = sums.as_ptr().add(r * PANEL);
            totals[r] = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
        }
        for pair in 0..depth / 2 {
            for later in 0..2 {
                // The second input comes first, and with it the first 32 weights of the pair.
                let at = floats.as_ptr().add(pair * 64 + later * 32);
                let w = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
                for r in 0..R {
                    let value = _mm512_set1_ps(*inputs[r].as_ptr().add(pair * 2 + 1 - later));
                    totals[r][0] = _mm512_fmadd_ps(w[0], value, totals[r][0]);
                    totals[r][1] = _mm512_fmadd_ps(w[1], value, totals[r][1]);
                }
            }
        }
        for r in 0..R {
            let at = sums.as_mut_ptr().add(r * PANEL);
            _mm512_storeu_ps(at, totals[r][0]);
            _mm512_storeu_ps(at.add(16), totals[r][1]);
        }
    }
}
