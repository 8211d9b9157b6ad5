//! The values of a reward head under their names, and their weighted sum, the score.
//!
//! The default weights are those of NVIDIA's model card for HelpSteer2's attributes, and 1 for a head of one
//! value. Other heads have no default: no weights of theirs are published, and a sum with weights that nobody
//! chose would be a plausible wrong number. The operator or the request sets them.

use serde_json::{Map, Value};

use crate::server::error::ApiError;
use crate::server::fields::wrong_type;

/// Attributes of HelpSteer2 with the weights of NVIDIA's card of Nemotron-4-340B-Reward.
const CARD: [(&str, f64); 5] = [
    ("helpfulness", 0.3),
    ("correctness", 0.74),
    ("coherence", 0.46),
    ("complexity", 0.47),
    ("verbosity", -0.33),
];
/// The first values of NeMo's heads of nine. They are not trained, so they are not reported.
const UNTRAINED: [&str; 4] = ["quality", "toxicity", "humor", "creativity"];
/// Greatest magnitude of a weight.
const MAX_WEIGHT: f64 = 1e6;
/// Most weights in a request.
pub(crate) const MAX_WEIGHTS: usize = 1024;

/// A weight that a model's head has no use for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// The head has no value of this name.
    #[error("expected names of {known}, got `{name}`")]
    Unknown {
        /// The name.
        name: String,
        /// The names of the head's values.
        known: String,
    },
    /// The weight is not a number in range.
    #[error("expected a weight from -{MAX_WEIGHT} to {MAX_WEIGHT}, got {0}")]
    Range(f64),
    /// The name has a weight already.
    #[error("expected each name once, got `{0}` twice")]
    Twice(String),
}

/// The values that a model with a reward head reports, and the weights of its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoring {
    /// Names of the values that are reported, in the order of replies.
    names: Vec<String>,
    /// The row of the head that each value comes from.
    rows: Vec<usize>,
    /// The weight of each value in a score; `None` if only requests have weights.
    weights: Option<Vec<f64>>,
}

impl Scoring {
    /// The values of a head whose rows have these names, with the default weights.
    pub fn new(attributes: &[String]) -> Self {
        let nine = UNTRAINED.iter().chain(CARD.iter().map(|(name, _)| name));
        let first = if attributes.iter().eq(nine) { UNTRAINED.len() } else { 0 };
        let names = attributes[first..].to_vec();
        let known = CARD.iter().all(|(name, _)| names.iter().any(|own| own == name));
        let of_card = |name: &String| CARD.iter().find(|(known, _)| known == name).map_or(0.0, |card| card.1);
        let weights = match names.len() {
            1 => Some(vec![1.0]),
            _ => known.then(|| names.iter().map(of_card).collect()),
        };
        Self { rows: (first..attributes.len()).collect(), names, weights }
    }

    /// Sets the weights of scores; values without a weight do not count.
    ///
    /// # Errors
    /// A name or a weight is not valid.
    pub fn set_weights<'n>(
        &mut self,
        weights: impl IntoIterator<Item = (&'n str, f64)>,
    ) -> Result<(), WeightError> {
        let mut set: Vec<Option<f64>> = vec![None; self.names.len()];
        for (name, weight) in weights {
            let index = self.index(name)?;
            if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
                return Err(WeightError::Range(weight));
            }
            if set[index].replace(weight).is_some() {
                return Err(WeightError::Twice(name.to_owned()));
            }
        }
        self.weights = Some(set.into_iter().map(Option::unwrap_or_default).collect());
        Ok(())
    }

    /// Names of the values, in the order of replies.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The weights of the values in a score; `None` if only requests have weights.
    pub fn weights(&self) -> Option<&[f64]> {
        self.weights.as_deref()
    }

    fn index(&self, name: &str) -> Result<usize, WeightError> {
        let unknown = || WeightError::Unknown { name: name.to_owned(), known: self.names.join(", ") };
        self.names.iter().position(|known| known == name).ok_or_else(unknown)
    }

    /// The weights of a request: its own, or else the defaults.
    ///
    /// # Errors
    /// 400 if the request's weights are not valid, or if neither it nor the server has any.
    pub(crate) fn weights_of(&self, asked: Option<&Map<String, Value>>) -> Result<Vec<f64>, ApiError> {
        let Some(asked) = asked else {
            return self.weights.clone().ok_or_else(|| {
                let names = self.names.join(", ");
                let text = format!(
                    "expected a weight for some of {names}, got nothing, and the server has none \
                     (--reward-weights)"
                );
                ApiError::invalid("weights", text)
            });
        };
        if asked.is_empty() {
            return Err(ApiError::invalid("weights", "expected at least one weight, got none"));
        }
        let mut own = Self { weights: None, ..self.clone() };
        let number = |(name, value): (&String, &Value)| match value.as_f64() {
            Some(weight) => Ok((name.clone(), weight)),
            None => Err(wrong_type(&format!("weights.{name}"), "a number", value)),
        };
        let numbers = asked.iter().map(number).collect::<Result<Vec<_>, _>>()?;
        own.set_weights(numbers.iter().map(|(name, weight)| (name.as_str(), *weight)))
            .map_err(|error| ApiError::invalid("weights", error.to_string()))?;
        Ok(own.weights.unwrap_or_default())
    }

    /// The reported values of all values of the head.
    pub(crate) fn reported(&self, head: &[f32]) -> Vec<f32> {
        self.rows.iter().filter_map(|&row| head.get(row).copied()).collect()
    }
}

/// The weighted sum of values, added in double precision in the order of the values and rounded once.
pub(crate) fn score(values: &[f32], weights: &[f64]) -> f32 {
    values.iter().zip(weights).map(|(value, weight)| f64::from(*value) * weight).sum::<f64>() as f32
}
