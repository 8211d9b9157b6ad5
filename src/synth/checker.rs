//! Answer checkers: whether a response gives the right answer, where the recipe knows it.

use regex::Regex;
use serde::{Deserialize, Serialize};

/// How a response's answer is compared with the right one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum Checker {
    /// The last number of the response equals the last number of the right answer. Thousands separators
    /// count for nothing.
    Number,
    /// The last match of a regular expression equals the right answer but for space around both: its first
    /// group, or the whole match if it has no group.
    Regex {
        /// The expression.
        pattern: String,
    },
}

/// A checker that is ready to use.
#[derive(Debug)]
pub(super) struct CompiledChecker {
    expression: Regex,
    is_number: bool,
}

/// Numbers with an optional sign, thousands separators and a fraction.
const NUMBER: &str = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+";

impl Checker {
    /// Compiles the expression.
    ///
    /// # Errors
    /// The expression is wrong.
    pub(super) fn compile(&self) -> Result<CompiledChecker, regex::Error> {
        let (pattern, is_number) = match self {
            Self::Number => (NUMBER, true),
            Self::Regex { pattern } => (pattern.as_str(), false),
        };
        Ok(CompiledChecker { expression: Regex::new(pattern)?, is_number })
    }
}

impl CompiledChecker {
    /// Whether a response gives the answer.
    pub(super) fn is_right(&self, response: &str, answer: &str) -> bool {
        if self.is_number {
            let (got, expected) = (self.number(response), self.number(answer));
            return got.is_some() && got == expected;
        }
        self.last(response).is_some_and(|got| got.trim() == answer.trim())
    }

    /// Whether a right answer can be compared at all.
    pub(super) fn can_check(&self, answer: &str) -> bool {
        !self.is_number || self.number(answer).is_some()
    }

    fn last<'a>(&self, text: &'a str) -> Option<&'a str> {
        let found = self.expression.captures_iter(text).last()?;
        let group = if self.expression.captures_len() > 1 { found.get(1) } else { found.get(0) };
        group.map(|group| group.as_str())
    }

    fn number(&self, text: &str) -> Option<f64> {
        let value: f64 = self.last(text)?.replace(',', "").parse().ok()?;
        // Zero with a sign is zero.
        Some(value + 0.0).filter(|value| value.is_finite())
    }
}
