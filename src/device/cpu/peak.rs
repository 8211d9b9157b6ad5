//! Measures the peak of the vector instructions that products use: how many operations per second they do on
//! values in registers. `cargo bench --bench kernels` compares products with it.

use std::time::Instant;

use super::isa::{by_isa, mul_add};
use super::{Cpu, Isa};

/// Independent sums, which hide the latency of an instruction.
const SUMS: usize = 12;

/// Additions to each sum per repetition: some tens of microseconds.
const ADDITIONS: usize = 10_000;

/// Repetitions, of which the fastest counts.
const REPETITIONS: usize = 200;

/// Floating-point operations per second of all threads, where a multiplication and an addition are two.
#[derive(Debug, Clone, Copy)]
pub struct PeakRates {
    /// Dot products of BF16 pairs. `None` if the instruction set in use has none.
    pub pairs: Option<f64>,
    /// F32 multiply-adds.
    pub multiply_adds: f64,
}

impl Cpu {
    /// Measures the peak of the instruction set in use, which takes some hundredths of a second.
    pub fn peak_rates(&self) -> PeakRates {
        let lanes = SUMS * ADDITIONS * 16;
        let plain = || {
            let factors = std::hint::black_box([1.0, 1e-5]);
            by_isa!(self.isa, multiply_adds(factors: [f32; 2]) -> f32)
        };
        #[cfg(target_arch = "x86_64")]
        if self.isa() == Isa::Avx512 {
            // SAFETY: a `DetectedIsa` of `Avx512` was detected on this machine.
            let pairs = || unsafe { wide_pairs(std::hint::black_box([0x3F80_3F80, 0x3800_3800])) };
            // SAFETY: as above.
            let wide = || unsafe { wide_multiply_adds(std::hint::black_box([1.0, 1e-5])) };
            let pairs = Some(self.rate(4 * lanes, &pairs));
            return PeakRates { pairs, multiply_adds: self.rate(2 * lanes, &wide) };
        }
        PeakRates { pairs: None, multiply_adds: self.rate(2 * lanes, &plain) }
    }

    /// Operations per second of all threads if each does `operations` in one call of `job`.
    fn rate(&self, operations: usize, job: &(dyn Fn() -> f32 + Sync)) -> f64 {
        let seconds = (0..REPETITIONS).map(|_| {
            let start = Instant::now();
            self.pool.run(&|_| {
                std::hint::black_box(job());
            });
            start.elapsed().as_secs_f64()
        });
        (operations * self.threads()) as f64 / seconds.fold(f64::INFINITY, f64::min)
    }
}

#[inline(always)]
fn multiply_adds<const FMA: bool>([a, b]: [f32; 2]) -> f32 {
    let mut total = 0.0;
    // Halves of 8 lanes keep the sums in the 16 registers of AVX2.
    for _half in 0..2 {
        let mut sums = [[0.0f32; 8]; SUMS];
        for _ in 0..ADDITIONS {
            for sums in &mut sums {
                for sum in sums {
                    *sum = mul_add::<FMA>(a, b, *sum);
                }
            }
        }
        total += sums.as_flattened().iter().sum::<f32>();
    }
    total
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn wide_pairs(factors: [i32; 2]) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: the types have the same size, and any bit pattern is a vector of BF16.
    let [a, b] =
        factors.map(|bits| unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(bits)) });
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..ADDITIONS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide_multiply_adds(factors: [f32; 2]) -> f32 {
    use std::arch::x86_64::*;
    let [a, b] = factors.map(|factor| _mm512_set1_ps(factor));
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..ADDITIONS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(a, b, *sum);
        }
    }
    sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
}
