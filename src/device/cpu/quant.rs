//! The quantisation point of every operation that ends in the input of a product.

use super::Parts;
use crate::device::{ActQuant, fp8};

/// Where an operation's threads write their rows.
pub(super) struct Rows<'a> {
    pub(super) cols: usize,
    values: Parts<u16>,
    floats: Parts<f32>,
    scales: Parts<f32>,
    pub(super) quant: ActQuant,
    _buffers: std::marker::PhantomData<&'a mut [u16]>,
}

impl<'a> Rows<'a> {
    /// For `rows` rows of `out`.
    pub(super) fn new(out: &'a mut super::Acts, rows: usize, quant: ActQuant) -> Self {
        let cols = out.cols;
        let (values, floats, scales) = out.resize(rows);
        let (values, floats, scales) = (Parts::new(values), Parts::new(floats), Parts::new(scales));
        Self { cols, values, floats, scales, quant, _buffers: std::marker::PhantomData }
    }

    /// Quantises and stores one row.
    ///
    /// # Safety
    /// Each row is stored by one thread.
    #[inline(always)]
    pub(super) unsafe fn store(&self, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.cols, "columns of the operation's output");
        let range = row * self.cols..(row + 1) * self.cols;
        // SAFETY: one thread per row, by contract.
        let (bits, floats, scale) = unsafe {
            (self.values.part(range.clone()), self.floats.part(range), self.scales.part(row..row + 1))
        };
        scale[0] = quantize(values, self.quant, floats);
        // Both kinds of value have at most 8 significant bits, so that BF16 is the upper half of F32.
        bits.iter_mut().zip(floats).for_each(|(b, x)| *b = (x.to_bits() >> 16) as u16);
    }
}

/// Fills `out` with the quantised values, before their scale, and returns the scale.
#[inline(always)]
fn quantize(values: &[f32], quant: ActQuant, out: &mut [f32]) -> f32 {
    let scale = match quant {
        ActQuant::Bf16 => {
            out.iter_mut().zip(values).for_each(|(o, x)| *o = fp8::bf16_value(fp8::bf16_bits(*x)));
            return 1.0;
        }
        ActQuant::Fp8PerToken => fp8::scale_for(fp8::amax(values)),
        ActQuant::Fp8Static(scale) => scale,
    };
    let inverse = 1.0 / scale;
    out.iter_mut().zip(values).for_each(|(o, x)| *o = fp8::round(*x * inverse));
    scale
}
