//! A JSON object whose fields are taken by name. `null` counts as absent. Fields that are left at the end are
//! unknown.

use serde_json::{Map, Value};

use super::error::ApiError;

/// A JSON object from which fields are taken by name.
pub struct Fields {
    /// A field that was taken is null.
    map: Map<String, Value>,
    /// Path from the body to this object, such as `messages[0]`; empty for the body itself.
    path: String,
    /// Names of the body's fields that were looked for.
    asked: Vec<&'static str>,
    /// Paths of unknown fields within the fields that were taken.
    ignored: Vec<String>,
}

impl Fields {
    /// Wraps the whole body.
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, path: String::new(), asked: Vec::new(), ignored: Vec::new() }
    }

    /// Wraps an object at `path` within the body.
    ///
    /// # Errors
    /// 400 if `value` is not an object.
    pub(crate) fn at(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { path: path.to_owned(), ..Self::new(map) }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Path of the field `name` of this object.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a value of any type but null. Tables (`field_table`) read fields by it, and `unsupported` those
    /// that are refused.
    pub(crate) fn value(&mut self, name: &'static str) -> Option<Value> {
        if self.path.is_empty() {
            self.asked.push(name);
        }
        self.map.get_mut(name).map(Value::take).filter(|value| !value.is_null())
    }

    /// Puts back a value, or a part of it, that was taken. It counts as unknown if it is not taken again.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// Paths of unknown fields within the fields that were taken.
    pub(crate) fn ignored(&mut self) -> &mut Vec<String> {
        &mut self.ignored
    }

    /// Names of the body's fields that were looked for.
    pub(crate) fn asked(&self) -> &[&'static str] {
        &self.asked
    }

    /// The fields that were not taken and are not null.
    pub(crate) fn left(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter().filter(|(_, value)| !value.is_null())
    }

    /// Paths of the fields that were not taken, and of unknown fields within those that were. Fields that are
    /// null are left out. Only `unsupported` calls it, which first refuses constraints among them.
    pub(crate) fn rest(mut self) -> Vec<String> {
        let mut paths = std::mem::take(&mut self.ignored);
        paths.extend(self.left().map(|(name, _)| self.path_of(name)));
        paths
    }
}

/// The value if it is an integer from -2^63 to 2^64 - 1. Some clients write `16.0` or `1e2`, which is an
/// integer below 2^53; beyond that, a number with a point or an exponent stands for several integers.
pub(crate) fn integer(value: &Value) -> Option<i128> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let written = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    let float = || value.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < EXACT);
    written.or_else(|| float().map(|float| float as i128))
}

/// The error for a field that is missing.
pub(crate) fn missing(path: &str, expected: &str) -> ApiError {
    ApiError::invalid(path, format!("expected {expected}, got nothing"))
}

/// The error for a value of the wrong type.
pub(crate) fn wrong_type(path: &str, expected: &str, got: &Value) -> ApiError {
    ApiError::invalid(path, format!("expected {expected}, got {}", shown(got)))
}

/// A value as an error shows it: only its type if the value may be long.
pub(super) fn shown(got: &Value) -> String {
    match got {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
