//! Rules on the keys of configuration files: which values change nothing, and which keys are not known.

use serde_json::Value;

use super::error::LoadError;
use super::json::Object;

/// A key that is not read, and the values, as JSON, with which it changes nothing. An absent key and `null`
/// change nothing either.
pub(super) type Neutral = (&'static str, &'static [&'static str]);

impl Object {
    /// Checks that each of these keys is absent or has a value that changes nothing.
    ///
    /// # Errors
    /// A key has another value; the error names both.
    pub(super) fn require_neutral(&self, keys: &[Neutral]) -> Result<(), LoadError> {
        for (key, neutral) in keys {
            if let Some(value) = self.get(key).filter(|value| !is_one_of(value, neutral)) {
                let or: String = neutral.iter().map(|text| format!(" or `{text}`")).collect();
                return Err(self.error(key, format!("expected no value{or}, got {value}")));
            }
        }
        Ok(())
    }

    /// Checks all keys of the object. `read` are the keys that are read, `neutral` those that change nothing
    /// with some values, and `harmless` those that change nothing with any value.
    ///
    /// # Errors
    /// A key of `neutral` has a value that changes the result, or a key of no list has a value that is
    /// neither `null` nor empty.
    pub(super) fn require_known(
        &self,
        read: &[&str],
        neutral: &[Neutral],
        harmless: &[&str],
    ) -> Result<(), LoadError> {
        self.require_neutral(neutral)?;
        for (key, value) in self.entries() {
            let listed = read.contains(&key) || harmless.contains(&key);
            let known = listed || neutral.iter().any(|(known, _)| *known == key);
            if !known && !is_empty(value) {
                return Err(self.error(key, format!("not known, expected no such key, got {value}")));
            }
        }
        Ok(())
    }
}

/// Whether a value equals one that is written as JSON. Numbers are compared as numbers: 1 equals 1.0.
pub(super) fn is_one_of(value: &Value, texts: &[&str]) -> bool {
    texts.iter().filter_map(|text| serde_json::from_str(text).ok()).any(|other| is_same(value, &other))
}

pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null()
        || value.as_object().is_some_and(serde_json::Map::is_empty)
        || value.as_array().is_some_and(Vec::is_empty)
}
