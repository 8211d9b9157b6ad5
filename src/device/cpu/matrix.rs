//! Packed weights, in the layout that the product kernels read: panels of 32 output features. The layout of a
//! panel depends on the instruction set:
//!
//! - Pairs (AVX-512): \[pair of inputs\]\[64\]. A BF16 panel holds outputs 0–15 and then 16–31, each as
//!   \[output\]\[2\]. An E4M3 panel is ordered such that the byte unpacks of its decoder yield this order.
//! - Plain (AVX2, portable): \[input\]\[32 outputs\].
//!
//! Zeros pad the outputs to whole panels and the inputs to whole pairs.

/// Output features per panel.
pub(super) const PANEL: usize = 32;

/// A packed weight matrix \[out, in\].
#[derive(Debug)]
pub struct Matrix {
    pub(super) out: usize,
    pub(super) input: usize,
    /// Panels have the layout of pairs, rather than the plain one.
    pub(super) pairs: bool,
    pub(super) data: Packed,
}

/// The elements in packed order. E4M3 has one scale per output.
#[derive(Debug)]
pub(super) enum Packed {
    Bf16(Vec<u16>),
    Fp8 { codes: Vec<u8>, scales: Vec<f32> },
}

impl Matrix {
    /// Input features, padded to a whole pair.
    pub(super) fn depth(&self) -> usize {
        self.input.next_multiple_of(2)
    }

    pub(super) fn panels(&self) -> usize {
        self.out.div_ceil(PANEL)
    }

    pub(super) fn panel_elements(&self) -> usize {
        PANEL * self.depth()
    }

    /// Bytes of the elements and scales, which a product of few rows reads once.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Packed::Bf16(values) => values.len() * 2,
            Packed::Fp8 { codes, scales } => codes.len() + scales.len() * 4,
        }
    }

    /// Index of element (output, input).
    fn index(&self, output: usize, input: usize) -> usize {
        let fp8 = matches!(self.data, Packed::Fp8 { .. });
        let (panel, lane) = (output / PANEL, output % PANEL);
        panel * self.panel_elements() + offset_in_panel(self.pairs, fp8, lane, input)
    }

    /// Element (output, input) as F32.
    pub(super) fn get(&self, output: usize, input: usize) -> f32 {
        let index = self.index(output, input);
        match &self.data {
            Packed::Bf16(values) => crate::device::fp8::bf16_value(values[index]),
            Packed::Fp8 { codes, scales } => crate::device::fp8::decode(codes[index]) * scales[output],
        }
    }
}

/// Index of element (lane, input) within its panel.
#[inline(always)]
pub(super) fn offset_in_panel(pairs: bool, fp8: bool, lane: usize, input: usize) -> usize {
    if !pairs {
        return input * PANEL + lane;
    }
    let (pair, odd) = (input / 2, input % 2);
    let (half, lane) = (lane / 16, lane % 16);
    // unpacklo takes the first 8 bytes of each 16-byte group, and unpackhi the last 8.
    let place = if fp8 { (lane / 4) * 16 + half * 8 + (lane % 4) * 2 } else { half * 32 + lane * 2 };
    pair * 64 + place + odd
}
