//! Random numbers that are a function of a seed, the same on every machine: simulated and sent load can be
//! reproduced.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
//! 2014), whose state is a counter. Users compare runs by their seeds, so the numbers that follow from a seed
//! must never change.

use std::f64::consts::TAU;

/// Increment of the counter: 2^64 divided by the golden ratio, so that consecutive multiples differ in many
/// bits.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// First output of SplitMix64 for the seed `x`.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(STEP);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A SplitMix64 generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The sequence of stream number `index` of a seed, for example of the prompt with this number.
    pub(crate) fn stream(seed: u64, index: u64) -> Self {
        let mut random = Self(seed);
        Self(random.bits().wrapping_add(index.wrapping_mul(0xd129_0242_b5f4_9a2d)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let bits = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        bits
    }

    /// Uniform variate in the open interval (0, 1), so that its logarithm is finite.
    pub(crate) fn uniform(&mut self) -> f64 {
        unit(self.bits())
    }

    /// Exponential variate of mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// Standard normal variate, by the method of Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }

    /// Gamma variate of this shape and scale 1, by the method of Marsaglia and Tsang (2000).
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.uniform().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

/// Maps 64 random bits to the open interval (0, 1), by their upper 53.
pub(crate) fn unit(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}
