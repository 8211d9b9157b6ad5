//! Reader of a JSON object, field by field. Each read removes the field. `null` counts as absent. A value of
//! the wrong type is an error that names the field. Fields that are left at the end are unknown.

use serde_json::{Map, Value};

use super::error::ApiError;

/// A JSON object from which fields are taken by name.
pub struct Fields {
    map: Map<String, Value>,
    /// Path from the body to this object, such as `messages[0]`; empty for the body itself.
    path: String,
    /// Names of the body's fields that were looked for.
    asked: Vec<&'static str>,
}

impl Fields {
    /// Wraps the whole body.
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, path: String::new(), asked: Vec::new() }
    }

    /// Wraps an object at `path` within the body.
    ///
    /// # Errors
    /// 400 if `value` is not an object.
    pub(crate) fn at(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path: path.to_owned(), asked: Vec::new() }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Path of the field `name` of this object.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a value of any type but null.
    pub(crate) fn value(&mut self, name: &'static str) -> Option<Value> {
        if self.path.is_empty() {
            self.asked.push(name);
        }
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Drops the field if its value meets the condition.
    pub(crate) fn drop_if(&mut self, name: &str, condition: impl Fn(&Value) -> bool) {
        if self.map.get(name).is_some_and(condition) {
            self.map.shift_remove(name);
        }
    }

    /// Puts back a value, or a part of it, that was taken.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// Takes an integer from -2^63 to 2^64 - 1.
    pub(crate) fn int(&mut self, name: &'static str) -> Result<Option<i128>, ApiError> {
        self.take(name, "an integer", integer)
    }

    /// Takes a number.
    pub(crate) fn float(&mut self, name: &'static str) -> Result<Option<f64>, ApiError> {
        self.take(name, "a number", Value::as_f64)
    }

    /// Takes `true` or `false`.
    pub(crate) fn bool(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// Takes a string.
    pub(crate) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path_of(name), "a string", &other)),
        }
    }

    /// Takes an array.
    pub(crate) fn array(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(&self.path_of(name), "an array", &other)),
        }
    }

    /// Takes an object.
    pub(crate) fn object(&mut self, name: &'static str) -> Result<Option<Self>, ApiError> {
        let path = self.path_of(name);
        self.value(name).map(|value| Self::at(&path, value)).transpose()
    }

    /// Names of the body's fields that were looked for.
    pub(crate) fn asked(&self) -> &[&'static str] {
        &self.asked
    }

    /// The fields that were not taken and are not null.
    pub(crate) fn left(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter().filter(|(_, value)| !value.is_null())
    }

    /// Paths of the fields that were not taken. Fields that are null are left out. Only `unsupported` calls
    /// it, which first refuses constraints among them.
    pub(crate) fn rest(self) -> Vec<String> {
        self.left().map(|(name, _)| self.path_of(name)).collect()
    }

    /// The fields that were not taken, with their values.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    fn take<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => Err(wrong_type(&self.path_of(name), expected, &value)),
            },
        }
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
