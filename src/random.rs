//! Random numbers that are a function of a seed, on every machine: what is simulated or sent as load can be had again.
//!
//! SplitMix64, which has no state but a counter. What follows from a seed is part of what users see: runs are compared by
//! their seeds, so that none of this may change.

use std::f64::consts::TAU;

/// 2^64 by the golden ratio: consecutive multiples differ in many bits.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What SplitMix64 says first of this seed.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(STEP);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A small generator (SplitMix64) whose sequence is its seed's alone, on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The sequence of one of many things of a seed: of its n-th prompt, for example.
    pub fn of(seed: u64, thing: u64) -> Self {
        let mut random = Self(seed);
        Self(random.bits().wrapping_add(thing.wrapping_mul(0xd129_0242_b5f4_9a2d)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let bits = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        bits
    }

    /// Uniform in (0, 1): never 0, so that it has a logarithm.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// An exponential variate of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// A normal variate, by the method of Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }

    /// A gamma variate of this shape and scale 1, by the method of Marsaglia and Tsang (2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
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
