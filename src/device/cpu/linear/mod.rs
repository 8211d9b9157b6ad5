//! The matrix product: out\[m\]\[n\] = (Σ_k x\[m\]\[k\] · w\[n\]\[k\]) × x_scale\[m\] × w_scale\[n\],
//! rounded to the type of `out`. The lanes of the vectors are the 32 outputs of a panel. The order of the sum
//! over k is the same for every number of rows, so that the result of a row does not depend on the other
//! rows.
//!
//! Each thread computes whole panels. Few rows decode the weights in registers as they read them; for many
//! rows, the thread decodes part of a panel into its scratch memory and then computes all rows.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use super::isa::Isa;
use super::matrix::{Matrix, PANEL, Packed};
use super::{Acts, Cpu, Floats, Parts};
use crate::device::FloatType;

/// Floats of scratch per thread that a product of `rows` rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        avx512::scratch_floats(rows).max(avx2::scratch_floats(rows))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = rows;
        0
    }
}

/// Whether dot products of BF16 pairs are the fastest products on this processor, for any number of rows.
pub(super) fn pairs_are_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        avx512::pairs_are_fast()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// The operands of one call, shared by all threads.
struct Product<'a> {
    x: &'a Acts,
    w: &'a Matrix,
    out: Parts<f32>,
    /// Dot products of BF16 pairs compute any number of rows.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pairs: bool,
    /// Element type of the output.
    float_type: FloatType,
}

pub(super) fn run(cpu: &Cpu, x: &Acts, w: &Matrix, out: &mut Floats) {
    assert_eq!(x.cols, w.input, "columns of the input of a [{}, {}] product", w.out, w.input);
    assert_eq!(out.cols, w.out, "columns of the output of a [{}, {}] product", w.out, w.input);
    assert!(w.input > 0 && w.input.is_multiple_of(2), "the number of input features must be even and not 0");
    let (float_type, pairs) = (out.float_type, cpu.pairs);
    let product = Product { x, w, out: Parts::new(out.resize(x.rows)), pairs, float_type };
    cpu.pool.split(w.panels(), |thread, panels| {
        let scratch = &mut cpu.scratch(thread).product;
        match cpu.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `DetectedIsa` of `Avx512` was detected on this machine.
            Isa::Avx512 => unsafe { avx512::panels(&product, panels, scratch) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `DetectedIsa` of `Avx2` was detected on this machine.
            Isa::Avx2 => unsafe { avx2::panels(&product, panels, scratch) },
            _ => plain::panels(&product, panels),
        }
    });
}

/// Scales the sums of a panel for row `m`, rounds them to the output's type, and stores those that are not
/// padding.
#[inline(always)]
fn store(product: &Product<'_>, m: usize, panel: usize, sums: &[f32; PANEL]) {
    let w = product.w;
    let first = panel * PANEL;
    let count = PANEL.min(w.out - first);
    let start = m * w.out + first;
    // SAFETY: one thread computes each panel, and the parts of different (row, panel) pairs are disjoint.
    let out = unsafe { product.out.part(start..start + count) };
    let x_scale = product.x.scales[m];
    match &w.data {
        Packed::Bf16(_) => out.iter_mut().zip(sums).for_each(|(o, s)| *o = s * x_scale),
        Packed::Fp8 { scales, .. } => {
            let scales = &scales[first..first + PANEL];
            out.iter_mut().zip(sums.iter().zip(scales)).for_each(|(o, (s, w))| *o = s * x_scale * w);
        }
    }
    if product.float_type != FloatType::F32 {
        out.iter_mut().for_each(|o| *o = product.float_type.round(*o));
    }
}
