//! The product in plain code: F32 multiplications and additions over weights that are decoded to F32. A block
//! of rows shares one decode of a panel, whose layout is \[input\]\[32 outputs\].

use std::ops::Range;

use super::super::matrix::{PANEL, Packed};
use super::{Product, store};
use crate::device::fp8;

/// Rows per block.
const ROWS: usize = 4;

/// Input features decoded at a time.
const DEPTH: usize = 64;

/// Computes all rows of some panels.
pub(super) fn panels(product: &Product<'_>, panels: Range<usize>) {
    for panel in panels {
        let rows = product.x.rows;
        let mut m = 0;
        while m + ROWS <= rows {
            tile::<ROWS>(product, m, panel);
            m += ROWS;
        }
        while m < rows {
            tile::<1>(product, m, panel);
            m += 1;
        }
    }
}

/// Computes R rows × one panel.
#[inline(always)]
fn tile<const R: usize>(product: &Product<'_>, first: usize, panel: usize) {
    let (x, w) = (product.x, product.w);
    let elements = w.panel_elements();
    let mut sums = [[0.0f32; PANEL]; R];
    let mut decoded = [0.0f32; DEPTH * PANEL];
    for start in (0..x.cols).step_by(DEPTH) {
        let depth = DEPTH.min(x.cols - start);
        let range = panel * elements + start * PANEL..panel * elements + (start + depth) * PANEL;
        match &w.data {
            Packed::Bf16(values) => {
                decoded.iter_mut().zip(&values[range]).for_each(|(d, v)| *d = fp8::bf16_value(*v));
            }
            Packed::Fp8 { codes, .. } => {
                decoded.iter_mut().zip(&codes[range]).for_each(|(d, c)| *d = fp8::decode(*c));
            }
        }
        for k in 0..depth {
            let weights = &decoded[k * PANEL..(k + 1) * PANEL];
            for (r, sums) in sums.iter_mut().enumerate() {
                let value = x.floats[(first + r) * x.cols + start + k];
                sums.iter_mut().zip(weights).for_each(|(s, w)| *s += value * *w);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        store(product, first + r, panel, sums);
    }
}
