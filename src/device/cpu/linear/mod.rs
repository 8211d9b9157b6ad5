//! out\[m\]\[n\] = (Σ_k x\[m\]\[k\] · w\[n\]\[k\]) × x_scale\[m\] × w_scale\[n\]: the lanes of a vector are 32 outputs,
//! and the sum runs over k in one order for every number of rows, which is what makes a row's result independent of
//! its neighbours.
//!
//! Threads take whole panels of 32 outputs. For a row or two, weights are decoded in registers as they stream by; for
//! more rows a panel is decoded once into the thread's scratch, and all rows pass over that.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use super::isa::Isa;
use super::matrix::{Matrix, PANEL, Packed};
use super::{Acts, Cpu, Floats, Parts};

/// Floats of scratch that a product of so many rows needs.
pub(super) fn scratch_floats(rows: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        avx512::scratch_floats(rows)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = rows;
        0
    }
}

/// One call's operands, shared by all threads.
struct Product<'a> {
    x: &'a Acts,
    w: &'a Matrix,
    out: Parts<f32>,
}

pub(super) fn run(cpu: &Cpu, x: &Acts, w: &Matrix, out: &mut Floats) {
    assert_eq!(x.cols, w.input, "columns of the input of a [{}, {}] product", w.out, w.input);
    assert_eq!(out.cols, w.out, "columns of the output of a [{}, {}] product", w.out, w.input);
    assert_eq!(w.input % 2, 0, "an even number of input features");
    let product = Product { x, w, out: Parts::new(out.resize(x.rows)) };
    cpu.pool.split(w.panels(), |thread, panels| {
        let scratch = &mut cpu.scratch(thread).product;
        match cpu.isa.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Checked` Avx512 was detected on this machine.
            Isa::Avx512 => unsafe { avx512::panels(&product, panels, scratch) },
            _ => plain::panels(cpu.isa, &product, panels),
        }
    });
}

/// Scales 32 sums of row `m` and stores those that exist.
#[inline(always)]
fn store(product: &Product<'_>, m: usize, panel: usize, sums: &[f32; PANEL]) {
    let w = product.w;
    let first = panel * PANEL;
    let count = PANEL.min(w.out - first);
    let start = m * w.out + first;
    // SAFETY: each panel is one thread's, and (row, panel) names a part of its own.
    let out = unsafe { product.out.part(start..start + count) };
    let x_scale = product.x.scales[m];
    match &w.data {
        Packed::Bf16(_) => out.iter_mut().zip(sums).for_each(|(o, s)| *o = s * x_scale),
        Packed::Fp8 { scales, .. } => {
            let scales = &scales[first..first + PANEL];
            out.iter_mut().zip(sums.iter().zip(scales)).for_each(|(o, (s, w))| *o = s * x_scale * w);
        }
    }
}
