//! The activation of the MLP with the quantisation of its output: out = quant(activation(h)). Threads share
//! the rows.

use std::ops::Range;

use super::exp::silu;
use super::isa::by_isa;
use super::quant::ActRows;
use super::{Acts, Cpu, Floats};
use crate::device::{ActQuant, Activation, GatedRows};

/// The operands of one call.
struct ActivationJob<'a> {
    kind: Activation,
    h: &'a Floats,
    out: ActRows<'a>,
}

pub(super) fn run(cpu: &Cpu, kind: Activation, h: &Floats, quant: ActQuant, out: &mut Acts) {
    let width = match kind {
        Activation::SquaredRelu => out.cols,
        Activation::SwiGlu => 2 * out.cols,
    };
    assert_eq!(h.cols, width, "columns of the input of {kind:?} with {} outputs", out.cols);
    let cols = out.cols;
    let job = ActivationJob { kind, h, out: ActRows::new(out, h.rows, quant) };
    cpu.split_rows(h.rows, cols, |range, scratch| {
        let job = &job;
        by_isa!(cpu.isa, rows_of(job: &ActivationJob<'_>, range: Range<usize>, scratch: &mut [f32]));
    });
}

#[inline(always)]
fn rows_of<const FMA: bool>(job: &ActivationJob<'_>, range: Range<usize>, scratch: &mut [f32]) {
    let cols = job.out.cols;
    for row in range {
        let h = job.h.row(row);
        let out = &mut scratch[..cols];
        match job.kind {
            Activation::SquaredRelu => {
                for (o, x) in out.iter_mut().zip(h) {
                    // Not max(), which would turn NaN into 0: the sampler must see NaN to report it.
                    let positive = if *x < 0.0 { 0.0 } else { *x };
                    *o = positive * positive;
                }
            }
            Activation::SwiGlu => {
                const GROUP: usize = GatedRows::GROUP;
                for (out, pairs) in out.chunks_mut(GROUP).zip(h.chunks(2 * GROUP)) {
                    let (gate, up) = pairs.split_at(out.len());
                    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                        *o = silu::<FMA>(*g) * u;
                    }
                }
            }
        }
        // SAFETY: the ranges of the threads are disjoint.
        unsafe { job.out.store(row, out) };
    }
}
