//! Preference pairs: which of several responses to one prompt is chosen and which is rejected.
//!
//! Where the recipe has an answer checker, its verdicts decide and scores only rank responses of the same
//! verdict: a wrong answer is never chosen, and two right answers make no pair. Elsewhere the highest score
//! is chosen and the lowest rejected. Equal scores make no pair. Ties go to the earlier response, so the
//! result depends on the responses' order alone.

use serde::{Deserialize, Serialize};

/// Settings of the pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairOptions {
    /// Smallest difference of the scores of a pair that scores decide.
    pub min_margin: f64,
    /// Smallest score of the chosen response of a pair that scores decide.
    pub min_chosen_score: Option<f64>,
}

/// Settings that no pair can fulfil.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PairOptionsError {
    /// The margin is negative or no number.
    #[error("min_margin: expected a number of at least 0; got {0}")]
    MinMargin(f64),
    /// The least score is no number.
    #[error("min_chosen_score: expected a finite number; got {0}")]
    MinChosenScore(f64),
}

impl PairOptions {
    /// Checks the ranges of the settings.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), PairOptionsError> {
        if !(self.min_margin >= 0.0 && self.min_margin.is_finite()) {
            return Err(PairOptionsError::MinMargin(self.min_margin));
        }
        match self.min_chosen_score {
            Some(score) if !score.is_finite() => Err(PairOptionsError::MinChosenScore(score)),
            _ => Ok(()),
        }
    }
}

/// One response to a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// The response.
    pub text: &'a str,
    /// Its score, if it has one.
    pub score: Option<f64>,
    /// The answer checker's verdict, if the recipe has a checker and it could judge the response.
    pub correct: Option<bool>,
}

/// The reason why one response is better than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The answer checker: one is right, the other wrong.
    GroundTruth,
    /// Their scores.
    Score,
}

/// The pair of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Number of the chosen response.
    pub chosen: usize,
    /// Number of the rejected response.
    pub rejected: usize,
    /// Score of the chosen response less that of the rejected one, if both have one. It can be negative where
    /// ground truth decided.
    pub margin: Option<f64>,
    /// The reason of the choice.
    pub decided_by: DecidedBy,
}

/// The reason why a prompt has no pair.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum NoPair {
    /// There are fewer than two responses that can be compared.
    #[error("fewer than two responses can be compared")]
    TooFewResponses,
    /// The checker finds every response right.
    #[error("every response is right")]
    AllRight,
    /// The checker finds every response wrong.
    #[error("every response is wrong")]
    AllWrong,
    /// The best and the worst score are the same.
    #[error("the scores are equal")]
    EqualScores,
    /// The best and the worst response are the same text.
    #[error("the chosen and the rejected response are the same text")]
    SameText,
    /// The scores differ by too little.
    #[error("the margin is below min_margin")]
    SmallMargin {
        /// The difference.
        margin: f64,
    },
    /// The best score is too low.
    #[error("the best score is below min_chosen_score")]
    LowScore {
        /// The best score.
        score: f64,
    },
}

/// The pair of one prompt's responses.
///
/// # Errors
/// The reason why they make none.
pub fn choose_pair(candidates: &[Candidate<'_>], options: &PairOptions) -> Result<Choice, NoPair> {
    let choice = if candidates.iter().any(|candidate| candidate.correct.is_some()) {
        by_ground_truth(candidates)?
    } else {
        by_score(candidates, options)?
    };
    let same = candidates[choice.chosen].text.trim() == candidates[choice.rejected].text.trim();
    if same { Err(NoPair::SameText) } else { Ok(choice) }
}

fn by_ground_truth(candidates: &[Candidate<'_>]) -> Result<Choice, NoPair> {
    let with = |verdict| {
        let judged = candidates.iter().enumerate();
        judged.filter(move |(_, candidate)| candidate.correct == Some(verdict)).map(|(i, _)| i)
    };
    // A response without a score is neither the best nor the worst of its verdict while others have one.
    let chosen = best(with(true), |i| score(&candidates[i]));
    let rejected = best(with(false), |i| score(&candidates[i]).map(|score| -score));
    match (chosen, rejected) {
        (Some(chosen), Some(rejected)) => {
            let scores = score(&candidates[chosen]).zip(score(&candidates[rejected]));
            let margin = scores.map(|(chosen, rejected)| chosen - rejected);
            Ok(Choice { chosen, rejected, margin, decided_by: DecidedBy::GroundTruth })
        }
        (None, None) => Err(NoPair::TooFewResponses),
        _ if with(true).count() + with(false).count() < 2 => Err(NoPair::TooFewResponses),
        (Some(_), None) => Err(NoPair::AllRight),
        (None, Some(_)) => Err(NoPair::AllWrong),
    }
}

fn by_score(candidates: &[Candidate<'_>], options: &PairOptions) -> Result<Choice, NoPair> {
    let scored = || (0..candidates.len()).filter(|i| score(&candidates[*i]).is_some());
    if scored().count() < 2 {
        return Err(NoPair::TooFewResponses);
    }
    let chosen = best(scored(), |i| score(&candidates[i]));
    let rejected = best(scored(), |i| score(&candidates[i]).map(|score| -score));
    let (Some(chosen), Some(rejected)) = (chosen, rejected) else { return Err(NoPair::TooFewResponses) };
    let scores = score(&candidates[chosen]).zip(score(&candidates[rejected]));
    let (high, low) = scores.ok_or(NoPair::TooFewResponses)?;
    let margin = high - low;
    if high == low {
        return Err(NoPair::EqualScores);
    }
    if margin < options.min_margin {
        return Err(NoPair::SmallMargin { margin });
    }
    if options.min_chosen_score.is_some_and(|least| high < least) {
        return Err(NoPair::LowScore { score: high });
    }
    Ok(Choice { chosen, rejected, margin: Some(margin), decided_by: DecidedBy::Score })
}

/// The first of the candidates with the highest value; one without a value is lower than all others.
fn best(candidates: impl Iterator<Item = usize>, value: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for candidate in candidates {
        let value = value(candidate).unwrap_or(f64::NEG_INFINITY);
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((candidate, value));
        }
    }
    best.map(|(candidate, _)| candidate)
}

/// A score that can be compared.
fn score(candidate: &Candidate<'_>) -> Option<f64> {
    candidate.score.filter(|score| score.is_finite())
}
