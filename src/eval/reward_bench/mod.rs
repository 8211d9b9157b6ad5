//! RewardBench: a reward model scores a chosen and a rejected answer to each prompt.
//!
//! Version 1 has rows with `prompt`, `chosen`, `rejected` and `subset`; `chosen` and `rejected` are strings.
//! Version 2 has lists there, and an `id`. `POST /v1/reward` scores the answers of a row in one request, so
//! that their prompt is computed once.

mod pairs;
mod row;
mod sections;
mod ties;
mod version_1;
mod version_2;

use std::path::Path;

use serde_json::{Map, Value, json};

use self::row::BenchRow;
use self::sections::Version;
use super::client::EvalClient;
use super::error::{EvalError, Place};
use super::request_error::RequestError;
use super::{OnProgress, rows};

/// Path of the requests.
const PATH: &str = "/v1/reward";

/// The result of an evaluation.
#[derive(Debug)]
pub(crate) struct RewardBenchReport {
    /// A table for people.
    pub(crate) table: String,
    /// All figures, and the scores of every row.
    pub(crate) json: Value,
}

/// Settings of an evaluation.
#[derive(Debug)]
pub(crate) struct RewardBenchSettings<'a> {
    /// Name of the model.
    pub(crate) model: &'a str,
    /// Weights of the attributes in the score; without them the server's own count.
    pub(crate) weights: Option<&'a Map<String, Value>>,
}

/// The scores of a row: `None` if the server has refused the conversation, with its message.
#[derive(Debug)]
struct Scored {
    /// Scores of the chosen answers, then those of the rejected ones.
    scores: Result<Vec<f64>, String>,
}

/// Scores all rows of a file.
///
/// # Errors
/// The file is not what was expected, or the server does not answer. A conversation that the server refuses,
/// because it is too long for example, counts as wrong and is named in the report.
pub(crate) async fn run(
    path: &Path,
    settings: &RewardBenchSettings<'_>,
    client: &EvalClient,
    on_progress: OnProgress<'_>,
) -> Result<RewardBenchReport, EvalError> {
    let rows = rows::read(path)?;
    let version = row::version(&rows)?;
    let bench = rows.iter().map(|row| BenchRow::read(row, version)).collect::<Result<Vec<_>, _>>()?;
    let scored = client.all(&bench, |row| score(row, settings, client), on_progress).await?;
    let refused = refused(&bench, &scored)?;
    let mut report = match version {
        Version::One => version_1::report(&bench, &scored),
        Version::Two => version_2::report(&bench, &scored)?,
    };
    for (place, message) in &refused {
        report.table.push_str(&format!("refused, counted as wrong: {place}: {message}\n"));
    }
    let refused = refused.iter().map(|(place, message)| json!({ "line": place.line, "message": message }));
    if let Value::Object(figures) = &mut report.json {
        figures.insert("model".to_owned(), json!(settings.model));
        figures.insert("weights".to_owned(), json!(settings.weights));
        figures.insert("refused".to_owned(), refused.collect());
        figures.insert(
            "rows".to_owned(),
            bench.iter().zip(&scored).map(|(row, scored)| row_json(row, scored)).collect(),
        );
    }
    Ok(report)
}

/// The rows that the server has refused. If it has refused all, they are no result but an error.
fn refused<'a>(
    bench: &'a [BenchRow<'_>],
    scored: &'a [Scored],
) -> Result<Vec<(&'a Place, &'a str)>, EvalError> {
    let refused: Vec<_> = bench
        .iter()
        .zip(scored)
        .filter_map(|(row, scored)| Some((row.place, scored.scores.as_ref().err()?.as_str())))
        .collect();
    match refused.first() {
        Some((place, message)) if refused.len() == bench.len() => {
            let message = format!("the server has refused all {} rows: {message}", bench.len());
            Err(EvalError::Row { place: (*place).clone(), message })
        }
        _ => Ok(refused),
    }
}

fn row_json(row: &BenchRow<'_>, scored: &Scored) -> Value {
    let scores = scored.scores.as_deref().unwrap_or_default();
    let (chosen, rejected) = scores.split_at(row.chosen.len().min(scores.len()));
    json!({
        "line": row.place.line,
        "id": row.id,
        "subset": row.subset,
        "chosen": chosen,
        "rejected": rejected,
    })
}

async fn score(
    row: &BenchRow<'_>,
    settings: &RewardBenchSettings<'_>,
    client: &EvalClient,
) -> Result<Scored, EvalError> {
    let answers: Vec<&str> = row.chosen.iter().chain(&row.rejected).map(String::as_str).collect();
    let mut body = json!({ "model": settings.model, "prompt": row.prompt, "answers": answers });
    if let Some(weights) = settings.weights {
        body["weights"] = Value::Object(weights.clone());
    }
    let scores = client.post(PATH, &body).await.and_then(|reply| read_scores(&reply, answers.len()));
    match scores {
        Ok(scores) => Ok(Scored { scores: Ok(scores) }),
        Err(error) if error.concerns_the_row() => Ok(Scored { scores: Err(error.to_string()) }),
        Err(error) => Err(EvalError::Request { place: row.place.clone(), error }),
    }
}

/// The scores of a reply, in the order of the answers.
fn read_scores(reply: &Value, count: usize) -> Result<Vec<f64>, RequestError> {
    let malformed = |expected: String| RequestError::malformed(PATH, expected, &reply.to_string());
    let data = reply.get("data").and_then(Value::as_array);
    let data = data.filter(|data| data.len() == count);
    let data = data.ok_or_else(|| malformed(format!("`data` with {count} scores")))?;
    let mut scores = vec![None; count];
    for (position, item) in data.iter().enumerate() {
        let index = match item.get("index") {
            Some(index) => index.as_u64().and_then(|index| usize::try_from(index).ok()),
            None => Some(position),
        };
        let score = item.get("score").and_then(Value::as_f64).filter(|score| score.is_finite());
        if let Some(place) = index.and_then(|index| scores.get_mut(index)) {
            *place = score;
        }
    }
    let scores = scores.into_iter().collect::<Option<Vec<f64>>>();
    scores.ok_or_else(|| malformed("a `score` for each index".to_owned()))
}
