//! Quantisation of weights to E4M3 while a checkpoint is loaded, with the vector instructions of this
//! machine. Every device uses it.

use super::isa::{DetectedIsa, Isa, by_isa};
use crate::device::fp8;

/// Converts rows of weights with the best instruction set of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantizer(DetectedIsa);

impl Quantizer {
    /// Selects the instruction set.
    pub(crate) fn new() -> Self {
        Self(DetectedIsa::new(Isa::available()[0]).expect("an available instruction set is supported"))
    }

    /// Quantises a row by [`fp8::quantize_row`] and returns its scale.
    pub(crate) fn row(self, row: &[f32], codes: &mut [u8]) -> f32 {
        by_isa!(self.0, quantize(row: &[f32], codes: &mut [u8]) -> f32)
    }

    /// Converts little-endian BF16 to F32.
    pub(crate) fn bf16(self, bytes: &[u8], row: &mut [f32]) {
        by_isa!(self.0, widen(bytes: &[u8], row: &mut [f32]))
    }
}

#[inline(always)]
fn quantize<const FMA: bool>(row: &[f32], codes: &mut [u8]) -> f32 {
    fp8::quantize_row(row, codes)
}

#[inline(always)]
fn widen<const FMA: bool>(bytes: &[u8], row: &mut [f32]) {
    for (x, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *x = fp8::bf16_value(u16::from_le_bytes(*bytes));
    }
}
