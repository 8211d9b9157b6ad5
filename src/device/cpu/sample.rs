//! Sampled tokens from logits, a row per item, and scores given tokens.
//!
//! Candidates are ordered by logit, largest first, the lower id first on ties; selections are partial, since a sort of
//! 256,000 logits costs more than everything else here.

use std::cmp::Ordering;
use std::ops::Range;

use super::philox;
use super::{Cpu, Floats, Parts, Sampled};
use crate::device::{RowLogprob, SHORTLIST, SampleResult, SampleRow};

pub(super) fn run(cpu: &Cpu, logits: &Floats, vocab: usize, rows: &[SampleRow<'_>], out: &mut Sampled) {
    assert!(vocab <= logits.cols, "a vocabulary of {vocab} in rows of {}", logits.cols);
    draw_rows(cpu, rows, out, |index, work, candidates| {
        let raw = &logits.row(index)[..vocab];
        draw(raw, &rows[index], &mut work[..vocab], candidates)
    });
}

/// Draws from what ranks have named.
pub(super) fn pick(cpu: &Cpu, shortlists: &Floats, rows: &[SampleRow<'_>], out: &mut Sampled) {
    draw_rows(cpu, rows, out, |index, work, candidates| {
        let lists = shortlists.row(index).chunks_exact(2 * SHORTLIST);
        let named = work[..shortlists.cols / 2].chunks_exact_mut(SHORTLIST);
        named.zip(lists.clone()).for_each(|(to, list)| to.copy_from_slice(&list[..SHORTLIST]));
        let work = &work[..shortlists.cols / 2];
        if work.iter().any(|x| x.is_nan()) {
            return SampleResult::NonFinite;
        }
        let place = choose(work, &rows[index], candidates);
        let id = |place: u32| {
            let (rank, place) = (place as usize / SHORTLIST, place as usize % SHORTLIST);
            shortlists.row(index)[(2 * rank + 1) * SHORTLIST + place] as u32
        };
        place.map_or(SampleResult::NonFinite, |place| SampleResult::Token(id(place), None))
    });
}

/// Draws each row, and notes what its slot drew.
fn draw_rows(
    cpu: &Cpu,
    rows: &[SampleRow<'_>],
    out: &mut Sampled,
    draw: impl Fn(usize, &mut [f32], &mut Vec<(f32, u32)>) -> SampleResult + Sync,
) {
    let mut draws = vec![SampleResult::NonFinite; rows.len()];
    let parts = Parts::new(&mut draws);
    cpu.pool.split(rows.len(), |thread, range| {
        let scratch = &mut *cpu.scratch(thread);
        for row in range {
            let drawn = draw(row, &mut scratch.row, &mut scratch.candidates);
            // SAFETY: each row is in one range.
            unsafe { parts.set(row, drawn) };
        }
    });
    for (row, draw) in rows.iter().zip(&draws) {
        // A row that draws nothing leaves 0: its sequence ends, but the next step may have been planned.
        out.last[row.slot as usize] = if let SampleResult::Token(token, _) = draw { *token } else { 0 };
    }
    out.under_way.push_back(draws);
}

/// The largest logits of a rank.
pub(super) fn shortlist(
    cpu: &Cpu,
    logits: &Floats,
    ids: &Range<u32>,
    rows: &[SampleRow<'_>],
    out: &mut Floats,
) {
    let count = ids.len();
    assert!(count <= logits.cols, "{count} ids in rows of {}", logits.cols);
    let cols = out.cols;
    let parts = Parts::new(out.resize(rows.len()));
    cpu.pool.split(rows.len(), |thread, range| {
        let scratch = &mut *cpu.scratch(thread);
        for row in range {
            // SAFETY: each row is in one range.
            let (values, names) = unsafe { parts.part(row * cols..(row + 1) * cols) }.split_at_mut(SHORTLIST);
            values.fill(f32::NEG_INFINITY);
            names.fill(0.0);
            let (raw, work) = (&logits.row(row)[..count], &mut scratch.row[..count]);
            if !finite(raw) {
                values[0] = f32::NAN;
                continue;
            }
            work.copy_from_slice(raw);
            adjust(&rows[row], work, ids);
            let candidates = &mut scratch.candidates;
            candidates.clear();
            let kept = work.iter().zip(ids.clone()).filter(|(x, _)| **x > f32::NEG_INFINITY);
            candidates.extend(kept.map(|(x, id)| (*x, id)));
            if candidates.len() > SHORTLIST {
                candidates.select_nth_unstable_by(SHORTLIST - 1, order);
                candidates.truncate(SHORTLIST);
            }
            candidates.sort_unstable_by_key(|(_, id)| *id);
            for ((x, id), (value, name)) in candidates.iter().zip(values.iter_mut().zip(names)) {
                (*value, *name) = (*x, *id as f32);
            }
        }
    });
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

fn draw(
    raw: &[f32],
    row: &SampleRow<'_>,
    work: &mut [f32],
    candidates: &mut Vec<(f32, u32)>,
) -> SampleResult {
    if !finite(raw) {
        return SampleResult::NonFinite;
    }
    work.copy_from_slice(raw);
    adjust(row, work, &(0..raw.len() as u32));
    let Some(token) = choose(work, row, candidates) else { return SampleResult::NonFinite };
    SampleResult::Token(token, row.logprobs.map(|top| logprob(raw, token, top)))
}

/// The index of a logit; `None` if all are masked.
fn choose(logits: &[f32], row: &SampleRow<'_>, candidates: &mut Vec<(f32, u32)>) -> Option<u32> {
    let best = argmax(logits)?;
    if row.temperature == 0.0 {
        return Some(best);
    }
    let uniform = philox::uniform(row.seed, row.position);
    Some(random(row, logits, logits[best as usize], candidates, uniform))
}

/// Bias, mask, penalties: everything that depends on tokens rather than on probabilities. Logits are those of `ids`.
fn adjust(row: &SampleRow<'_>, logits: &mut [f32], ids: &Range<u32>) {
    let place = |id: &u32| ids.contains(id).then(|| (id - ids.start) as usize);
    for (token, bias) in row.logit_bias {
        place(token).into_iter().for_each(|i| logits[i] += bias);
    }
    if row.repetition_penalty != 1.0 {
        let output = row.output.iter().map(|(token, _)| *token);
        let mut seen: Vec<u32> = row.prompt.iter().copied().chain(output).collect();
        seen.sort_unstable();
        seen.dedup();
        for i in seen.iter().filter_map(place) {
            let x = &mut logits[i];
            *x = if *x > 0.0 { *x / row.repetition_penalty } else { *x * row.repetition_penalty };
        }
    }
    for (token, count) in row.output {
        let penalty = row.presence_penalty + row.frequency_penalty * *count as f32;
        place(token).into_iter().for_each(|i| logits[i] -= penalty);
    }
    for i in row.barred.iter().filter_map(place) {
        logits[i] = f32::NEG_INFINITY;
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
        // Sums then have one order, however many others there were.
        candidates.sort_unstable_by(order);
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
