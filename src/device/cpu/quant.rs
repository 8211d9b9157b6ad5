//! Quantises the rows of [`super::Acts`] for norm, attention and activation.

use super::Parts;
use crate::device::{ActQuant, fp8};

/// The output rows of an operation, which its threads quantise and store.
pub(super) struct ActRows<'a> {
    pub(super) cols: usize,
    values: Parts<u16>,
    floats: Parts<f32>,
    scales: Parts<f32>,
    pub(super) quant: ActQuant,
    _buffers: std::marker::PhantomData<&'a mut [u16]>,
}

impl<'a> ActRows<'a> {
    /// Resizes `out` to `rows` rows.
    pub(super) fn new(out: &'a mut super::Acts, rows: usize, quant: ActQuant) -> Self {
        let cols = out.cols;
        let (values, floats, scales) = out.resize(rows);
        let (values, floats, scales) = (Parts::new(values), Parts::new(floats), Parts::new(scales));
        Self { cols, values, floats, scales, quant, _buffers: std::marker::PhantomData }
    }

    /// Quantises and stores one row.
    ///
    /// # Safety
    /// No two threads may store the same row.
    #[inline(always)]
    pub(super) unsafe fn store(&self, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.cols, "columns of a row of the output");
        let range = row * self.cols..(row + 1) * self.cols;
        // SAFETY: the caller stores each row from one thread.
        let (bits, floats, scale) = unsafe {
            (self.values.part(range.clone()), self.floats.part(range), self.scales.part(row..row + 1))
        };
        scale[0] = quantize(values, self.quant, floats);
        // BF16 and E4M3 values have at most 8 significant bits, so the upper half of the F32 is the BF16.
        bits.iter_mut().zip(floats).for_each(|(b, x)| *b = (x.to_bits() >> 16) as u16);
    }
}

/// Fills `out` with the quantised values, without their scale, and returns the scale.
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
