//! A JSON object read field by field: each read takes the field out, `null` counts as absent, a wrong type is an
//! error that names the field, and what is left at the end is what nobody knows.

use serde_json::{Map, Value};

use super::error::ApiError;

/// An object of which fields are taken by name.
pub struct Fields {
    map: Map<String, Value>,
    /// The path to this object within the body, empty for the body itself.
    path: String,
}

impl Fields {
    /// Reads the body itself.
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, path: String::new() }
    }

    /// Reads an object at `path` within the body.
    ///
    /// # Errors
    /// If it is none.
    pub fn at(path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path: path.to_owned() }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// The path of a field of this object.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes any value but null.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes an integer of at most 64 bits, signed or not.
    pub fn int(&mut self, name: &str) -> Result<Option<i128>, ApiError> {
        self.take(name, "an integer", integer)
    }

    /// Takes a number.
    pub fn float(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        self.take(name, "a number", Value::as_f64)
    }

    /// Takes `true` or `false`.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// Takes a string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path_of(name), "a string", &other)),
        }
    }

    /// Takes an array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong(&self.path_of(name), "an array", &other)),
        }
    }

    /// Takes an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.path_of(name);
        self.value(name).map(|value| Self::at(&path, value)).transpose()
    }

    /// The paths of the fields that nobody took. A null says nothing and is not among them.
    pub fn rest(self) -> Vec<String> {
        let left = self.map.iter().filter(|(_, value)| !value.is_null());
        left.map(|(name, _)| self.path_of(name)).collect()
    }

    /// All fields that are left.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => Err(wrong(&self.path_of(name), expected, &value)),
            },
        }
    }
}

/// An integer of at most 64 bits; a number with a point or an exponent is none.
pub fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

/// The error for a value of a wrong type.
pub fn wrong(path: &str, expected: &str, got: &Value) -> ApiError {
    let got = match got {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    ApiError::invalid(path, format!("expected {expected}, got {got}"))
}
