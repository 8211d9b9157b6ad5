//! residual += delta; out = quant(norm(residual)), in F32. Threads share the rows. A sum over a row runs in
//! 16 lanes, then over the lanes, so that its order does not depend on the number of rows.

use std::ops::Range;

use super::isa::{by_isa, mul_add};
use super::quant::ActRows;
use super::{Acts, Cpu, Floats, Parts};
use crate::device::{ActQuant, Norm, NormKind};

/// The operands of one call.
struct NormJob<'a> {
    residual: Parts<f32>,
    delta: Option<&'a [f32]>,
    norm: &'a Norm<Cpu>,
    out: ActRows<'a>,
}

pub(super) fn run(
    cpu: &Cpu,
    residual: &mut Floats,
    delta: Option<&Floats>,
    norm: &Norm<Cpu>,
    quant: ActQuant,
    out: &mut Acts,
) {
    let (rows, cols) = (residual.rows, residual.cols);
    let shape = |floats: &Floats| (floats.rows, floats.cols);
    assert_eq!(shape(&norm.weight), (1, cols), "weights of a norm of {cols} columns");
    assert_eq!(norm.bias.as_ref().map_or((1, cols), shape), (1, cols), "biases of a norm of {cols} columns");
    if let Some(delta) = delta {
        assert_eq!((delta.rows, delta.cols), (rows, cols), "shape of the delta of the residual");
    }
    let residual = Parts::new(residual.resize(rows));
    let job =
        NormJob { residual, delta: delta.map(Floats::valid), norm, out: ActRows::new(out, rows, quant) };
    cpu.split_rows(rows, cols, |range, scratch| {
        let job = &job;
        by_isa!(cpu.isa, rows_of(job: &NormJob<'_>, range: Range<usize>, scratch: &mut [f32]));
    });
}

#[inline(always)]
fn rows_of<const FMA: bool>(job: &NormJob<'_>, range: Range<usize>, scratch: &mut [f32]) {
    let cols = job.out.cols;
    for row in range {
        // SAFETY: the ranges of the threads are disjoint.
        let x = unsafe { job.residual.part(row * cols..(row + 1) * cols) };
        if let Some(delta) = job.delta {
            x.iter_mut().zip(&delta[row * cols..]).for_each(|(x, d)| *x += d);
        }
        let out = &mut scratch[..cols];
        normalise::<FMA>(job.norm, x, out);
        // SAFETY: the ranges of the threads are disjoint.
        unsafe { job.out.store(row, out) };
    }
}

/// Normalises the row `x` to `out`.
#[inline(always)]
pub(super) fn normalise<const FMA: bool>(norm: &Norm<Cpu>, x: &[f32], out: &mut [f32]) {
    let count = x.len() as f32;
    let (mean, offset) = match norm.kind {
        NormKind::LayerNorm1p => (fold_lanes(x, |sum, x| sum + x) / count, 1.0),
        NormKind::RmsNorm => (0.0, 0.0),
    };
    let variance = fold_lanes(x, |sum, x| mul_add::<FMA>(x - mean, x - mean, sum)) / count;
    let inverse = 1.0 / (variance + norm.eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(norm.weight.valid()) {
        *o = (*x - mean) * inverse * (*w + offset);
    }
    if let Some(bias) = &norm.bias {
        out.iter_mut().zip(bias.valid()).for_each(|(o, b)| *o += b);
    }
}

/// Folds a row in 16 lanes and adds the lanes in order.
#[inline(always)]
fn fold_lanes(x: &[f32], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = step(*lane, *x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane = step(*lane, *x));
    lanes.iter().sum()
}
