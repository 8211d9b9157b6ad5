//! Sampling of tokens from logits or shortlists, and log-probabilities of given tokens. Threads share the
//! rows.
//!
//! Candidates are ordered by logit, largest first, ties by lower id. Selections sort only what they need,
//! since sorting 256,000 logits would cost more than the rest of sampling.

use std::cmp::Ordering;
use std::ops::Range;

use super::philox;
use super::{Cpu, Floats, Parts, Sampled};
use crate::device::{RowLogprob, SHORTLIST, SampleResult, SampleRow};

/// Samples a token from each row of logits.
pub(super) fn from_logits(
    cpu: &Cpu,
    logits: &Floats,
    vocab: usize,
    rows: &[SampleRow<'_>],
    out: &mut Sampled,
) {
    assert!(vocab <= logits.cols, "a vocabulary of {vocab} exceeds rows of {}", logits.cols);
    sample_rows(cpu, rows, out, |index, work, candidates| {
        let raw = &logits.row(index)[..vocab];
        sample_row(raw, &rows[index], &mut work[..vocab], candidates)
    });
}

/// Samples a token from each row of the ranks' shortlists.
pub(super) fn from_shortlists(cpu: &Cpu, shortlists: &Floats, rows: &[SampleRow<'_>], out: &mut Sampled) {
    sample_rows(cpu, rows, out, |index, work, candidates| {
        let lists = shortlists.row(index).chunks_exact(2 * SHORTLIST);
        let logits = &mut work[..shortlists.cols / 2];
        let ranks = logits.chunks_exact_mut(SHORTLIST).zip(lists);
        ranks.for_each(|(to, list)| to.copy_from_slice(&list[..SHORTLIST]));
        if logits.iter().any(|x| x.is_nan()) {
            return SampleResult::NonFinite;
        }
        let chosen = choose(logits, &rows[index], candidates);
        let id = |chosen: u32| {
            let (rank, entry) = (chosen as usize / SHORTLIST, chosen as usize % SHORTLIST);
            shortlists.row(index)[(2 * rank + 1) * SHORTLIST + entry] as u32
        };
        chosen.map_or(SampleResult::NonFinite, |chosen| SampleResult::Token(id(chosen), None))
    });
}

/// Calls `sample(row, scratch, candidates)` for each row and stores the results and the last token of each
/// slot.
fn sample_rows(
    cpu: &Cpu,
    rows: &[SampleRow<'_>],
    out: &mut Sampled,
    sample: impl Fn(usize, &mut [f32], &mut Vec<(f32, u32)>) -> SampleResult + Sync,
) {
    let mut results = vec![SampleResult::NonFinite; rows.len()];
    let parts = Parts::new(&mut results);
    cpu.pool.split(rows.len(), |thread, range| {
        let scratch = &mut *cpu.scratch(thread);
        for row in range {
            let result = sample(row, &mut scratch.row, &mut scratch.candidates);
            // SAFETY: the ranges of the threads are disjoint.
            unsafe { parts.set(row, result) };
        }
    });
    for (row, result) in rows.iter().zip(&results) {
        // A row without a token ends its sequence, but the next step may already read the slot: it must hold
        // a valid id.
        out.last[row.slot as usize] = if let SampleResult::Token(token, _) = result { *token } else { 0 };
    }
    out.pending.push_back(results);
}

/// Computes a rank's shortlist of each row; see [`Device::shortlist`](crate::device::Device::shortlist).
pub(super) fn shortlist(
    cpu: &Cpu,
    logits: &Floats,
    ids: &Range<u32>,
    rows: &[SampleRow<'_>],
    out: &mut Floats,
) {
    let count = ids.len();
    assert!(count <= logits.cols, "{count} ids exceed rows of {}", logits.cols);
    let cols = out.cols;
    let parts = Parts::new(out.resize(rows.len()));
    cpu.pool.split(rows.len(), |thread, range| {
        let scratch = &mut *cpu.scratch(thread);
        for row in range {
            // SAFETY: the ranges of the threads are disjoint.
            let (values, listed_ids) =
                unsafe { parts.part(row * cols..(row + 1) * cols) }.split_at_mut(SHORTLIST);
            values.fill(f32::NEG_INFINITY);
            listed_ids.fill(0.0);
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
            for ((x, id), (value, listed_id)) in candidates.iter().zip(values.iter_mut().zip(listed_ids)) {
                (*value, *listed_id) = (*x, *id as f32);
            }
        }
    });
}

/// Computes the log-probability of the target of each row; see
/// [`Device::score`](crate::device::Device::score).
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
            // SAFETY: the ranges of the threads are disjoint.
            unsafe { parts.set(row, scored) };
        }
    });
    scores
}

/// Returns whether all logits are finite. Reads all of them, since a loop without an exit vectorises.
fn finite(raw: &[f32]) -> bool {
    raw.iter().fold(true, |all, x| all & x.is_finite())
}

/// Samples a token from raw logits. `work` is scratch of the same length.
fn sample_row(
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

/// Chooses a token from adjusted logits and returns its index; `None` if all are masked.
fn choose(logits: &[f32], row: &SampleRow<'_>, candidates: &mut Vec<(f32, u32)>) -> Option<u32> {
    let best = argmax(logits)?;
    if row.temperature == 0.0 {
        return Some(best);
    }
    let uniform = philox::uniform(row.seed, row.position);
    Some(sample_candidates(row, logits, logits[best as usize], candidates, uniform))
}

/// Applies the bias, penalties and mask to the logits of `ids`.
fn adjust(row: &SampleRow<'_>, logits: &mut [f32], ids: &Range<u32>) {
    let index = |id: &u32| ids.contains(id).then(|| (id - ids.start) as usize);
    for (token, bias) in row.logit_bias {
        index(token).into_iter().for_each(|i| logits[i] += bias);
    }
    if row.repetition_penalty != 1.0 {
        let output = row.output.iter().map(|(token, _)| *token);
        let mut seen: Vec<u32> = row.prompt.iter().copied().chain(output).collect();
        seen.sort_unstable();
        seen.dedup();
        for i in seen.iter().filter_map(index) {
            let x = &mut logits[i];
            *x = if *x > 0.0 { *x / row.repetition_penalty } else { *x * row.repetition_penalty };
        }
    }
    for (token, count) in row.output {
        let penalty = row.presence_penalty + row.frequency_penalty * *count as f32;
        index(token).into_iter().for_each(|i| logits[i] -= penalty);
    }
    for i in row.barred.iter().filter_map(index) {
        logits[i] = f32::NEG_INFINITY;
    }
    if let Some(allowed) = row.allowed {
        for (id, logit) in ids.clone().zip(logits) {
            let word = allowed.get(id as usize / 32).copied().unwrap_or(0);
            if word >> (id % 32) & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Orders logits as numbers, and -0.0 below 0.0, as `f32::total_cmp` and the kernel do.
fn key(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// The index of the largest logit, ties by lower index; `None` if all are masked.
fn argmax(logits: &[f32]) -> Option<u32> {
    let masked = key(f32::NEG_INFINITY);
    let largest = logits.iter().fold(masked, |largest, x| largest.max(key(*x)));
    let index = logits.iter().position(|x| key(*x) == largest).map(|i| i as u32);
    index.filter(|_| largest > masked)
}

/// Orders candidates by logit, largest first, ties by lower id.
fn order(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Samples among the candidates that top-k, top-p and min-p keep, at the row's temperature. `best` is the
/// largest logit, `uniform` the random number in \[0, 1).
fn sample_candidates(
    row: &SampleRow<'_>,
    logits: &[f32],
    best: f32,
    candidates: &mut Vec<(f32, u32)>,
    uniform: f64,
) -> u32 {
    let weight = |x: f32| (f64::from(x - best) / f64::from(row.temperature)).exp();
    // Weights are relative to the most probable token, so that min-p needs no normalisation.
    let floor = if row.min_p > 0.0 { f64::from(row.min_p) } else { 0.0 };
    candidates.clear();
    let kept = logits.iter().enumerate().filter(|(_, x)| **x > f32::NEG_INFINITY);
    candidates.extend(kept.map(|(i, x)| (*x, i as u32)));
    let top_k = row.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, order);
        candidates.truncate(top_k);
        // The selection's order depends on the other logits; sums need a fixed order.
        candidates.sort_unstable_by(order);
    }
    if row.top_p < 1.0 {
        let total: f64 = candidates.iter().map(|(x, _)| weight(*x)).sum();
        keep_mass(candidates, f64::from(row.top_p) * total, weight);
    }
    // The order of sums is fixed: by logit if candidates were filtered, by id otherwise.
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
    // Because of rounding, `rest` may never fall below 0. Then the last candidate with a positive weight is
    // sampled.
    let last = candidates.iter().rev().find(|(x, _)| weight(*x) > 0.0);
    last.expect("the best candidate has weight 1").1
}

/// Keeps the most probable candidates, as many as it takes for their weights to sum to at least `mass`. Keeps
/// at least one, and all of them if rounding leaves their sum below `mass`.
fn keep_mass(candidates: &mut Vec<(f32, u32)>, mass: f64, weight: impl Fn(f32) -> f64) {
    let mut sorted = 0;
    let mut sum = 0.0;
    while sorted < candidates.len() {
        // Sorts the candidates part by part: first 64, then each time 8 times as many as are sorted already.
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

/// Computes the log-probability of `token`, ln softmax(raw)\[token\], its rank, and the log-probabilities of
/// the `top` most probable tokens. Accumulates in F64.
fn logprob(raw: &[f32], token: u32, top: u8) -> RowLogprob {
    let largest = raw.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    let sum: f64 = raw.iter().map(|x| f64::from((x - largest).exp())).sum();
    let log_sum = f64::from(largest) + sum.ln();
    let log_softmax = |x: f32| (f64::from(x) - log_sum) as f32;
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(usize::from(top) + 1);
    for (i, x) in raw.iter().enumerate() {
        let worst = if best.len() < usize::from(top) { None } else { best.last() };
        if top == 0 || worst.is_some_and(|worst| key(*x) <= key(worst.0)) {
            continue;
        }
        let entry = (*x, i as u32);
        let index = best.partition_point(|other| order(other, &entry) == Ordering::Less);
        best.insert(index, entry);
        best.truncate(usize::from(top));
    }
    let top = best.into_iter().map(|(x, token)| (token, log_softmax(x))).collect();
    let (own, own_key) = (raw[token as usize], key(raw[token as usize]));
    // Two loops without a branch on the index, so that both vectorise.
    let (before, after) = raw.split_at(token as usize);
    let count = |more: usize, is_ahead: bool| more + usize::from(is_ahead);
    let ahead = before.iter().fold(0, |sum, x| count(sum, key(*x) >= own_key));
    let ahead = after.iter().fold(ahead, |sum, x| count(sum, key(*x) > own_key));
    RowLogprob { logprob: log_softmax(own), rank: ahead as u32 + 1, top }
}
