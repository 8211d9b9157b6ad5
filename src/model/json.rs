//! Typed look-ups in JSON configuration files. Errors name the file and the key. `null` counts as absent.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::LoadError;

/// A JSON object, and the file it was read from.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    /// Reads a file that contains one JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|e| LoadError::io(path, e))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_owned(), prefix: String::new(), map }),
            Ok(_) => Err(LoadError::file(path, "expected a JSON object")),
            Err(e) => Err(LoadError::file(path, format!("not JSON: {e}"))),
        }
    }

    /// Wraps an object that was not read from a JSON file; `path` appears in errors.
    pub(crate) fn from_map(path: &Path, map: Map<String, Value>) -> Self {
        Self { path: path.to_owned(), prefix: String::new(), map }
    }

    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Reads a file that contains one JSON object; `None` if the file does not exist.
    pub(crate) fn read_if_exists(path: &Path) -> Result<Option<Self>, LoadError> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An object in the place of a key's value, with the same name in errors.
    pub(super) fn nested(&self, key: &str, value: Value) -> Self {
        let prefix = format!("{}.", self.path_of(key));
        let map = if let Value::Object(map) = value { map } else { Map::new() };
        Self { path: self.path.clone(), prefix, map }
    }

    /// All keys and values, in the order of the file.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The name of a key as in errors: with the names of the objects that it is in.
    pub(super) fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Self { path: self.path.clone(), prefix, map: map.clone() }))
            }
            Some(other) => Err(self.error(key, format!("expected an object, got {other}"))),
        }
    }

    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().filter(|n| (1..=1 << 40).contains(n));
        let count =
            count.ok_or_else(|| self.error(key, format!("expected a positive integer, got {value}")))?;
        Ok(Some(count as usize))
    }

    pub(crate) fn require_count(&self, key: &str) -> Result<usize, LoadError> {
        self.count(key)?.ok_or_else(|| self.error(key, "missing"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| self.error(key, format!("expected a number, got {value}")))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.error(key, format!("expected true or false, got {value}")))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, format!("expected a string, got {value}")))
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let items = value.as_array().map(|items| items.iter().map(|i| i.as_str().map(str::to_owned)));
        let items = items.and_then(|items| items.collect::<Option<Vec<_>>>());
        items.ok_or_else(|| self.error(key, format!("expected a list of strings, got {value}")))
    }

    pub(crate) fn error(&self, key: &str, message: impl Into<String>) -> LoadError {
        LoadError::config(&self.path, &self.path_of(key), message)
    }
}
