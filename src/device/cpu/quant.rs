//! The quantisation point of every operation that ends in the input of a product.

use super::Parts;
use crate::device::{ActQuant, fp8};

/// Where an operation's threads write their rows.
pub(super) struct Rows<'a> {
    pub(super) cols: usize,
    values: Parts<u16>,
    scales: Parts<f32>,
    pub(super) quant: ActQuant,
    _buffers: std::marker::PhantomData<&'a mut [u16]>,
}

impl<'a> Rows<'a> {
    /// For `rows` rows of `out`.
    pub(super) fn new(out: &'a mut super::Acts, rows: usize, quant: ActQuant) -> Self {
        let cols = out.cols;
        let (values, scales) = out.resize(rows);
        let (values, scales) = (Parts::new(values), Parts::new(scales));
        Self { cols, values, scales, quant, _buffers: std::marker::PhantomData }
    }

    /// Quantises and stores one row.
    ///
    /// # Safety
    /// Each row is stored by one thread.
    #[inline(always)]
    pub(super) unsafe fn store(&self, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.cols, "columns of the operation's output");
        // SAFETY: one thread per row, by contract.
        let (out, scale) = unsafe {
            (self.values.part(row * self.cols..(row + 1) * self.cols), self.scales.part(row..row + 1))
        };
        scale[0] = quantize(values, self.quant, out);
    }
}

/// Fills `out` with BF16 bit patterns of the quantised values and returns their scale.
#[inline(always)]
fn quantize(values: &[f32], quant: ActQuant, out: &mut [u16]) -> f32 {
    let scale = match quant {
        ActQuant::Bf16 => {
            out.iter_mut().zip(values).for_each(|(o, x)| *o = fp8::bf16_bits(*x));
            return 1.0;
        }
        ActQuant::Fp8PerToken => fp8::scale_for(fp8::amax(values)),
        ActQuant::Fp8Static(scale) => scale,
    };
    let inverse = 1.0 / scale;
    // An E4M3 value has 4 significant bits, so that its BF16 pattern is the upper half of its F32.
    out.iter_mut().zip(values).for_each(|(o, x)| *o = (fp8::round(*x * inverse).to_bits() >> 16) as u16);
    scale
}
