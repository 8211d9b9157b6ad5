//! The device under test: the CPU.

use octant::device::cpu::{Cpu, CpuOptions, Isa, Matrix};
use octant::device::{ActQuant, DeviceError, HostMatrix, RandomWeights, upload_random};

pub type Dev = Cpu;

/// Input features of a matrix must be a multiple of this.
pub const INPUTS: usize = 2;

/// Tokens per answer in tests of whole models.
pub const GENERATED: u32 = 40;

/// Numbers of KV blocks that are small enough for sequences to be preempted.
pub const SCARCE: std::ops::RangeInclusive<usize> = 4..=8;

/// The number of prompts, and of tokens of each, for which the demo model is compared.
pub const SMOLLM2: (usize, usize) = (usize::MAX, usize::MAX);
/// The most by which FP8 may raise the perplexity of a text of 511 tokens, as a share. The text of the test
/// has 1.6 %, with the same bits on every processor of an instruction set.
pub const FP8_PERPLEXITY: f64 = 0.02;
/// Whether the device is fast enough to score whole texts.
pub const FAST: bool = true;

/// A device for each instruction set of this machine.
pub fn all() -> Vec<Dev> {
    let device = |isa| Cpu::new(CpuOptions { threads: 2, isa: Some(isa), ..Default::default() }).unwrap();
    Isa::available().into_iter().map(device).collect()
}

/// The device with the default instruction set.
pub fn one() -> Dev {
    Cpu::new(CpuOptions { threads: 2, ..Default::default() }).unwrap()
}

/// Another device that must give the same bits. It computes products of many rows the other way.
pub fn other(device: &Dev) -> Dev {
    let pairs = Some(!device.pairs());
    Cpu::new(CpuOptions { threads: 1, isa: Some(device.isa()), pairs }).unwrap()
}

pub fn name(device: &Dev) -> String {
    format!("{:?}", device.isa())
}

/// Random weights, as benchmarks make them on this device.
pub fn random_weights(device: &Dev, weights: &RandomWeights<'_>) -> Result<Matrix, DeviceError> {
    upload_random(device, weights)
}

/// Whether products with this matrix take inputs of this type.
pub fn takes(_matrix: &HostMatrix<'_>, _quant: ActQuant) -> bool {
    true
}

/// Bound of the error of a product, as a share of the sum of absolute terms: that of summation in F32.
pub fn rounding(_matrix: &HostMatrix<'_>, _quant: ActQuant) -> f64 {
    2e-6
}
