//! The product with AVX-512: VBMI decodes E4M3 to BF16 by byte permutes, BF16 multiplies pairs.
//!
//! An E4M3 value is exact in BF16, so its two bytes are two look-ups in a table of 128 entries, which is what a byte
//! permute over two registers is; the sign bit is carried over. A dot product of pairs then takes 16 outputs × 2
//! inputs from the weights and one broadcast pair from the input.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::matrix::{PANEL, Packed, decode_tables};
use super::{DIRECT_ROWS, Product, store};

/// Rows per register tile over decoded panels: 12 × 2 sums leave room for weights and input.
const TILE_ROWS: usize = 12;

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
        // SAFETY: 64 codes a pair, inside the panel by contract; callers run with the features of `decode`.
        unsafe { self.1.decode(_mm512_loadu_si512(self.0.add(pair * 64).cast())) }
    }
}

/// BF16, as stored or decoded before.
#[derive(Clone, Copy)]
struct Values(*const u16);

impl Weights for Values {
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> [__m512i; 2] {
        // SAFETY: 64 values a pair, inside the panel by contract.
        unsafe {
            let at = self.0.add(pair * 64);
            [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(32).cast())]
        }
    }
}

/// Computes all rows of some panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) fn panels(product: &Product<'_>, panels: Range<usize>, scratch: &mut [u16]) {
    let rows = product.x.rows;
    let elements = product.w.panel_elements();
    match &product.w.data {
        Packed::Bf16(values) => {
            let source = |panel: usize| Values(values[panel * elements..][..elements].as_ptr());
            sweep(product, panels, source);
        }
        Packed::Fp8 { codes, .. } if rows <= DIRECT_ROWS => {
            let tables = Tables::new();
            let source = |panel: usize| Codes(codes[panel * elements..][..elements].as_ptr(), tables);
            sweep(product, panels, source);
        }
        Packed::Fp8 { codes, .. } => {
            let tables = Tables::new();
            for panel in panels {
                decode_panel(&codes[panel * elements..][..elements], tables, &mut scratch[..elements]);
                let at = scratch.as_ptr();
                sweep(product, panel..panel + 1, |_| Values(at));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn decode_panel(codes: &[u8], tables: Tables, values: &mut [u16]) {
    for (codes, values) in codes.chunks_exact(64).zip(values.chunks_exact_mut(64)) {
        // SAFETY: both chunks have 64 elements.
        unsafe {
            let [low, high] = tables.decode(_mm512_loadu_si512(codes.as_ptr().cast()));
            _mm512_storeu_si512(values.as_mut_ptr().cast(), low);
            _mm512_storeu_si512(values[32..].as_mut_ptr().cast(), high);
        }
    }
}

/// All rows over some panels. One row alone takes four panels at once, to have enough sums under way to hide the
/// latency of the dot product.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn sweep<W: Weights>(product: &Product<'_>, panels: Range<usize>, source: impl Fn(usize) -> W) {
    let rows = product.x.rows;
    let mut panel = panels.start;
    while rows == 1 && panel + 4 <= panels.end {
        tile::<1, 4, W>(product, 0, panel, [0, 1, 2, 3].map(|p| source(panel + p)));
        panel += 4;
    }
    while rows <= 3 && panel + 2 <= panels.end {
        let pair = [source(panel), source(panel + 1)];
        match rows {
            1 => tile::<1, 2, W>(product, 0, panel, pair),
            2 => tile::<2, 2, W>(product, 0, panel, pair),
            _ => tile::<3, 2, W>(product, 0, panel, pair),
        }
        panel += 2;
    }
    for panel in panel..panels.end {
        all_rows(product, panel, source(panel));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn all_rows<W: Weights>(product: &Product<'_>, panel: usize, weights: W) {
    let rows = product.x.rows;
    let mut m = 0;
    while rows - m >= TILE_ROWS {
        tile::<TILE_ROWS, 1, W>(product, m, panel, [weights]);
        m += TILE_ROWS;
    }
    while rows - m >= 4 {
        tile::<4, 1, W>(product, m, panel, [weights]);
        m += 4;
    }
    while m < rows {
        tile::<1, 1, W>(product, m, panel, [weights]);
        m += 1;
    }
}

/// R rows × P panels of 32 outputs: every sum in a register of its own, over all pairs in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn tile<const R: usize, const P: usize, W: Weights>(
    product: &Product<'_>,
    first: usize,
    panel: usize,
    weights: [W; P],
) {
    let x = product.x;
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    let inputs: [&[u16]; R] = std::array::from_fn(|r| &x.values[(first + r) * x.cols..][..x.cols]);
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
            let mut out = [0.0f32; PANEL];
            // SAFETY: 32 floats.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), halves[0]);
                _mm512_storeu_ps(out[16..].as_mut_ptr(), halves[1]);
            }
            store(product, first + r, panel + p, &out);
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
