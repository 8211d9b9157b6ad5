//! Sampling, shortlists and log-probabilities of given tokens.

use octant::device::{Device, SHORTLIST, SampleResult, SampleRow, SampleSource, StepCapacity};

use super::noise;
use crate::dev;

/// A greedy row without penalties, bias, mask or log-probabilities.
pub fn row() -> SampleRow<'static> {
    SampleRow {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: &[],
        barred: &[],
        allowed: None,
        prompt: &[],
        output: &[],
        seed: 1,
        position: 0,
        logprobs: None,
        slot: 0,
    }
}

/// Capacity for one call of `rows` rows, each in a slot of its own.
fn capacity(rows: usize, vocab: usize) -> StepCapacity {
    StepCapacity { slots: rows, samples: 1, sampled_rows: rows, vocab, ..StepCapacity::default() }
}

/// [`sample_on`] a new device.
fn sample_all(logits: &[f32], cols: usize, vocab: usize, rows: &[SampleRow<'_>]) -> Vec<SampleResult> {
    sample_on(&dev::one(), logits, cols, vocab, rows)
}

/// Samples a token from each row of logits.
fn sample_on(
    device: &dev::Dev,
    logits: &[f32],
    cols: usize,
    vocab: usize,
    rows: &[SampleRow<'_>],
) -> Vec<SampleResult> {
    let mut floats = device.floats(rows.len(), cols).unwrap();
    device.write(logits, &mut floats).unwrap();
    let rows: Vec<SampleRow<'_>> =
        rows.iter().zip(0..).map(|(row, slot)| SampleRow { slot, ..row.clone() }).collect();
    let mut step = device.step(capacity(rows.len(), vocab)).unwrap();
    device.sample(SampleSource::Logits { logits: &floats, vocab }, &rows, &mut step).unwrap();
    device.take_sampled(&mut step).unwrap()
}

/// Samples one token from one row of logits.
fn token(logits: &[f32], row: &SampleRow<'_>) -> u32 {
    tokens(logits, std::slice::from_ref(row))[0]
}

/// Samples from the same logits once with each row's parameters.
fn tokens(logits: &[f32], rows: &[SampleRow<'_>]) -> Vec<u32> {
    let token = |result: SampleResult| match result {
        SampleResult::Token(token, _) => token,
        SampleResult::NonFinite => panic!("no token was sampled"),
    };
    sample_all(&logits.repeat(rows.len()), logits.len(), logits.len(), rows).into_iter().map(token).collect()
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_on_ties() {
    assert_eq!(token(&[0.0, 3.0, 3.0, -1.0], &row()), 1);
    assert_eq!(token(&[-5.0, -4.0], &row()), 1);
}

#[test]
fn bias_penalties_and_mask_change_the_choice() {
    let logits = [1.0, 2.0, 3.0, 2.5];
    assert_eq!(token(&logits, &SampleRow { logit_bias: &[(0, 5.0)], ..row() }), 0);
    assert_eq!(token(&logits, &SampleRow { barred: &[2], ..row() }), 3);
    assert_eq!(token(&logits, &SampleRow { allowed: Some(&[0b1011]), ..row() }), 3);
    assert_eq!(token(&logits, &SampleRow { allowed: Some(&[0b1011]), barred: &[3], ..row() }), 1);
    assert_eq!(token(&logits, &SampleRow { allowed: Some(&[0b0001]), logit_bias: &[(3, 50.0)], ..row() }), 0);
    assert_eq!(token(&logits, &SampleRow { presence_penalty: 1.0, output: &[(2, 1)], ..row() }), 3);
    assert_eq!(token(&logits, &SampleRow { frequency_penalty: 0.4, output: &[(2, 1)], ..row() }), 2);
    assert_eq!(token(&logits, &SampleRow { frequency_penalty: 0.4, output: &[(2, 2)], ..row() }), 3);
    // A token that occurs twice in the prompt and once in the output is penalised once.
    let repeated = SampleRow { repetition_penalty: 1.3, prompt: &[2, 2], output: &[(2, 1)], ..row() };
    assert_eq!(token(&[1.0, 2.0, 3.0, 2.2], &repeated), 2, "3 / 1.3 is still above 2.2");
    assert_eq!(token(&logits, &SampleRow { repetition_penalty: 1.3, prompt: &[2], ..row() }), 3);
    assert_eq!(token(&[-1.0, -1.1], &SampleRow { repetition_penalty: 2.0, prompt: &[0], ..row() }), 1);
}

#[test]
fn top_k_top_p_and_min_p_keep_the_most_probable_tokens() {
    let logits = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0];
    let sampled_ids = |row: SampleRow<'static>| {
        let rows: Vec<SampleRow<'_>> = (0..400).map(|seed| SampleRow { seed, ..row.clone() }).collect();
        let mut seen = tokens(&logits, &rows);
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    let hot = SampleRow { temperature: 50.0, ..row() };
    assert_eq!(sampled_ids(hot.clone()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(sampled_ids(SampleRow { top_k: 2, ..hot.clone() }), [0, 1]);
    assert_eq!(sampled_ids(SampleRow { top_k: 1, ..hot.clone() }), [0]);
    assert_eq!(sampled_ids(SampleRow { top_p: 1e-6, ..hot.clone() }), [0], "at least one is kept");
    // The first two have probabilities 0.634 and 0.233 at temperature 1.
    assert_eq!(sampled_ids(SampleRow { temperature: 1.0, top_p: 0.86, ..row() }), [0, 1]);
    assert_eq!(sampled_ids(SampleRow { temperature: 1.0, min_p: 0.3, ..row() }), [0, 1], "e^-1 is above 0.3");
    assert_eq!(sampled_ids(SampleRow { temperature: 1.0, min_p: 1.0, ..row() }), [0]);
    assert_eq!(sampled_ids(SampleRow { temperature: 1e-4, ..row() }), [0], "a low temperature is greedy");
}

#[test]
fn sampled_tokens_follow_the_distribution() {
    let weights = [0.4f64, 0.3, 0.2, 0.1];
    let logits: Vec<f32> = weights.iter().map(|w| w.ln() as f32).collect();
    let count = 20_000;
    let mut seen = [0.0f64; 4];
    let rows: Vec<SampleRow<'_>> =
        (0..count).map(|position| SampleRow { temperature: 1.0, position, ..row() }).collect();
    tokens(&logits, &rows).into_iter().for_each(|token| seen[token as usize] += 1.0);
    let expected = weights.map(|w| w * f64::from(count));
    let chi: f64 = seen.iter().zip(expected).map(|(s, e)| (s - e).powi(2) / e).sum();
    // The threshold for three degrees of freedom: a correct sampler exceeds 16.3 with one seed in a thousand.
    assert!(chi < 16.3, "chi-square {chi}: {seen:?}");
}

#[test]
fn results_are_taken_in_order_after_later_samples() {
    for device in dev::all() {
        let mut floats = device.floats(2, 4).unwrap();
        let mut step = device.step(StepCapacity { slots: 8, samples: 2, ..capacity(2, 4) }).unwrap();
        for round in 0..5 {
            for favoured in [round % 3, 3] {
                let logits: Vec<f32> = (0..8).map(|i| if i % 4 == favoured { 1.0 } else { 0.0 }).collect();
                device.write(&logits, &mut floats).unwrap();
                let rows = [SampleRow { slot: 6, ..row() }, SampleRow { slot: 1, barred: &[3], ..row() }];
                device.sample(SampleSource::Logits { logits: &floats, vocab: 4 }, &rows, &mut step).unwrap();
            }
            let token = |id: usize| SampleResult::Token(id as u32, None);
            assert_eq!(device.take_sampled(&mut step).unwrap(), [token(round % 3), token(round % 3)]);
            assert_eq!(device.take_sampled(&mut step).unwrap(), [token(3), token(0)]);
        }
    }
}

#[test]
fn a_sampled_token_depends_on_seed_and_position_only() {
    let vocab = 500;
    let rows: Vec<SampleRow<'_>> = (0..9)
        .map(|i| SampleRow { temperature: 1.0, top_k: 40, top_p: 0.9, seed: i, position: 7, ..row() })
        .collect();
    let logits = noise(1, vocab * rows.len());
    let together = sample_on(&dev::other(&dev::one()), &logits, vocab, vocab, &rows);
    for (i, row) in rows.iter().enumerate() {
        let alone = token(&logits[i * vocab..(i + 1) * vocab], row);
        assert_eq!(together[i], SampleResult::Token(alone, None), "row {i}");
    }
    let other = SampleRow { seed: 1 << 40, ..rows[0].clone() };
    let at = |row: &SampleRow<'static>| {
        let rows: Vec<SampleRow<'_>> =
            (0..50).map(|position| SampleRow { position, ..row.clone() }).collect();
        tokens(&logits[..vocab], &rows)
    };
    assert_ne!(at(&rows[0]), at(&other), "the upper half of the seed must matter");
}

#[test]
fn a_non_finite_row_is_reported_and_other_rows_are_sampled() {
    let logits = [1.0, 2.0, f32::NAN, 1.0, 0.0, f32::INFINITY, 3.0, 1.0];
    let results = sample_all(&logits, 2, 2, &[row(), row(), row(), row()]);
    assert_eq!(
        results,
        [
            SampleResult::Token(1, None),
            SampleResult::NonFinite,
            SampleResult::NonFinite,
            SampleResult::Token(0, None)
        ]
    );
    let all = SampleRow { barred: &[0, 1], ..row() };
    assert_eq!(sample_all(&[1.0, 2.0], 2, 2, &[all]), [SampleResult::NonFinite], "all tokens masked");
}

#[test]
fn padding_beyond_the_vocabulary_is_never_sampled() {
    let logits = [1.0, 2.0, 99.0, f32::NAN];
    assert_eq!(sample_all(&logits, 4, 2, &[row()]), [SampleResult::Token(1, None)]);
}

#[test]
fn logprobs_are_those_of_the_raw_logits_most_probable_first() {
    let logits = [1.0f32, 3.0, 3.0, -2.0];
    let row = SampleRow { logprobs: Some(3), logit_bias: &[(3, 100.0)], ..row() };
    let SampleResult::Token(3, Some(logprob)) = sample_all(&logits, 4, 4, &[row])[0].clone() else {
        panic!()
    };
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    assert!((f64::from(logprob.logprob) - (-2.0 - sum.ln())).abs() < 1e-6);
    assert_eq!(logprob.rank, 4);
    assert_eq!(logprob.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2, 0], "ties by id");
    assert!(
        logprob
            .top
            .iter()
            .zip([3.0, 3.0, 1.0])
            .all(|((_, l), x)| (f64::from(*l) - (x - sum.ln())).abs() < 1e-6)
    );
}

#[test]
fn score_returns_the_logprobs_of_the_targets() {
    let device = dev::one();
    let mut floats = device.floats(2, 2).unwrap();
    device.write(&[0.0, 0.0, f32::NAN, 1.0], &mut floats).unwrap();
    let scores = device.score(&floats, 2, &[1, 0], 1).unwrap();
    let first = scores[0].as_ref().unwrap();
    assert!((first.logprob - 0.5f32.ln()).abs() < 1e-6);
    assert_eq!(first.top[0].0, 0);
    assert!(scores[1].is_none());
}

#[test]
fn a_score_has_the_rank_of_its_target_among_all_tokens() {
    let device = dev::one();
    let vocab = 1500;
    // Each logit occurs three times.
    let logits: Vec<f32> = (0..vocab).map(|id| (id * 7 % 500) as f32 / 100.0).collect();
    let targets: Vec<u32> = (0..vocab as u32).step_by(101).collect();
    let mut floats = device.floats(targets.len(), vocab).unwrap();
    device.write(&logits.repeat(targets.len()), &mut floats).unwrap();
    let mut order: Vec<usize> = (0..vocab).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    for top in [0, 20] {
        let scores = device.score(&floats, vocab, &targets, top).unwrap();
        for (target, score) in targets.iter().zip(scores) {
            let place = order.iter().position(|id| id == &(*target as usize)).unwrap();
            assert_eq!(score.unwrap().rank as usize, place + 1, "{target}");
        }
    }
}

#[test]
fn the_logit_minus_zero_is_below_zero() {
    let logits = [-0.0, 0.0, -1.0, -0.0];
    assert_eq!(token(&logits, &row()), 1);
    let device = dev::one();
    let mut floats = device.floats(4, 4).unwrap();
    device.write(&logits.repeat(4), &mut floats).unwrap();
    for top in [1, 4] {
        let scores = device.score(&floats, 4, &[0, 1, 2, 3], top).unwrap();
        let ranks = scores.iter().map(|score| score.as_ref().unwrap().rank);
        assert_eq!(ranks.collect::<Vec<_>>(), [2, 1, 4, 3]);
        let best = scores[0].as_ref().unwrap().top.iter().map(|(token, _)| *token);
        assert_eq!(best.collect::<Vec<_>>(), [1, 0, 3, 2][..usize::from(top)]);
    }
}

/// Samples like a group of ranks: each rank makes a shortlist of its share of the ids.
fn sample_from_shortlists(
    logits: &[f32],
    cols: usize,
    vocab: usize,
    ranks: usize,
    rows: &[SampleRow<'_>],
) -> Vec<SampleResult> {
    let device = dev::one();
    let mut step = device.step(capacity(rows.len(), cols)).unwrap();
    let share = cols.div_ceil(ranks);
    let mut lists = vec![Vec::new(); rows.len()];
    for rank in 0..ranks {
        let mut part = device.floats(rows.len(), share).unwrap();
        let own = |row: &[f32]| {
            (rank * share..(rank + 1) * share).map(|i| row.get(i).copied().unwrap_or(0.0)).collect()
        };
        let own: Vec<Vec<f32>> = logits.chunks_exact(cols).map(own).collect();
        device.write(&own.concat(), &mut part).unwrap();
        let ids = (rank * share).min(vocab) as u32..((rank + 1) * share).min(vocab) as u32;
        let mut out = device.floats(rows.len(), 2 * SHORTLIST).unwrap();
        device.shortlist(&part, ids, rows, &mut out).unwrap();
        let shortlists = device.read(&out).unwrap();
        lists
            .iter_mut()
            .zip(shortlists.chunks_exact(2 * SHORTLIST))
            .for_each(|(list, shortlist)| list.extend_from_slice(shortlist));
    }
    let mut all = device.floats(rows.len(), ranks * 2 * SHORTLIST).unwrap();
    device.write(&lists.concat(), &mut all).unwrap();
    device.sample(SampleSource::Shortlists(&all), rows, &mut step).unwrap();
    device.take_sampled(&mut step).unwrap()
}

#[test]
fn shortlists_give_the_same_tokens_as_all_logits() {
    let (cols, vocab) = (700, 691);
    let mut logits = Vec::new();
    let mut rows = Vec::new();
    let bias = [(3, 2.5), (650, 4.0), (3, 1.0)];
    let (prompt, output) = ([5, 600, 5, 77], [(650, 3), (9, 1)]);
    let barred: Vec<u32> = (100..690).collect();
    let allowed: Vec<u32> = (0..cols as u32).step_by(32).map(|id| 0x9249_2492_u32.rotate_left(id)).collect();
    for (i, top_k) in [0, 1, 7, 64, 64, 3].into_iter().enumerate() {
        for variant in 0..4 {
            // Rounding makes ties.
            let coarse = noise(rows.len() as u64, cols).into_iter().map(|x| (x * 3.0).round());
            logits.extend(coarse);
            let mut row = SampleRow {
                temperature: if top_k == 0 { 0.0 } else { 0.5 + i as f32 * 0.3 },
                top_k,
                top_p: [1.0, 0.8][i % 2],
                min_p: [0.0, 0.02][variant % 2],
                seed: (7 * i + variant) as u64,
                slot: rows.len() as u32,
                ..row()
            };
            if variant >= 1 {
                (row.logit_bias, row.prompt, row.output) = (&bias, &prompt, &output);
                (row.repetition_penalty, row.presence_penalty, row.frequency_penalty) = (1.4, 0.3, 0.2);
            }
            if variant >= 2 {
                row.barred = &barred;
            }
            if variant == 3 {
                row.allowed = Some(&allowed);
            }
            rows.push(row);
        }
    }
    // Four rows without a token: all ids barred, no id allowed, a NaN, an infinity.
    let all: Vec<u32> = (0..vocab as u32).collect();
    rows[2].barred = &all;
    let nothing = [0; 22];
    rows[9].allowed = Some(&nothing);
    logits[5 * cols + 300] = f32::NAN;
    logits[6 * cols + 690] = f32::INFINITY;
    // A NaN in the padding does not matter.
    logits[7 * cols + 695] = f32::NAN;
    let expected = sample_on(&dev::one(), &logits, cols, vocab, &rows);
    assert_eq!(expected.iter().filter(|result| **result == SampleResult::NonFinite).count(), 4);
    for ranks in [1, 2, 3, 8] {
        assert_eq!(sample_from_shortlists(&logits, cols, vocab, ranks, &rows), expected, "{ranks} ranks");
    }
    assert!(SampleRow { top_k: 5, ..row() }.is_short() && row().is_short());
    assert!(!SampleRow { temperature: 1.0, top_k: 65, ..row() }.is_short());
    assert!(!SampleRow { temperature: 1.0, ..row() }.is_short());
    assert!(!SampleRow { logprobs: Some(0), ..row() }.is_short());
}
