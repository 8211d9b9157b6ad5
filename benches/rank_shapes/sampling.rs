//! Sampling from all logits and from shortlists, and log-probabilities of given tokens.

use std::time::Instant;

use octant::device::{
    Device, DeviceError, FloatType, RowLogprob, SHORTLIST, SampleResult, SampleRow, SampleSource,
    StepCapacity,
};

use crate::inputs::{noise, rows_of};
use crate::rank::{ALL, FEW, Kernel, RANKS, ROWS, Rank};
use crate::report::{Bound, Case, Difference, EXACT, Measure, Report};

/// The largest error of a log-probability. `tests/device/sample.rs` allows 1e-6 where they are above -7.
/// Among all tokens they reach -26, where numbers in F32 are 2e-6 apart, and the logarithm of the sum is near
/// 16.
const MOST_LOGPROB_ERROR: f64 = 4e-6;
/// Alternatives of a log-probability.
const TOP: u8 = 20;
/// The logits' standard deviation is 0.58 times this.
const LOGIT_SIZE: f32 = 5.0;

/// Logits of all rows, and lists that rows of requests have.
struct Logits {
    vocab: usize,
    all: Vec<f32>,
    barred: Vec<u32>,
    allowed: Vec<u32>,
    prompt: Vec<u32>,
    output: Vec<(u32, u32)>,
    bias: Vec<(u32, f32)>,
}

impl Logits {
    fn new(vocab: usize) -> Self {
        let id = |index: usize| (index * 7919 % vocab) as u32;
        Self {
            vocab,
            all: noise(31, ROWS * vocab).into_iter().map(|x| LOGIT_SIZE * x).collect(),
            barred: (0..900).map(id).collect(),
            allowed: (0..vocab.div_ceil(32) as u32).map(|word| 0x9249_2492_u32.rotate_left(word)).collect(),
            prompt: (0..2000).map(|index| id(3 * index)).collect(),
            output: (0..500).map(|index| (id(5 * index), 1 + index as u32 % 3)).collect(),
            bias: (0..300).map(|index| (id(11 * index), (index % 7) as f32 - 3.0)).collect(),
        }
    }

    /// The logits of the last rows.
    fn from(&self, first: usize) -> &[f32] {
        &self.all[first * self.vocab..]
    }

    /// A row's parameters. Every second row has penalties and a bias, every third barred ids and every fourth
    /// a mask.
    fn row(&self, index: usize) -> SampleRow<'_> {
        let (penalised, barred, masked) = (index % 2 == 1, index % 3 == 2, index % 4 == 3);
        SampleRow {
            temperature: 0.7 + index as f32 / 40.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: if penalised { 1.3 } else { 1.0 },
            presence_penalty: if penalised { 0.4 } else { 0.0 },
            frequency_penalty: if penalised { 0.2 } else { 0.0 },
            logit_bias: if penalised { &self.bias } else { &[] },
            barred: if barred { &self.barred } else { &[] },
            allowed: masked.then_some(&self.allowed[..]),
            prompt: if penalised { &self.prompt } else { &[] },
            output: if penalised { &self.output } else { &[] },
            seed: 17 * index as u64 + (1 << 40),
            position: 100 + index as u32,
            logprobs: None,
            slot: index as u32,
        }
    }
}

/// A way to sample.
struct Way {
    name: &'static str,
    set: fn(&mut SampleRow<'_>),
}

/// The first two need the 64 largest logits of each rank only.
const WAYS: [Way; 6] = [
    Way { name: "greedy", set: |row| row.temperature = 0.0 },
    Way { name: "top-k 40, top-p 0.9", set: |row| (row.top_k, row.top_p) = (40, 0.9) },
    Way { name: "random", set: |_| {} },
    Way { name: "top-p 0.9", set: |row| row.top_p = 0.9 },
    Way { name: "top-k 5000, min-p 0.01", set: |row| (row.top_k, row.min_p) = (5000, 0.01) },
    Way { name: "random, with log-probabilities", set: |row| row.logprobs = Some(TOP) },
];
/// The number of ways that sample from shortlists.
const SHORT: usize = 2;

pub(crate) fn run(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let logits = Logits::new(rank.model.vocab);
    for way in &WAYS {
        sample(rank, report, &logits, way)?;
    }
    WAYS[..SHORT].iter().try_for_each(|way| from_shortlists(rank, report, &logits, way))?;
    score(rank, report, &logits)
}

/// The parameters of the last rows.
fn rows_from<'a>(logits: &'a Logits, way: &Way, first: usize) -> Vec<SampleRow<'a>> {
    let row = |index| {
        let mut row = logits.row(index);
        (way.set)(&mut row);
        row
    };
    (first..ROWS).map(row).collect()
}

fn capacity(vocab: usize) -> StepCapacity {
    StepCapacity { slots: ROWS, samples: 1, sampled_rows: ROWS, vocab, ..Default::default() }
}

/// Samples from all logits.
fn sampled<D: Device>(
    device: &D,
    logits: &Logits,
    way: &Way,
    first: usize,
) -> Result<Vec<SampleResult>, DeviceError> {
    let vocab = logits.vocab;
    let mut step = device.step(capacity(vocab))?;
    let all = rows_of(device, FloatType::F32, logits.from(first), vocab)?;
    let source = SampleSource::Logits { logits: &all, vocab };
    device.sample(source, &rows_from(logits, way, first), &mut step)?;
    device.take_sampled(&mut step)
}

fn sample(rank: &Rank, report: &mut Report, logits: &Logits, way: &Way) -> Result<(), DeviceError> {
    let expected = sampled(&rank.cpu, logits, way, 0)?;
    let (ascending, mut all) = (FEW.iter().map(|rows| (0, *rows)), Vec::new());
    for (order, rows) in ascending.chain([(1, ROWS)]) {
        let began = Instant::now();
        let got = sampled(&rank.hosts[order], logits, way, ROWS - rows)?;
        let seconds = began.elapsed().as_secs_f64();
        if all.is_empty() {
            all.clone_from(&got);
        }
        let first = ROWS - rows;
        let tokens = got.iter().zip(&expected[first..]).filter(|(a, b)| token(a) != token(b)).count();
        let mut errors = vec![Difference { found: tokens as f64, most: 0.0, unit: "tokens" }];
        if let Some(SampleResult::Token(_, Some(_))) = got.first() {
            errors.push(logprob_error(got.iter().map(logprob), expected[first..].iter().map(logprob)));
        }
        let reversed = if order == 0 { "" } else { ", reversed" };
        let name = format!("sample [{}] {}{reversed}", logits.vocab, way.name);
        report.add(Case { name, rows, errors, same: got == all[first..], seconds });
    }
    Ok(())
}

fn token(result: &SampleResult) -> Option<u32> {
    if let SampleResult::Token(token, _) = result { Some(*token) } else { None }
}

fn logprob(result: &SampleResult) -> Option<&RowLogprob> {
    if let SampleResult::Token(_, logprob) = result { logprob.as_ref() } else { None }
}

/// The largest difference between log-probabilities. Infinite if a row has none, or if ranks or alternatives
/// differ.
fn logprob_error<'a>(
    got: impl Iterator<Item = Option<&'a RowLogprob>>,
    expected: impl Iterator<Item = Option<&'a RowLogprob>>,
) -> Difference {
    let error = |(got, expected): (Option<&RowLogprob>, Option<&RowLogprob>)| -> f64 {
        let (Some(got), Some(expected)) = (got, expected) else { return f64::INFINITY };
        let ids = |row: &RowLogprob| row.top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        if got.rank != expected.rank || ids(got) != ids(expected) || got.top.len() != usize::from(TOP) {
            return f64::INFINITY;
        }
        let values = |row: &RowLogprob| {
            std::iter::once(row.logprob).chain(row.top.iter().map(|(_, x)| *x)).collect::<Vec<f32>>()
        };
        let share = Measure::Share { size: 1.0, of: "absolute" };
        Bound { measure: share, most: MOST_LOGPROB_ERROR }.check(&values(got), &values(expected)).found
    };
    let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    let found = got.zip(expected).map(error).fold(0.0, larger);
    Difference { found, most: MOST_LOGPROB_ERROR, unit: "of log-probabilities" }
}

/// A rank's shortlists of the last rows.
fn shortlists<D: Device>(
    device: &D,
    logits: &Logits,
    way: &Way,
    rank: usize,
    first: usize,
) -> Result<Vec<f32>, DeviceError> {
    let share = logits.vocab / RANKS;
    let _step = device.step(capacity(logits.vocab))?;
    let ids = rank * share..(rank + 1) * share;
    let own = logits.from(first).chunks_exact(logits.vocab).flat_map(|row| &row[ids.clone()]);
    let own = rows_of(device, FloatType::F32, &own.copied().collect::<Vec<f32>>(), share)?;
    let mut out = device.floats(ROWS - first, 2 * SHORTLIST)?;
    let ids = ids.start as u32..ids.end as u32;
    device.shortlist(&own, ids, &rows_from(logits, way, first), &mut out)?;
    device.read(&out)
}

/// The shortlists of all ranks must be those of the CPU device, and give the tokens that all logits give.
fn from_shortlists(rank: &Rank, report: &mut Report, logits: &Logits, way: &Way) -> Result<(), DeviceError> {
    let mut lists = Vec::new();
    for number in 0..RANKS {
        let expected = shortlists(&rank.cpu, logits, way, number, 0)?;
        let kernel = Kernel {
            name: &format!("shortlist [{}] of rank {number}, {}", logits.vocab / RANKS, way.name),
            expected: &expected,
            bounds: &[EXACT],
            counts: if number == 0 { &FEW } else { &[ROWS, 1] },
        };
        lists.push(rank.check(report, &kernel, |order, rows| {
            shortlists(&rank.hosts[order], logits, way, number, rows.start)
        })?);
    }
    let width = 2 * SHORTLIST;
    let row = |row: usize| lists.iter().flat_map(move |list| &list[row * width..(row + 1) * width]);
    let all: Vec<f32> = (0..ROWS).flat_map(row).copied().collect();
    let tokens = |results: Vec<SampleResult>| {
        results.iter().map(|result| token(result).map_or(-1.0, |token| token as f32)).collect::<Vec<f32>>()
    };
    let kernel = Kernel {
        name: &format!("pick [{RANKS} x {SHORTLIST}] {}", way.name),
        expected: &tokens(sampled(&rank.cpu, logits, way, 0)?),
        bounds: &[EXACT],
        counts: &ALL,
    };
    rank.check(report, &kernel, |order, rows| {
        let device = &rank.hosts[order];
        let mut step = device.step(capacity(logits.vocab))?;
        let part = rows_of(device, FloatType::F32, &all[rows.start * RANKS * width..], RANKS * width)?;
        let source = SampleSource::Shortlists(&part);
        device.sample(source, &rows_from(logits, way, rows.start), &mut step)?;
        device.take_sampled(&mut step).map(tokens)
    })?;
    Ok(())
}

/// Log-probabilities of given tokens under all logits, on the CPU and in F64.
fn score(rank: &Rank, report: &mut Report, logits: &Logits) -> Result<(), DeviceError> {
    let vocab = logits.vocab;
    let targets: Vec<u32> = (0..ROWS).map(|row| (row * 17_011 % vocab) as u32).collect();
    let expected = scores(&rank.cpu, logits, &targets, 0)?;
    let exact: Vec<f32> =
        targets.iter().enumerate().map(|(row, id)| exact_logprob(logits, row, *id)).collect();
    let (ascending, mut all) = (ALL.iter().map(|rows| (0, *rows)), Vec::new());
    for (order, rows) in ascending.chain([(1, ROWS)]) {
        let began = Instant::now();
        let first = ROWS - rows;
        let got = scores(&rank.hosts[order], logits, &targets, first)?;
        let seconds = began.elapsed().as_secs_f64();
        if all.is_empty() {
            all.clone_from(&got);
        }
        let own: Vec<f32> = got.iter().map(|row| row.as_ref().map_or(f32::NAN, |row| row.logprob)).collect();
        let measure = Measure::Share { size: 1.0, of: "of F64" };
        let errors = vec![
            logprob_error(got.iter().map(Option::as_ref), expected[first..].iter().map(Option::as_ref)),
            Bound { measure, most: MOST_LOGPROB_ERROR }.check(&own, &exact[first..]),
        ];
        let name = format!("score [{vocab}]{}", if order == 0 { "" } else { ", reversed" });
        report.add(Case { name, rows, errors, same: got == all[first..], seconds });
    }
    Ok(())
}

/// Log-probabilities of the targets of the last rows.
fn scores<D: Device>(
    device: &D,
    logits: &Logits,
    targets: &[u32],
    first: usize,
) -> Result<Vec<Option<RowLogprob>>, DeviceError> {
    let _step = device.step(capacity(logits.vocab))?;
    let all = rows_of(device, FloatType::F32, logits.from(first), logits.vocab)?;
    device.score(&all, logits.vocab, &targets[first..], TOP)
}

/// A token's log-probability in F64.
fn exact_logprob(logits: &Logits, row: usize, id: u32) -> f32 {
    let row = &logits.all[row * logits.vocab..(row + 1) * logits.vocab];
    let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
    (f64::from(row[id as usize]) - sum.ln()) as f32
}
