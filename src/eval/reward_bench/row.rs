//! Rows of RewardBench's data sets.

use serde_json::{Value, json};

use super::sections::{self, Version};
use crate::eval::error::{EvalError, Place};
use crate::eval::rows::Row;

/// A prompt with better and worse answers.
#[derive(Debug)]
pub(super) struct BenchRow<'a> {
    pub(super) place: &'a Place,
    pub(super) id: Value,
    pub(super) subset: &'a str,
    /// Messages before the answer.
    pub(super) prompt: Value,
    pub(super) chosen: Vec<String>,
    pub(super) rejected: Vec<String>,
}

/// The version of a file, by its first row.
pub(super) fn version(rows: &[Row]) -> Result<Version, EvalError> {
    let expected = "a string (RewardBench) or an array of strings (RewardBench 2)";
    match rows.first().map(|row| (row, row.get("chosen"))) {
        Some((_, Some(Value::String(_)))) => Ok(Version::One),
        Some((_, Some(Value::Array(_)))) => Ok(Version::Two),
        Some((row, _)) => Err(row.wrong("chosen", expected)),
        // A file without rows is refused when it is read.
        None => Ok(Version::One),
    }
}

impl<'a> BenchRow<'a> {
    /// Reads a row.
    pub(super) fn read(row: &'a Row, version: Version) -> Result<Self, EvalError> {
        let subset = row.string("subset")?;
        if !sections::is_known(version, subset) {
            let known = sections::names(version).join(", ");
            return Err(row.error(format!("subset: expected one of {known}, got `{subset}`")));
        }
        let (chosen, rejected) = match version {
            Version::One => {
                (vec![row.string("chosen")?.to_owned()], vec![row.string("rejected")?.to_owned()])
            }
            Version::Two => (row.strings("chosen")?, row.strings("rejected")?),
        };
        for (key, answers) in [("chosen", &chosen), ("rejected", &rejected)] {
            if answers.is_empty() {
                return Err(row.error(format!("{key}: expected at least one answer, got none")));
            }
        }
        if version == Version::Two && subset != sections::TIES && chosen.len() != 1 {
            let got = chosen.len();
            return Err(row.error(format!("chosen: expected one answer in the subset {subset}, got {got}")));
        }
        Ok(Self {
            place: &row.place,
            id: row.get("id").cloned().unwrap_or_default(),
            subset,
            prompt: prompt(row)?,
            chosen,
            rejected,
        })
    }
}

/// The messages before the answer: a string is one message of the user.
fn prompt(row: &Row) -> Result<Value, EvalError> {
    let expected = "a string, or messages with `role` and `content` that end with one of the user";
    match row.get("prompt") {
        Some(Value::String(text)) => Ok(json!([{ "role": "user", "content": text }])),
        Some(Value::Array(messages)) if are_messages(messages) => Ok(json!(messages)),
        _ => Err(row.wrong("prompt", expected)),
    }
}

fn are_messages(messages: &[Value]) -> bool {
    let text = |message: &Value, key: &str| message.get(key).is_some_and(Value::is_string);
    let ends_with_user = messages.last().is_some_and(|last| last["role"] == "user");
    ends_with_user && messages.iter().all(|message| text(message, "role") && text(message, "content"))
}
