//! Draws tokens from logits, a row per item, and scores given tokens.
//!
//! Candidates are ordered by logit, largest first, the lower id first on ties; selections are partial, since a sort of
//! 256,000 logits costs more than everything else here.

use std::cmp::Ordering;

use super::philox;
use super::{Cpu, Draws, Floats, Parts};
use crate::device::{Draw, RowLogprob, SampleRow};

pub(super) fn run(cpu: &Cpu, logits: &Floats, vocab: usize, rows: &[SampleRow<'_>], out: &mut Draws) {
    assert!(vocab <= logits.cols, "a vocabulary of {vocab} in rows of {}", logits.cols);
    let mut draws = vec![Draw::NonFinite; rows.len()];
    let parts = Parts::new(&mut draws);
    cpu.pool.split(rows.len(), |thread, range| {
        let scratch = &mut *cpu.scratch(thread);
        for row in range {
            let raw = &logits.row(row)[..vocab];
            let work = &mut scratch.row[..vocab];
            let drawn = draw(raw, &rows[row], work, &mut scratch.candidates);
            // SAFETY: each row is in one range.
            unsafe { parts.set(row, drawn) };
        }
    });
    for (row, draw) in rows.iter().zip(&draws) {
        // A row that draws nothing leaves 0: its sequence ends, but the next step may have been planned.
        out.last[row.slot as usize] = if let Draw::Token(token, _) = draw { *token } else { 0 };
    }
    out.under_way.push_back(draws);
}

pub(super) fn score(
    cpu: &Cpu,
    logits: &Floats,
    vocab: usize,
    targets: &[u32],
    top: u8,
) -> Vec<Option<RowLogprob>> {
    let mut scores = vec![None; targets.len()];
    let parts = Parts::new(&mut scores);
    cpu.pool.split(targets.len(), |_, range| {
        for row in range {
            let raw = &logits.row(row)[..vocab];
            let scored = finite(raw).then(|| logprob(raw, targets[row], top));
            // SAFETY: each row is in one range.
            unsafe { parts.set(row, scored) };
        }
    });
    scores
}

fn finite(raw: &[f32]) -> bool {
    raw.iter().fold(true, |all, x| all & x.is_finite())
}

fn draw(raw: &[f32], row: &SampleRow<'_>, work: &mut [f32], candidates: &mut Vec<(f32, u32)>) -> Draw {
    if !finite(raw) {
        return Draw::NonFinite;
    }
    work.copy_from_slice(raw);
    adjust(row, work);
    let Some(best) = argmax(work) else { return Draw::NonFinite };
    let token = if row.temperature == 0.0 {
        best
    } else {
        let uniform = philox::uniform(row.seed, row.position);
        random(row, work, work[best as usize], candidates, uniform)
    };
    Draw::Token(token, row.logprobs.map(|top| logprob(raw, token, top)))
}

/// Bias, mask, penalties: everything that depends on tokens rather than on probabilities.
fn adjust(row: &SampleRow<'_>, logits: &mut [f32]) {
    for (token, bias) in row.logit_bias {
        logits[*token as usize] += bias;
    }
    if row.repetition_penalty != 1.0 {
        let output = row.output.iter().map(|(token, _)| *token);
        let mut seen: Vec<u32> = row.prompt.iter().copied().chain(output).collect();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            let x = &mut logits[token as usize];
            *x = if *x > 0.0 { *x / row.repetition_penalty } else { *x * row.repetition_penalty };
        }
    }
    for (token, count) in row.output {
        logits[*token as usize] -= row.presence_penalty + row.frequency_penalty * *count as f32;
    }
    for token in row.barred {
        logits[*token as usize] = f32::NEG_INFINITY;
    }
}

/// The largest logit's id, the lowest on ties; `None` if all are masked.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut largest = f32::NEG_INFINITY;
    for x in logits {
        largest = if *x > largest { *x } else { largest };
    }
    if largest == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|x| *x == largest).map(|i| i as u32)
}

/// Larger logits first, lower ids first on ties.
fn order(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Draws with temperature among what top-k, top-p and min-p leave.
fn random(
    row: &SampleRow<'_>,
    logits: &[f32],
    best: f32,
    candidates: &mut Vec<(f32, u32)>,
    uniform: f64,
) -> u32 {
    let weight = |x: f32| (f64::from(x - best) / f64::from(row.temperature)).exp();
    // Relative to the most probable token, so that min-p and temperature need no normalisation.
    let floor = if row.min_p > 0.0 { f64::from(row.min_p) } else { 0.0 };
    candidates.clear();
    let kept = logits.iter().enumerate().filter(|(_, x)| **x > f32::NEG_INFINITY);
    candidates.extend(kept.map(|(i, x)| (*x, i as u32)));
    let top_k = row.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, order);
        candidates.truncate(top_k);
    }
    if row.top_p < 1.0 {
        let total: f64 = candidates.iter().map(|(x, _)| weight(*x)).sum();
        keep_mass(candidates, f64::from(row.top_p) * total, weight);
    }
    // Unfiltered candidates stand in the order of ids, filtered ones by logit: either is one fixed order.
    if top_k > 0 || row.top_p < 1.0 {
        candidates.sort_unstable_by(order);
    }
    candidates.retain(|(x, _)| weight(*x) >= floor);
    let total: f64 = candidates.iter().map(|(x, _)| weight(*x)).sum();
    let mut rest = uniform * total;
    for (x, token) in candidates.iter() {
        rest -= weight(*x);
        if rest < 0.0 {
            return *token;
        }
    }
    // Rounding can leave a rest; the last candidate that has any weight takes it.
    let last = candidates.iter().rev().find(|(x, _)| weight(*x) > 0.0);
    last.expect("the best candidate has weight 1").1
}

/// Cuts to the fewest of the most probable candidates whose weights reach `mass`; at least one.
fn keep_mass(candidates: &mut Vec<(f32, u32)>, mass: f64, weight: impl Fn(f32) -> f64) {
    let mut sorted = 0;
    let mut sum = 0.0;
    while sorted < candidates.len() {
        // Ever larger parts of the order, each sorted after what is already in place.
        let part = (sorted * 8).max(64).min(candidates.len() - sorted);
        let rest = &mut candidates[sorted..];
        if part < rest.len() {
            rest.select_nth_unstable_by(part - 1, order);
        }
        rest[..part].sort_unstable_by(order);
        for i in sorted..sorted + part {
            sum += weight(candidates[i].0);
            if sum >= mass {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted += part;
    }
}

/// ln softmax(raw)\[token\], with the `top` most probable tokens. Accumulates in F64.
fn logprob(raw: &[f32], token: u32, top: u8) -> RowLogprob {
    let largest = raw.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    let sum: f64 = raw.iter().map(|x| f64::from((x - largest).exp())).sum();
    let log_sum = f64::from(largest) + sum.ln();
    let of = |x: f32| (f64::from(x) - log_sum) as f32;
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(usize::from(top) + 1);
    for (i, x) in raw.iter().enumerate() {
        let worst = if best.len() < usize::from(top) { None } else { best.last() };
        if top == 0 || worst.is_some_and(|worst| *x <= worst.0) {
            continue;
        }
        let entry = (*x, i as u32);
        let place = best.partition_point(|other| order(other, &entry) == Ordering::Less);
        best.insert(place, entry);
        best.truncate(usize::from(top));
    }
    let top = best.into_iter().map(|(x, token)| (token, of(x))).collect();
    RowLogprob { logprob: of(raw[token as usize]), top }
}
