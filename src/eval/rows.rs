//! Files of JSON Lines. Every error names the file, the line and the field.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{EvalError, Place};

/// Characters of a value that an error shows.
const EXCERPT: usize = 80;

/// One object of a file.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) place: Place,
    fields: Map<String, Value>,
}

/// Reads all rows of a file. Blank lines are skipped.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, EvalError> {
    let text = read_text(path)?;
    let file = path.display().to_string();
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = Place { file: file.clone(), line: index + 1 };
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Object(fields)) => rows.push(Row { place, fields }),
            Ok(Value::Array(_)) if index == 0 => {
                let message = "expected one JSON object a line (JSON Lines), got a JSON array".to_owned();
                return Err(EvalError::Row { place, message });
            }
            Ok(other) => {
                let message = format!("expected a JSON object, got {}", describe(&other));
                return Err(EvalError::Row { place, message });
            }
            Err(error) => {
                return Err(EvalError::Row { place, message: not_json(&error) });
            }
        }
    }
    if rows.is_empty() {
        return Err(EvalError::File { file, message: "expected at least one row, got none".to_owned() });
    }
    Ok(rows)
}

/// The message of a line that is not JSON. The parser counts lines from this one.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.split_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    format!("expected a JSON object: {reason} (column {})", error.column())
}

/// Reads a file of text.
pub(super) fn read_text(path: &Path) -> Result<String, EvalError> {
    let file = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| EvalError::Read { file: file(), error })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        EvalError::File { file: file(), message: format!("expected UTF-8, got another byte at offset {at}") }
    })
}

impl Row {
    /// The error of this row.
    pub(super) fn error(&self, message: impl Into<String>) -> EvalError {
        EvalError::Row { place: self.place.clone(), message: message.into() }
    }

    /// The error of a field that is missing or has another type.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> EvalError {
        match self.fields.get(key) {
            None => self.error(format!("{key}: expected {expected}, got no such field")),
            Some(value) => self.error(format!("{key}: expected {expected}, got {}", describe(value))),
        }
    }

    /// A field that is not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// A string.
    pub(super) fn string(&self, key: &str) -> Result<&str, EvalError> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.wrong(key, "a string"))
    }

    /// A string, or nothing if the field is missing or null.
    pub(super) fn optional_string(&self, key: &str) -> Result<Option<&str>, EvalError> {
        self.get(key).is_some().then(|| self.string(key)).transpose()
    }

    /// An array.
    pub(super) fn array(&self, key: &str, expected: &str) -> Result<&[Value], EvalError> {
        self.get(key).and_then(Value::as_array).map(Vec::as_slice).ok_or_else(|| self.wrong(key, expected))
    }

    /// An array of strings.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, EvalError> {
        let expected = "an array of strings";
        let items = self.array(key, expected)?.iter();
        let strings = items.map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        strings.ok_or_else(|| self.wrong(key, expected))
    }
}

/// A value in an error: its type and its beginning.
pub(super) fn describe(value: &Value) -> String {
    let kind = match value {
        Value::Null => return "null".to_owned(),
        Value::Bool(_) => "the boolean",
        Value::Number(_) => "the number",
        Value::String(_) => "the string",
        Value::Array(_) => "the array",
        Value::Object(_) => "the object",
    };
    let text = value.to_string();
    let short: String = text.chars().take(EXCERPT).collect();
    let end = if short.len() < text.len() { " …" } else { "" };
    format!("{kind} {short}{end}")
}
