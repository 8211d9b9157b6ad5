//! out = norm(hidden) · weightᵀ + bias, in F32. Threads share the rows. A sum over a row runs in 16 lanes,
//! then over the lanes, so that its order does not depend on the number of rows.

use std::ops::Range;

use super::isa::{by_isa, mul_add};
use super::norm::normalise;
use super::{Cpu, Floats, Parts};
use crate::device::{Norm, RewardWeights};

/// The operands of one call.
struct RewardJob<'a> {
    hidden: &'a Floats,
    norm: &'a Norm<Cpu>,
    head: &'a RewardWeights<Cpu>,
    out: Parts<f32>,
}

pub(super) fn run(cpu: &Cpu, hidden: &Floats, norm: &Norm<Cpu>, head: &RewardWeights<Cpu>, out: &mut Floats) {
    let (rows, cols, width) = (hidden.rows, hidden.cols, head.weight.rows);
    let shape = |floats: &Floats| (floats.rows, floats.cols);
    assert_eq!(shape(&norm.weight), (1, cols), "weights of a norm of {cols} columns");
    assert_eq!(norm.bias.as_ref().map_or((1, cols), shape), (1, cols), "biases of a norm of {cols} columns");
    assert_eq!(head.weight.cols, cols, "columns of a reward head after rows of {cols}");
    assert_eq!(shape(&head.bias), (1, width), "biases of a reward head of {width} values");
    assert_eq!(out.cols, width, "columns for a reward head of {width} values");
    let job = RewardJob { hidden, norm, head, out: Parts::new(out.resize(rows)) };
    cpu.split_rows(rows, cols, |range, scratch| {
        let job = &job;
        by_isa!(cpu.isa, rows_of(job: &RewardJob<'_>, range: Range<usize>, scratch: &mut [f32]));
    });
}

#[inline(always)]
fn rows_of<const FMA: bool>(job: &RewardJob<'_>, range: Range<usize>, scratch: &mut [f32]) {
    let width = job.head.weight.rows;
    for row in range {
        let normed = &mut scratch[..job.hidden.cols];
        normalise::<FMA>(job.norm, job.hidden.row(row), normed);
        // SAFETY: the ranges of the threads are disjoint.
        let out = unsafe { job.out.part(row * width..(row + 1) * width) };
        for ((value, bias), index) in out.iter_mut().zip(job.head.bias.valid()).zip(0..) {
            *value = dot::<FMA>(normed, job.head.weight.row(index)) + bias;
        }
    }
}

/// The dot product, in 16 lanes that are added in order.
#[inline(always)]
fn dot<const FMA: bool>(x: &[f32], w: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (x, w) in x.chunks(16).zip(w.chunks(16)) {
        for ((lane, x), w) in lanes.iter_mut().zip(x).zip(w) {
            *lane = mul_add::<FMA>(*x, *w, *lane);
        }
    }
    lanes.iter().sum()
}
