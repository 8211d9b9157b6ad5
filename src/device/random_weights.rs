//! Random weights defined by a formula, so that a device can make them in its own memory, for benchmarks.

use super::{Device, DeviceError, HostMatrix, MatrixData, fp8, upload_matrix};
use crate::random::Random;

/// A matrix \[out, in\] of random E4M3 values times a scale. The code of element (o, i) is `codes[b]`, where
/// b is byte i mod 8 of output o × in / 8 + i / 8 of splitmix64, counted from 0.
#[derive(Debug, Clone)]
pub struct RandomWeights<'a> {
    /// Output features.
    pub out: usize,
    /// Input features, a multiple of 8.
    pub input: usize,
    /// The generator's seed.
    pub seed: u64,
    /// E4M3 codes, none of them NaN, all equally probable.
    pub codes: &'a [u8; 256],
    /// Multiplies every element.
    pub scale: f32,
    /// Whether to store BF16, instead of E4M3 with scales.
    pub bf16: bool,
}

/// A function that makes a matrix of random weights on a device.
pub type MakeRandomMatrix<D> = fn(&D, &RandomWeights<'_>) -> Result<<D as Device>::Matrix, DeviceError>;

/// Makes random weights on the host and copies them to a device.
///
/// # Errors
/// If the device has no memory for them or does not support their shape.
pub fn upload_random<D: Device>(device: &D, weights: &RandomWeights<'_>) -> Result<D::Matrix, DeviceError> {
    let (out, input, codes) = (weights.out, weights.input, weights.codes());
    if weights.bf16 {
        let halves = weights.halves(&codes);
        return upload_matrix(device, HostMatrix { out, input, data: MatrixData::Bf16(&halves) });
    }
    let scales = vec![weights.scale; out];
    let data = MatrixData::Fp8 { codes: &codes, scales: &scales };
    upload_matrix(device, HostMatrix { out, input, data })
}

impl RandomWeights<'_> {
    /// All E4M3 codes, row-major.
    pub fn codes(&self) -> Vec<u8> {
        assert!(self.input.is_multiple_of(8), "a multiple of 8 inputs, not {}", self.input);
        let mut random = Random::new(self.seed);
        let mut codes = vec![0; self.out * self.input];
        for group in codes.chunks_exact_mut(8) {
            let bytes = random.bits().to_le_bytes();
            group.iter_mut().zip(bytes).for_each(|(code, byte)| *code = self.codes[usize::from(byte)]);
        }
        codes
    }

    /// BF16 bit patterns of `codes` times the scale.
    pub fn halves(&self, codes: &[u8]) -> Vec<u16> {
        codes.iter().map(|code| fp8::bf16_bits(fp8::decode(*code) * self.scale)).collect()
    }
}
