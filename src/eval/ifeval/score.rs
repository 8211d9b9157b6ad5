//! Strict and loose scores of an answer.

use super::check::Checker;
use super::prompts::Prompt;
use crate::eval::error::EvalError;

/// Which of a prompt's rules an answer follows.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) strict: Vec<bool>,
    /// By any of eight forms of the answer: without the first line, the last line or both, and each of these
    /// four without asterisks.
    pub(super) loose: Vec<bool>,
}

/// Checks an answer by all rules of its prompt.
///
/// # Errors
/// A keyword's expression needs too many steps; the error names key and rule.
pub(super) fn score(prompt: &Prompt, answer: &str, checker: &Checker) -> Result<Outcome, EvalError> {
    let forms = forms(answer);
    let mut outcome = Outcome::default();
    for rule in &prompt.rules {
        let follows = |text: &str| {
            checker.follows(rule, text).map_err(|error| EvalError::Row {
                place: prompt.place.clone(),
                message: format!("key {}, rule `{}`: {error}", prompt.key, rule.id),
            })
        };
        let strict = follows(answer)?;
        let mut loose = strict;
        for form in &forms {
            loose = loose || follows(form)?;
        }
        outcome.strict.push(strict);
        outcome.loose.push(loose);
    }
    Ok(outcome)
}

/// The other seven forms of an answer.
fn forms(answer: &str) -> Vec<String> {
    let lines: Vec<&str> = answer.split('\n').collect();
    let joined = |from: usize, to: usize| {
        let lines = lines.get(from..to).unwrap_or_default();
        super::python_text::strip(&lines.join("\n")).to_owned()
    };
    let end = lines.len();
    let shorter = [joined(1, end), joined(0, end - 1), joined(1, end.saturating_sub(1))];
    let plain = [answer].into_iter().chain(shorter.iter().map(String::as_str));
    let plain: Vec<String> = plain.map(|text| text.replace('*', "")).collect();
    shorter.into_iter().chain(plain).collect()
}
