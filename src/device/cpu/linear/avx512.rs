//! The product with AVX-512.
//!
//! An E4M3 value is exact in BF16, so its two bytes are two look-ups in a table of 128 entries, which is what a byte
//! permute over two registers is (VBMI); the sign bit is carried over.
//!
//! One or two rows take dot products of BF16 pairs, which need the fewest instructions per weight: they keep up with
//! memory. More rows take F32 multiply-adds over a decoded panel, of which processors do four times as many a cycle
//! as pairs. Both round the same sums: a pair's second product is added first, then its first, each as a fused
//! multiply-add (the instruction's definition), and the product of two BF16 values is exact in F32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Acts;
use super::super::matrix::{PANEL, Packed, decode_tables};
use super::{Product, store};

/// The most rows that take dot products of pairs.
const PAIR_ROWS: usize = 2;

/// Rows per register tile over decoded panels: 12 × 2 sums leave room for weights and input.
const TILE_ROWS: usize = 12;

/// Pairs decoded at a time: 24 KiB of F32, half of the first cache.
const CHUNK_PAIRS: usize = 96;

/// Floats of scratch that a product of so many rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    CHUNK_PAIRS * 64 + rows * PANEL
}

/// How far ahead of its use a weight is asked of memory, in bytes.
const AHEAD: usize = 2048;

/// The decode tables in registers.
#[derive(Clone, Copy)]
struct Tables {
    high: [__m512i; 2],
    low: [__m512i; 2],
    sign: __m512i,
}

impl Tables {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    fn new() -> Self {
        let (high, low) = decode_tables();
        // SAFETY: both tables have 128 bytes.
        unsafe {
            Self {
                high: [
                    _mm512_loadu_si512(high.as_ptr().cast()),
                    _mm512_loadu_si512(high[64..].as_ptr().cast()),
                ],
                low: [_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(low[64..].as_ptr().cast())],
                sign: _mm512_set1_epi8(i8::MIN),
            }
        }
    }

    /// 64 codes to outputs 0–15 and 16–31 of a pair.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    fn decode(&self, codes: __m512i) -> [__m512i; 2] {
        let high = _mm512_permutex2var_epi8(self.high[0], codes, self.high[1]);
        // 0xF8: high | (codes & sign).
        let high = _mm512_ternarylogic_epi32::<0xF8>(high, codes, self.sign);
        let low = _mm512_permutex2var_epi8(self.low[0], codes, self.low[1]);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

/// Where a panel's weights come from: 64 elements a pair, as two vectors of 16 outputs × 2 inputs.
trait Weights: Copy {
    /// # Safety
    /// `pair` must be inside the panel.
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2];
}

/// E4M3 codes, decoded as they are read.
#[derive(Clone, Copy)]
struct Codes(*const u8, Tables);

impl Weights for Codes {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: 64 codes a pair, inside the panel by contract; callers run with the features of `decode`. A prefetch
        // may name any address.
        unsafe {
            let at = self.0.add(pair * 64);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
            self.1.decode(_mm512_loadu_si512(at.cast()))
        }
    }
}

/// BF16, as stored.
#[derive(Clone, Copy)]
struct Values(*const u16);

impl Weights for Values {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: 64 values a pair, inside the panel by contract.
        unsafe {
            let at = self.0.add(pair * 64);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD / 2).cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD / 2 + 32).cast());
            [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(32).cast())]
        }
    }
}

/// Computes all rows of some panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn panels(product: &Product<'_>, panels: Range<usize>, scratch: &mut [f32]) {
    let elements = product.w.panel_elements();
    let tables = Tables::new();
    if product.x.rows > PAIR_ROWS {
        for panel in panels {
            let range = panel * elements..(panel + 1) * elements;
            match &product.w.data {
                Packed::Bf16(values) => all_rows(product, panel, Values(values[range].as_ptr()), scratch),
                Packed::Fp8 { codes, .. } => {
                    all_rows(product, panel, Codes(codes[range].as_ptr(), tables), scratch);
                }
            }
        }
        return;
    }
    match &product.w.data {
        Packed::Bf16(values) => {
            sweep(product, panels, |panel| Values(values[panel * elements..][..elements].as_ptr()));
        }
        Packed::Fp8 { codes, .. } => {
            sweep(product, panels, |panel| Codes(codes[panel * elements..][..elements].as_ptr(), tables));
        }
    }
}

/// One or two rows over some panels, several at once: enough sums under way hide the latency of the dot product.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn sweep<W: Weights>(product: &Product<'_>, panels: Range<usize>, source: impl Fn(usize) -> W) {
    let mut panel = panels.start;
    if product.x.rows == 1 {
        while panel + 4 <= panels.end {
            tile::<1, 4, W>(product, panel, [0, 1, 2, 3].map(|p| source(panel + p)));
            panel += 4;
        }
        while panel < panels.end {
            tile::<1, 1, W>(product, panel, [source(panel)]);
            panel += 1;
        }
        return;
    }
    while panel + 2 <= panels.end {
        tile::<2, 2, W>(product, panel, [source(panel), source(panel + 1)]);
        panel += 2;
    }
    if panel < panels.end {
        tile::<2, 1, W>(product, panel, [source(panel)]);
    }
}

/// R rows × P panels of 32 outputs: every sum in a register of its own, over all pairs in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tile<const R: usize, const P: usize, W: Weights>(product: &Product<'_>, panel: usize, weights: [W; P]) {
    let x = product.x;
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    let inputs: [&[u16]; R] = std::array::from_fn(|r| &x.values[r * x.cols..][..x.cols]);
    for pair in 0..x.cols / 2 {
        let mut values = [_mm512_setzero_si512(); R];
        for r in 0..R {
            // SAFETY: a pair of the row, 4 bytes; `pair` is below half its length.
            let bits = unsafe { inputs[r].as_ptr().add(pair * 2).cast::<i32>().read_unaligned() };
            values[r] = _mm512_set1_epi32(bits);
        }
        for p in 0..P {
            // SAFETY: a panel has as many pairs as a row.
            let w = unsafe { weights[p].pair(pair) };
            for r in 0..R {
                sums[r][p][0] = dot(sums[r][p][0], w[0], values[r]);
                sums[r][p][1] = dot(sums[r][p][1], w[1], values[r]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, halves) in sums.iter().enumerate() {
            store_halves(product, r, panel + p, halves);
        }
    }
}

/// sum + w\[2i\] × x\[2i\] + w\[2i + 1\] × x\[2i + 1\] for 16 outputs i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn dot(sum: __m512, weights: __m512i, values: __m512i) -> __m512 {
    // SAFETY: same size, and any bit pattern is a vector of BF16.
    let (weights, values): (__m512bh, __m512bh) = unsafe {
        (std::mem::transmute::<__m512i, __m512bh>(weights), std::mem::transmute::<__m512i, __m512bh>(values))
    };
    _mm512_dpbf16_ps(sum, weights, values)
}

/// Pairs of a panel as F32, in the order in which [`tile_floats`] adds: the second input's 32 outputs first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn widen<W: Weights>(weights: W, first: usize, floats: &mut [f32]) {
    let upper = _mm512_set1_epi32(-65536);
    for (pair, out) in floats.chunks_exact_mut(64).enumerate() {
        // SAFETY: a chunk is a pair of the panel, 64 elements.
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

/// One panel over any number of rows, some pairs at a time, so that their decoded weights stay in the first cache;
/// the rows' sums wait in scratch meanwhile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn all_rows<W: Weights>(product: &Product<'_>, panel: usize, weights: W, scratch: &mut [f32]) {
    let rows = product.x.rows;
    let pairs = product.x.cols / 2;
    let (floats, sums) = scratch.split_at_mut(CHUNK_PAIRS * 64);
    let sums = &mut sums[..rows * PANEL];
    sums.fill(0.0);
    // Tiles of about equal size: a small last one would not hide the latency of its multiply-adds.
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

/// Picks the tile kernel for as many rows as there are sums.
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

/// R rows × 32 outputs over some decoded pairs, from the `start`-th of the rows on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tile_floats<const R: usize>(x: &Acts, first: usize, start: usize, floats: &[f32], sums: &mut [f32]) {
    assert_eq!(sums.len(), R * PANEL, "32 sums a row");
    let depth = floats.len() / PANEL;
    let inputs: [&[f32]; R] = std::array::from_fn(|r| &x.floats[(first + r) * x.cols + start * 2..][..depth]);
    let mut totals = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: each row has 32 sums; a pair of `floats` is 64 weights, and its two inputs are below `depth`.
    unsafe {
        for (total, sums) in totals.iter_mut().zip(sums.chunks_exact(PANEL)) {
            *total = [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums.as_ptr().add(16))];
        }
        for (pair, weights) in floats.chunks_exact(64).enumerate() {
            for odd in [1, 0] {
                let at = weights.as_ptr().add((1 - odd) * 32);
                let w = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
                for r in 0..R {
                    let value = _mm512_set1_ps(*inputs[r].as_ptr().add(pair * 2 + odd));
                    totals[r][0] = _mm512_fmadd_ps(w[0], value, totals[r][0]);
                    totals[r][1] = _mm512_fmadd_ps(w[1], value, totals[r][1]);
                }
            }
        }
        for (total, sums) in totals.iter().zip(sums.chunks_exact_mut(PANEL)) {
            _mm512_storeu_ps(sums.as_mut_ptr(), total[0]);
            _mm512_storeu_ps(sums.as_mut_ptr().add(16), total[1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn store_halves(product: &Product<'_>, row: usize, panel: usize, halves: &[__m512; 2]) {
    let mut out = [0.0f32; PANEL];
    // SAFETY: 32 floats.
    unsafe {
        _mm512_storeu_ps(out.as_mut_ptr(), halves[0]);
        _mm512_storeu_ps(out[16..].as_mut_ptr(), halves[1]);
    }
    store(product, row, panel, &out);
}
