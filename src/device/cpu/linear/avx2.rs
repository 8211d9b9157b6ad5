//! The product with AVX2: F32 multiply-adds over weights that are decoded to F32. The thread decodes a chunk
//! of a panel, whose layout is \[input\]\[32 outputs\], into its scratch memory, where it stays in the L1
//! cache while all rows are computed. The sums of a tile stay in registers over the chunk.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Acts;
use super::super::matrix::{PANEL, Packed};
use super::{Product, store};

/// The most rows of a tile. The sums of 6 rows × 16 outputs leave 4 of 16 registers for weights and inputs.
const TILE_ROWS: usize = 6;

/// Input features decoded at a time: 16 KiB of F32, half of a 32 KiB L1 cache.
const DEPTH: usize = 128;

/// Floats of scratch per thread that a product of `rows` rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    (DEPTH + rows) * PANEL
}

/// Computes all rows of some panels.
#[target_feature(enable = "avx2,fma")]
pub(super) fn panels(product: &Product<'_>, panels: Range<usize>, scratch: &mut [f32]) {
    let (x, elements) = (product.x, product.w.panel_elements());
    let (decoded, sums) = scratch.split_at_mut(DEPTH * PANEL);
    let sums = &mut sums[..x.rows * PANEL];
    let size = x.rows.div_ceil(x.rows.div_ceil(TILE_ROWS));
    for panel in panels {
        sums.fill(0.0);
        for start in (0..x.cols).step_by(DEPTH) {
            let depth = DEPTH.min(x.cols - start);
            let decoded = &mut decoded[..depth * PANEL];
            let first = panel * elements + start * PANEL;
            match &product.w.data {
                Packed::Bf16(values) => decode_bf16(&values[first..][..depth * PANEL], decoded),
                Packed::Fp8 { codes, .. } => decode_fp8(&codes[first..][..depth * PANEL], decoded),
            }
            for (tile, sums) in sums.chunks_mut(size * PANEL).enumerate() {
                let inputs = Inputs { x, first: tile * size, start, depth };
                match sums.len() / PANEL {
                    1 => add_tile::<1, 4>(&inputs, decoded, sums),
                    2 => add_tile::<2, 4>(&inputs, decoded, sums),
                    3 => add_tile::<3, 2>(&inputs, decoded, sums),
                    4 => add_tile::<4, 2>(&inputs, decoded, sums),
                    5 => add_tile::<5, 2>(&inputs, decoded, sums),
                    _ => add_tile::<TILE_ROWS, 2>(&inputs, decoded, sums),
                }
            }
        }
        for (row, sums) in sums.as_chunks::<PANEL>().0.iter().enumerate() {
            store(product, row, panel, sums);
        }
    }
}

/// Converts BF16 to F32.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn decode_bf16(values: &[u16], decoded: &mut [f32]) {
    for (values, out) in values.as_chunks::<8>().0.iter().zip(decoded.as_chunks_mut::<8>().0) {
        // SAFETY: both chunks have 8 elements.
        unsafe {
            let values = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.as_ptr().cast()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_slli_epi32::<16>(values));
        }
    }
}

/// Converts E4M3 to F32 like [`crate::device::fp8::decode`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn decode_fp8(codes: &[u8], decoded: &mut [f32]) {
    let (magnitude, sign, smallest_normal) =
        (_mm256_set1_epi32(0x7F), _mm256_set1_epi32(0x80), _mm256_set1_epi32(8));
    let (bias, nan) = (_mm256_set1_epi32(120 << 23), _mm256_set1_epi32(f32::NAN.to_bits() as i32));
    let unit = _mm256_set1_ps(1.0 / 512.0);
    for (codes, out) in codes.as_chunks::<8>().0.iter().zip(decoded.as_chunks_mut::<8>().0) {
        // SAFETY: both chunks have 8 elements.
        unsafe {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast()));
            let rest = _mm256_and_si256(codes, magnitude);
            let normal = _mm256_add_epi32(_mm256_slli_epi32::<20>(rest), bias);
            let subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(rest), unit);
            let small = _mm256_castsi256_ps(_mm256_cmpgt_epi32(smallest_normal, rest));
            let value = _mm256_blendv_ps(_mm256_castsi256_ps(normal), subnormal, small);
            let bits = _mm256_or_si256(
                _mm256_castps_si256(value),
                _mm256_slli_epi32::<24>(_mm256_and_si256(codes, sign)),
            );
            let is_nan = _mm256_and_si256(_mm256_cmpeq_epi32(rest, magnitude), nan);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_or_si256(bits, is_nan));
        }
    }
}

/// The inputs of a tile: `depth` input features from `start` on, of the rows from `first` on.
struct Inputs<'a> {
    x: &'a Acts,
    first: usize,
    start: usize,
    depth: usize,
}

/// Adds the products of a decoded chunk to the sums of R rows × one panel, V vectors of 8 outputs at a time.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_tile<const R: usize, const V: usize>(inputs: &Inputs<'_>, decoded: &[f32], sums: &mut [f32]) {
    let Inputs { x, first, start, depth } = *inputs;
    assert!(decoded.len() == depth * PANEL && sums.len() == R * PANEL, "{R} rows of {depth} features");
    let rows: [*const f32; R] =
        std::array::from_fn(|r| x.floats[(first + r) * x.cols + start..][..depth].as_ptr());
    for outputs in (0..PANEL).step_by(V * 8) {
        let mut totals = [[_mm256_setzero_ps(); V]; R];
        let lanes = outputs..outputs + V * 8;
        // SAFETY: each chunk has 8 sums, each row `depth` inputs, and each input 32 weights.
        unsafe {
            for (totals, sums) in totals.iter_mut().zip(sums.as_chunks::<PANEL>().0) {
                for (total, sums) in totals.iter_mut().zip(sums[lanes.clone()].as_chunks::<8>().0) {
                    *total = _mm256_loadu_ps(sums.as_ptr());
                }
            }
            for k in 0..depth {
                let at = decoded.as_ptr().add(k * PANEL + outputs);
                let weights: [__m256; V] = std::array::from_fn(|v| _mm256_loadu_ps(at.add(v * 8)));
                for (totals, row) in totals.iter_mut().zip(rows) {
                    let value = _mm256_broadcast_ss(&*row.add(k));
                    for (total, weights) in totals.iter_mut().zip(weights) {
                        *total = _mm256_fmadd_ps(value, weights, *total);
                    }
                }
            }
            for (totals, sums) in totals.iter().zip(sums.as_chunks_mut::<PANEL>().0) {
                for (total, sums) in totals.iter().zip(sums[lanes.clone()].as_chunks_mut::<8>().0) {
                    _mm256_storeu_ps(sums.as_mut_ptr(), *total);
                }
            }
        }
    }
}
