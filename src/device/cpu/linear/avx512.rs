//! The product with AVX-512.
//!
//! BF16 represents E4M3 exactly. Each of the two bytes of the BF16 is a look-up in a table of 128 entries,
//! which a byte permute over two registers performs (VBMI). The sign bit is copied from the code.
//!
//! One or two rows use dot products of BF16 pairs. They need the fewest instructions per weight, so that the
//! speed of memory limits the product. More rows use F32 multiply-adds over a decoded panel, since CPUs
//! execute four times as many of them per cycle as of dot products. Both round alike: the definition of the
//! dot product is a fused multiply-add of the pair's second product and then one of its first, and the
//! product of two BF16 values is exact in F32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Acts;
use super::super::matrix::{PANEL, Packed, decode_tables};
use super::{Product, store};

/// The most rows that use dot products of pairs.
const PAIR_ROWS: usize = 2;

/// Rows per register tile over decoded panels. Their 12 × 2 sums leave registers for weights and input.
const TILE_ROWS: usize = 12;

/// Pairs decoded at a time: 24 KiB of F32, half of a 48 KiB L1 cache.
const CHUNK_PAIRS: usize = 96;

/// Floats of scratch per thread that a product of `rows` rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    CHUNK_PAIRS * 64 + rows * PANEL
}

/// The distance of prefetched weights from those in use, in bytes.
const PREFETCH_BYTES: usize = 2048;

/// The decode tables in registers.
#[derive(Clone, Copy)]
struct DecodeTables {
    high: [__m512i; 2],
    low: [__m512i; 2],
    sign: __m512i,
}

impl DecodeTables {
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

    /// Decodes the 64 codes of a pair to BF16 vectors of outputs 0–15 and 16–31.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    fn decode(&self, codes: __m512i) -> [__m512i; 2] {
        let high = _mm512_permutex2var_epi8(self.high[0], codes, self.high[1]);
        // The operation 0xF8 is high | (codes & sign).
        let high = _mm512_ternarylogic_epi32::<0xF8>(high, codes, self.sign);
        let low = _mm512_permutex2var_epi8(self.low[0], codes, self.low[1]);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

/// The weights of one panel: for each pair of inputs, two BF16 vectors of 16 outputs × 2 inputs.
trait PanelWeights: Copy {
    /// Loads a pair.
    ///
    /// # Safety
    /// `pair` must be inside the panel.
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2];
}

/// A panel of E4M3 codes, which are decoded on loading.
#[derive(Clone, Copy)]
struct Fp8Panel(*const u8, DecodeTables);

impl PanelWeights for Fp8Panel {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: a pair is 64 codes, and the caller keeps it inside the panel. Callers run with the
        // features of `decode`. A prefetch accepts any address.
        unsafe {
            let at = self.0.add(pair * 64);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES).cast());
            self.1.decode(_mm512_loadu_si512(at.cast()))
        }
    }
}

/// A panel of BF16 values.
#[derive(Clone, Copy)]
struct Bf16Panel(*const u16);

impl PanelWeights for Bf16Panel {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: a pair is 64 values, and the caller keeps it inside the panel. A prefetch accepts any
        // address.
        unsafe {
            let at = self.0.add(pair * 64);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES / 2).cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES / 2 + 32).cast());
            [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(32).cast())]
        }
    }
}

/// Computes all rows of some panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn panels(product: &Product<'_>, panels: Range<usize>, scratch: &mut [f32]) {
    let elements = product.w.panel_elements();
    let tables = DecodeTables::new();
    if product.x.rows > PAIR_ROWS {
        for panel in panels {
            let range = panel * elements..(panel + 1) * elements;
            match &product.w.data {
                Packed::Bf16(values) => many_rows(product, panel, Bf16Panel(values[range].as_ptr()), scratch),
                Packed::Fp8 { codes, .. } => {
                    many_rows(product, panel, Fp8Panel(codes[range].as_ptr(), tables), scratch);
                }
            }
        }
        return;
    }
    match &product.w.data {
        Packed::Bf16(values) => {
            few_rows(product, panels, |panel| Bf16Panel(values[panel * elements..][..elements].as_ptr()));
        }
        Packed::Fp8 { codes, .. } => {
            few_rows(product, panels, |panel| {
                Fp8Panel(codes[panel * elements..][..elements].as_ptr(), tables)
            });
        }
    }
}

/// Computes one or two rows of some panels. It sums several panels at once to hide the latency of the dot
/// product. `source` returns the weights of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn few_rows<W: PanelWeights>(product: &Product<'_>, panels: Range<usize>, source: impl Fn(usize) -> W) {
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

/// Computes R rows × P panels of 32 outputs. Each vector of sums stays in a register over all pairs, in
/// order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tile<const R: usize, const P: usize, W: PanelWeights>(
    product: &Product<'_>,
    panel: usize,
    weights: [W; P],
) {
    let x = product.x;
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    let inputs: [&[u16]; R] = std::array::from_fn(|r| &x.values[r * x.cols..][..x.cols]);
    for pair in 0..x.cols / 2 {
        let mut values = [_mm512_setzero_si512(); R];
        for r in 0..R {
            // SAFETY: a pair is 4 bytes, and `pair` is below half the length of the row.
            let bits = unsafe { inputs[r].as_ptr().add(pair * 2).cast::<i32>().read_unaligned() };
            values[r] = _mm512_set1_epi32(bits);
        }
        for p in 0..P {
            // SAFETY: a panel has at least as many pairs as a row.
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
    // SAFETY: the types have the same size, and any bit pattern is a vector of BF16.
    let (weights, values): (__m512bh, __m512bh) = unsafe {
        (std::mem::transmute::<__m512i, __m512bh>(weights), std::mem::transmute::<__m512i, __m512bh>(values))
    };
    _mm512_dpbf16_ps(sum, weights, values)
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
fn many_rows<W: PanelWeights>(product: &Product<'_>, panel: usize, weights: W, scratch: &mut [f32]) {
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
fn tile_floats<const R: usize>(x: &Acts, first: usize, start: usize, floats: &[f32], sums: &mut [f32]) {
    assert_eq!(sums.len(), R * PANEL, "32 sums per row");
    let depth = floats.len() / PANEL;
    let inputs: [&[f32]; R] = std::array::from_fn(|r| &x.floats[(first + r) * x.cols + start * 2..][..depth]);
    let mut totals = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: each row has 32 sums. A pair of `floats` is 64 weights, and the indices of its two inputs are
    // below `depth`.
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
    // SAFETY: `out` has 32 floats.
    unsafe {
        _mm512_storeu_ps(out.as_mut_ptr(), halves[0]);
        _mm512_storeu_ps(out[16..].as_mut_ptr(), halves[1]);
    }
    store(product, row, panel, &out);
}
