//! Prompts with their rules, in the layout of IFEval's data set: `key`, `prompt`, `instruction_id_list` and
//! `kwargs`, one object of arguments for each rule.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use serde_json::{Map, Value};

use super::rule::{Rule, arguments};
use crate::eval::error::{EvalError, Place};
use crate::eval::rows::{self, Row};

/// A prompt with its rules.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) place: Place,
    /// The row's `key`, for messages.
    pub(super) key: String,
    /// The row's `key` as the file has it.
    pub(super) id: Value,
    pub(super) text: String,
    pub(super) rules: Vec<Rule>,
}

/// The prompts of a file, and sentences on those whose rules the reference checks at random.
pub(super) fn read(path: &Path) -> Result<(Vec<Prompt>, Vec<String>), EvalError> {
    let mut notes = Vec::new();
    let rows = rows::read(path)?;
    let prompts = rows.iter().map(|row| prompt(row, &mut notes)).collect::<Result<Vec<_>, _>>()?;
    Ok((prompts, notes))
}

fn prompt(row: &Row, notes: &mut Vec<String>) -> Result<Prompt, EvalError> {
    let key = match row.get("key") {
        Some(Value::String(key)) => key.clone(),
        Some(Value::Number(key)) => key.to_string(),
        _ => return Err(row.wrong("key", "a number or a string")),
    };
    let ids = row.strings("instruction_id_list")?;
    let kwargs = row.array("kwargs", "an array of objects, one for each rule")?;
    if ids.is_empty() {
        return Err(
            row.error(format!("key {key}: instruction_id_list: expected at least one rule, got none"))
        );
    }
    if kwargs.len() != ids.len() {
        let (rules, objects) = (ids.len(), kwargs.len());
        let message =
            format!("key {key}: kwargs: expected {rules} objects, one for each rule, got {objects}");
        return Err(row.error(message));
    }
    let empty = Map::new();
    let rules = ids
        .iter()
        .zip(kwargs)
        .map(|(id, value)| Rule::read(row, &key, id, arguments(row, value, &empty)?, notes))
        .collect::<Result<Vec<_>, _>>()?;
    let id = row.get("key").cloned().unwrap_or_default();
    Ok(Prompt { place: row.place.clone(), text: row.string("prompt")?.to_owned(), key, id, rules })
}

/// The given answer to each prompt, from a file with `prompt` and `response`; and the number of answers to
/// other prompts. Answers to the same prompt are taken in the order of the file.
pub(super) fn answers(path: &Path, prompts: &[Prompt]) -> Result<(Vec<String>, usize), EvalError> {
    let rows = rows::read(path)?;
    let mut given: HashMap<&str, VecDeque<&str>> = HashMap::new();
    for row in &rows {
        given.entry(row.string("prompt")?).or_default().push_back(row.string("response")?);
    }
    let answers = prompts.iter().map(|prompt| {
        let answer = given.get_mut(prompt.text.as_str()).and_then(VecDeque::pop_front);
        answer.map(str::to_owned).ok_or_else(|| EvalError::Row {
            place: prompt.place.clone(),
            message: format!("key {}: {} has no response left for this prompt", prompt.key, path.display()),
        })
    });
    let answers = answers.collect::<Result<Vec<_>, _>>()?;
    Ok((answers, given.values().map(VecDeque::len).sum()))
}
