//! E4M3: 1 sign, 4 exponent (bias 7) and 3 mantissa bits, no infinity, NaN at 0x7F and 0xFF, largest value 448.
//! The format is that of Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433).
//!
//! Rounding is to nearest even, and values beyond ±448 saturate, as the conversion instructions of the GPU do.

/// The largest finite value.
pub const MAX: f32 = 448.0;

/// The smallest normal value, 2^-6; below it values are multiples of 2^-9.
const MIN_NORMAL: f32 = 0.015625;

/// Adding and subtracting it rounds to a multiple of 2^-9, to nearest even.
const SUBNORMAL_ROUNDER: f32 = 1.5 * 16384.0;

/// `x` rounded to the nearest E4M3 value, as F32. NaN stays NaN.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = f32::from_bits(bits & 0x7FFF_FFFF);
    // 20 of F32's 23 mantissa bits go; the bit that stays last decides ties.
    let normal = f32::from_bits((magnitude.to_bits() + 0x7_FFFF + ((bits >> 20) & 1)) & 0xFFF0_0000);
    let subnormal = (magnitude + SUBNORMAL_ROUNDER) - SUBNORMAL_ROUNDER;
    let rounded = if magnitude < MIN_NORMAL { subnormal } else { normal };
    let saturated = if rounded > MAX { MAX } else { rounded };
    let kept = if magnitude.is_nan() { f32::NAN } else { saturated };
    f32::from_bits(kept.to_bits() | (bits & 0x8000_0000))
}

/// The code nearest to `x`: that of [`round`], in fewer steps, since conversions of whole models wait for it.
#[inline(always)]
pub fn encode(x: f32) -> u8 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7FFF_FFFF;
    let normal = ((magnitude + 0x7_FFFF + ((magnitude >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    // The last place of 2^14 is 2^-9, that of subnormal values: up to 8 of them, which is the smallest normal one.
    let subnormal = (f32::from_bits(magnitude) + 16384.0).to_bits() & 0xF;
    let code = if magnitude < MIN_NORMAL.to_bits() { subnormal } else { normal.min(0x7E) };
    let code = if magnitude > 0x7F80_0000 { 0x7F } else { code };
    (code | ((bits >> 24) & 0x80)) as u8
}

/// The value of a code.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    let sign = u32::from(code & 0x80) << 24;
    let rest = u32::from(code & 0x7F);
    let normal = (rest << 20) + (120 << 23);
    let subnormal = (rest as f32 * (1.0 / 512.0)).to_bits();
    let bits = if rest < 8 { subnormal } else { normal };
    let bits = if rest == 0x7F { f32::NAN.to_bits() } else { bits };
    f32::from_bits(bits | sign)
}

/// Whether a code is NaN.
pub fn is_nan(code: u8) -> bool {
    code & 0x7F == 0x7F
}

/// The scale that maps a row's largest magnitude to 448; 1 for a row of zeros, so that nothing divides by zero.
#[inline(always)]
pub fn scale_for(amax: f32) -> f32 {
    // Below this the quotient would be subnormal or zero, and its reciprocal infinite.
    if amax > 1e-30 { amax / MAX } else { 1.0 }
}

/// Quantises one row: returns its scale, amax / 448, and fills `codes` with E4M3(row / scale).
#[inline(always)]
pub fn quantize_row(row: &[f32], codes: &mut [u8]) -> f32 {
    let scale = scale_for(amax(row));
    let inverse = 1.0 / scale;
    for (code, x) in codes.iter_mut().zip(row) {
        *code = encode(x * inverse);
    }
    scale
}

/// The largest magnitude of a row; NaN elements do not count.
#[inline(always)]
pub fn amax(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let a = f32::from_bits(x.to_bits() & 0x7FFF_FFFF);
            *lane = if a > *lane { a } else { *lane };
        }
    }
    let largest = lanes.iter().fold(0.0f32, |m, x| if *x > m { *x } else { m });
    rest.iter().fold(largest, |m, x| if x.abs() > m { x.abs() } else { m })
}

/// BF16 nearest to `x`, to nearest even, as its bit pattern. NaN stays NaN.
#[inline(always)]
pub fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { ((bits >> 16) | 0x40) as u16 } else { rounded }
}

/// The value of a BF16 bit pattern.
#[inline(always)]
pub fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
