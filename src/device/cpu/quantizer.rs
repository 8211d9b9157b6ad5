//! Rows of weights to E4M3 while a checkpoint is loaded, for whichever device, with this machine's vector instructions.

use super::isa::{Checked, Isa, by_isa};
use crate::device::fp8;

/// The best instruction set of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Quantizer(Checked);

impl Quantizer {
    /// # Panics
    /// Never: every machine has the portable one.
    pub fn new() -> Self {
        Self(Checked::new(Isa::available()[0]).expect("what is available can be used"))
    }

    /// As [`fp8::quantize_row`].
    pub fn row(self, row: &[f32], codes: &mut [u8]) -> f32 {
        by_isa!(self.0, quantize(row: &[f32], codes: &mut [u8]) -> f32)
    }

    /// The values of little-endian BF16.
    pub fn bf16(self, bytes: &[u8], row: &mut [f32]) {
        by_isa!(self.0, widen(bytes: &[u8], row: &mut [f32]))
    }
}

impl Default for Quantizer {
    fn default() -> Self {
        Self::new()
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
