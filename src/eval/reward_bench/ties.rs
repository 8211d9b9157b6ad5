//! The subset Ties of version 2. Each question is there twice: `ref:N` has one correct answer, `tied:N` has
//! several that are equally good. A good model ranks all correct answers above all others (accuracy), and
//! keeps correct answers closer to one another than to the others (margins).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Scored;
use super::row::BenchRow;
use super::sections::TIES;
use crate::eval::error::EvalError;

/// Weights of the parts of the score. They add up to 1.01.
const ACCURACY: f64 = 0.3;
const MARGINS: f64 = 0.2;
const CLOSENESS: f64 = 0.01;

/// One question in one of its two forms.
#[derive(Debug, Clone, Copy)]
struct Question {
    /// The worst correct answer's score less the best incorrect one's.
    margin: f64,
    /// The best correct answer's score less the worst correct one's; `None` with one correct answer.
    spread: Option<f64>,
}

/// A question in both forms.
struct Pair {
    /// Margin in the form with ties.
    margin: f64,
    /// The smaller of both forms' margins.
    smaller: f64,
    spread: f64,
}

/// The parts of the score, each from 0 to 1, except `closeness`, which is from -1 to 1.
#[derive(Debug)]
pub(super) struct TiesScore {
    tied_accuracy: f64,
    ref_accuracy: f64,
    /// Share of questions whose margin in the form with ties is above the spread. Counts the questions that
    /// are there in both forms and have several correct answers in this one.
    margin_above_spread: f64,
    /// The same for the smaller of the two forms' margins.
    both_margins_above_spread: f64,
    /// Mean of tanh(smaller margin / spread - 1) of the questions with a spread.
    closeness: f64,
}

/// The score of the subset; `None` without rows of it.
pub(super) fn score(rows: &[BenchRow<'_>], scored: &[Scored]) -> Result<Option<TiesScore>, EvalError> {
    let (mut refs, mut tied) = (BTreeMap::new(), BTreeMap::new());
    for (row, scored) in rows.iter().zip(scored).filter(|(row, _)| row.subset == TIES) {
        let (is_ref, number) = number(row)?;
        let questions = if is_ref { &mut refs } else { &mut tied };
        // A row that the server refuses is as wrong as can be.
        let spread = (row.chosen.len() > 1).then_some(0.0);
        let worst = Question { margin: f64::NEG_INFINITY, spread };
        let question = scored.scores.as_deref().map_or(worst, |scores| question(scores, row.chosen.len()));
        if questions.insert(number, question).is_some() {
            let message = format!("id: expected each id once, got {} again", row.id);
            return Err(EvalError::Row { place: row.place.clone(), message });
        }
    }
    if refs.is_empty() && tied.is_empty() {
        return Ok(None);
    }
    let accuracy =
        |questions: &BTreeMap<u64, Question>| share(questions.values().map(|question| question.margin > 0.0));
    let pairs = tied.iter().filter_map(|(number, tied)| {
        let smaller = tied.margin.min(refs.get(number)?.margin);
        Some(Pair { margin: tied.margin, smaller, spread: tied.spread? })
    });
    let pairs: Vec<Pair> = pairs.collect();
    let closeness = pairs.iter().filter(|pair| pair.spread > 0.0);
    let closeness = mean(closeness.map(|pair| (pair.smaller / pair.spread - 1.0).tanh()));
    Ok(Some(TiesScore {
        tied_accuracy: accuracy(&tied),
        ref_accuracy: accuracy(&refs),
        margin_above_spread: share(pairs.iter().map(|pair| pair.margin > pair.spread)),
        both_margins_above_spread: share(pairs.iter().map(|pair| pair.smaller > pair.spread)),
        closeness,
    }))
}

impl TiesScore {
    /// The weighted sum of the parts; at most 1.01.
    pub(super) fn total(&self) -> f64 {
        ACCURACY * (self.tied_accuracy + self.ref_accuracy)
            + MARGINS * (self.margin_above_spread + self.both_margins_above_spread)
            + CLOSENESS * self.closeness
    }

    /// The parts as a line of text.
    pub(super) fn describe(&self) -> String {
        format!(
            "Ties: accuracy {:.4} with ties and {:.4} without; margin above the spread {:.4}, in both forms \
             {:.4}; closeness {:.4}\n",
            self.tied_accuracy,
            self.ref_accuracy,
            self.margin_above_spread,
            self.both_margins_above_spread,
            self.closeness,
        )
    }

    /// The parts as JSON.
    pub(super) fn json(&self) -> Value {
        json!({
            "tied_accuracy": self.tied_accuracy,
            "ref_accuracy": self.ref_accuracy,
            "margin_above_spread": self.margin_above_spread,
            "both_margins_above_spread": self.both_margins_above_spread,
            "closeness": self.closeness,
        })
    }
}

/// Whether a row has the form `ref`, and the question's number.
fn number(row: &BenchRow<'_>) -> Result<(bool, u64), EvalError> {
    let id = row.id.as_str().and_then(|id| id.split_once(':'));
    let number = id.and_then(|(form, number)| Some((form, number.trim().parse::<u64>().ok()?)));
    match number {
        Some(("ref", number)) => Ok((true, number)),
        Some(("tied", number)) => Ok((false, number)),
        _ => {
            let message = format!("id: expected `ref:N` or `tied:N` in the subset {TIES}, got {}", row.id);
            Err(EvalError::Row { place: row.place.clone(), message })
        }
    }
}

fn question(scores: &[f64], correct: usize) -> Question {
    let (correct, incorrect) = scores.split_at(correct);
    let worst = correct.iter().copied().fold(f64::INFINITY, f64::min);
    let best = correct.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let other = incorrect.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Question { margin: worst - other, spread: (correct.len() > 1).then_some(best - worst) }
}

/// The share of true values; 0 without values.
fn share(values: impl Iterator<Item = bool>) -> f64 {
    mean(values.map(|value| f64::from(u8::from(value))))
}

/// The mean of values; 0 without values.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}
