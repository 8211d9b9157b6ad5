//! Arguments of a rule. Each error names the prompt's key, the rule and the argument.

use serde_json::{Map, Value};

use super::threshold::{Relation, Threshold};
use crate::eval::error::EvalError;
use crate::eval::rows::{Row, describe};
use crate::python_regex::PythonRegex;

/// The arguments of one rule of one prompt.
pub(super) struct Kwargs<'a> {
    row: &'a Row,
    /// Key of the prompt.
    pub(super) key: &'a str,
    /// Name of the rule.
    pub(super) rule: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Kwargs<'a> {
    /// Checks that all arguments but empty ones are among the rule's.
    pub(super) fn new(
        row: &'a Row,
        key: &'a str,
        rule: &'a str,
        map: &'a Map<String, Value>,
        names: &[&str],
    ) -> Result<Self, EvalError> {
        let kwargs = Self { row, key, rule, map };
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            _ => false,
        };
        match map.iter().find(|(name, value)| !names.contains(&name.as_str()) && !is_empty(value)) {
            None => Ok(kwargs),
            Some((name, value)) => {
                let known = if names.is_empty() { "no arguments".to_owned() } else { names.join(", ") };
                Err(kwargs.error(&format!("expected {known}, got `{name}` with {}", describe(value))))
            }
        }
    }

    /// An error of this rule.
    pub(super) fn error(&self, message: &str) -> EvalError {
        self.row.error(format!("key {}, rule `{}`: {message}", self.key, self.rule))
    }

    fn wrong(&self, name: &str, expected: &str) -> EvalError {
        match self.map.get(name) {
            None | Some(Value::Null) => self.error(&format!("{name}: expected {expected}, got none")),
            Some(value) => self.error(&format!("{name}: expected {expected}, got {}", describe(value))),
        }
    }

    /// A text that is not empty.
    pub(super) fn text(&self, name: &str) -> Result<&'a str, EvalError> {
        let text = self.map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or_else(|| self.wrong(name, "a text"))
    }

    /// A whole number of at least 0. Files that were written by way of floats have `3.0`.
    pub(super) fn number(&self, name: &str) -> Result<u64, EvalError> {
        let value = self.map.get(name);
        let float = || {
            let float = value.and_then(Value::as_f64);
            float.filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number)).map(|n| n as u64)
        };
        let number = value.and_then(Value::as_u64).or_else(float);
        number.ok_or_else(|| self.wrong(name, "a whole number of at least 0"))
    }

    /// A number and how the count relates to it.
    pub(super) fn threshold(&self, number: &str, relation: &str) -> Result<Threshold, EvalError> {
        let number = self.number(number)?;
        let relation = match self.map.get(relation).and_then(Value::as_str) {
            Some("less than") => Relation::LessThan,
            Some("at least") => Relation::AtLeast,
            _ => return Err(self.wrong(relation, "`less than` or `at least`")),
        };
        Ok(Threshold { relation, number })
    }

    /// An array of texts that is not empty.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>, EvalError> {
        let items = self.map.get(name).and_then(Value::as_array).filter(|items| !items.is_empty());
        let texts = items.and_then(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| self.wrong(name, "an array of texts"))
    }

    /// A regular expression of Python that is made of an argument.
    pub(super) fn regex(&self, name: &str, pattern: &str, flags: &str) -> Result<PythonRegex, EvalError> {
        PythonRegex::in_text(pattern, flags).map_err(|error| {
            self.error(&format!("{name}: not usable as a regular expression: `{pattern}`: {error}"))
        })
    }
}
