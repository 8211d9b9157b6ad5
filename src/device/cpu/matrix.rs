//! Weights as the product kernels like them: panels of 32 output features, input features in pairs or one by one.
//!
//! - Pairs (AVX-512): for each panel and pair of inputs, 64 elements. Of an E4M3 panel they are ordered so that the
//!   byte unpacks of a decode yield outputs 0–15 in one vector and 16–31 in the next, each as \[output\]\[2\]; a BF16
//!   panel is stored in that decoded order.
//! - Plain (AVX2, portable): for each panel and input, the 32 outputs.
//!
//! Outputs are padded with zeros to whole panels, and inputs to a whole pair.

use super::fp8_bf16;

/// Output features per panel.
pub(super) const PANEL: usize = 32;

/// A weight matrix \[out, in\], packed.
#[derive(Debug)]
pub struct Matrix {
    pub(super) out: usize,
    pub(super) input: usize,
    pub(super) pairs: bool,
    pub(super) data: Packed,
}

/// Elements in packed order.
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

    /// Bytes that one pass over the weights reads.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Packed::Bf16(values) => values.len() * 2,
            Packed::Fp8 { codes, scales } => codes.len() + scales.len() * 4,
        }
    }

    /// Where element (output, input) is.
    fn index(&self, output: usize, input: usize) -> usize {
        let fp8 = matches!(self.data, Packed::Fp8 { .. });
        let (panel, lane) = (output / PANEL, output % PANEL);
        panel * self.panel_elements() + within(self.pairs, fp8, lane, input)
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

/// Where element (lane, input) is within its panel.
#[inline(always)]
pub(super) fn within(pairs: bool, fp8: bool, lane: usize, input: usize) -> usize {
    if !pairs {
        return input * PANEL + lane;
    }
    let (pair, odd) = (input / 2, input % 2);
    let (half, lane) = (lane / 16, lane % 16);
    // A byte unpack takes 8 bytes of each 16-byte group for the low result and 8 for the high one.
    let place = if fp8 { (lane / 4) * 16 + half * 8 + (lane % 4) * 2 } else { half * 32 + lane * 2 };
    pair * 64 + place + odd
}

/// BF16 bit patterns of the 128 non-negative E4M3 codes: high bytes, then low bytes.
pub(super) fn decode_tables() -> ([u8; 128], [u8; 128]) {
    let mut high = [0; 128];
    let mut low = [0; 128];
    for code in 0..128u8 {
        let [l, h] = fp8_bf16(code).to_le_bytes();
        high[usize::from(code)] = h;
        low[usize::from(code)] = l;
    }
    (high, low)
}
