//! e^x without branches, so that the compiler vectorises loops over it: range reduction by powers of two and
//! the polynomial of expf in Cephes. The relative error is below 2e-7 if e^x is a normal number; smaller
//! results are 0.

use super::isa::mul_add;

/// e^x for x ≤ 88. Softmax and SiLU need no larger x.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// The upper part of ln 2. Its trailing bits are zero, so that its product with an integer k is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    /// The rest of ln 2.
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5 × 2^23. Adding it to a float rounds to an integer, which the low bits of the sum then hold.
    const ROUNDER: f32 = 12_582_912.0;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let shifted = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUNDER);
    let k = shifted - ROUNDER;
    let r = mul_add::<FMA>(-k, LN2_HIGH, clamped);
    let r = mul_add::<FMA>(-k, LN2_LOW, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = mul_add::<FMA>(p, r, c);
    }
    let p = mul_add::<FMA>(p * r, r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { p * power }
}

/// x / (1 + e^-x).
#[inline(always)]
pub(super) fn silu<const FMA: bool>(x: f32) -> f32 {
    let bounded = if x < -88.0 { -88.0 } else { x };
    x / (1.0 + exp::<FMA>(-bounded))
}
