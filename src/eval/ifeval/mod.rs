//! IFEval: prompts with rules on the form of the answer, such as its number of words, which programs check.
//!
//! The rules decide as those of lm-eval do, with two differences: sentences are found with other lists of
//! words, and nothing is random. `scripts/compare_ifeval.py` counts how often that matters: never in 4,000
//! made answers. An unknown rule and a missing argument are errors.

mod check;
mod english;
mod kwargs;
mod language;
mod prompts;
mod python_json;
mod python_text;
mod report;
mod rule;
mod score;
mod sentences;
mod threshold;
mod words;

use std::path::Path;

use serde_json::{Value, json};

use self::check::Checker;
use self::prompts::Prompt;
use super::OnProgress;
use super::client::EvalClient;
use super::error::EvalError;
use super::request_error::RequestError;

/// Path of the requests.
const PATH: &str = "/v1/chat/completions";

/// The result of an evaluation.
#[derive(Debug)]
pub(crate) struct IfEvalReport {
    /// A table for people.
    pub(crate) table: String,
    /// All figures, and the answer to every prompt with the rules that it follows.
    pub(crate) json: Value,
}

/// The model whose answers are scored.
#[derive(Debug)]
pub(crate) struct Answerer<'a> {
    /// Client of its server.
    pub(crate) client: &'a EvalClient,
    /// Its name.
    pub(crate) model: &'a str,
    /// The most tokens of an answer.
    pub(crate) max_tokens: usize,
}

/// An answer, or the message with which the server has refused the prompt.
type Answer = Result<String, String>;

/// Generates an answer to each prompt of a file, greedily, and scores it.
///
/// # Errors
/// The file is not what was expected, or the server does not answer. A prompt that the server refuses counts
/// as not followed and is named in the report.
pub(crate) async fn generate(
    path: &Path,
    answerer: &Answerer<'_>,
    on_progress: OnProgress<'_>,
) -> Result<IfEvalReport, EvalError> {
    let (prompts, notes) = prompts::read(path)?;
    let answers = answerer.client.all(&prompts, |prompt| answer(prompt, answerer), on_progress).await?;
    if let (Some(Err(message)), true) = (answers.first(), answers.iter().all(Result::is_err)) {
        let message = format!("the server has refused all {} prompts: {message}", prompts.len());
        return Err(EvalError::File { file: path.display().to_string(), message });
    }
    report(&prompts, answers, notes, Some(answerer.model))
}

/// Scores given answers.
///
/// # Errors
/// A file is not what was expected, or a prompt has no answer.
pub(crate) fn score_given(path: &Path, responses: &Path) -> Result<IfEvalReport, EvalError> {
    let (prompts, mut notes) = prompts::read(path)?;
    let (answers, unused) = prompts::answers(responses, &prompts)?;
    if unused > 0 {
        notes.push(format!("{unused} responses to other prompts were not used"));
    }
    report(&prompts, answers.into_iter().map(Ok).collect(), notes, None)
}

fn report(
    prompts: &[Prompt],
    answers: Vec<Answer>,
    mut notes: Vec<String>,
    model: Option<&str>,
) -> Result<IfEvalReport, EvalError> {
    let checker = Checker::new();
    let mut outcomes = Vec::with_capacity(prompts.len());
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let text = match answer {
            Ok(text) => text,
            Err(message) => {
                notes.push(format!("key {}: refused, counted as not followed: {message}", prompt.key));
                ""
            }
        };
        outcomes.push(score::score(prompt, text, &checker)?);
    }
    let answers: Vec<Option<&str>> = answers.iter().map(|answer| answer.as_deref().ok()).collect();
    let (table, mut json) = report::report(prompts, &answers, &outcomes, &notes);
    json["model"] = json!(model);
    Ok(IfEvalReport { table, json })
}

async fn answer(prompt: &Prompt, answerer: &Answerer<'_>) -> Result<Answer, EvalError> {
    let body = json!({
        "model": answerer.model,
        "messages": [{ "role": "user", "content": prompt.text }],
        "temperature": 0,
        "max_tokens": answerer.max_tokens,
    });
    let reply = answerer.client.post(PATH, &body).await;
    let text = reply.and_then(|reply| {
        let content = reply.pointer("/choices/0/message/content").and_then(Value::as_str);
        content
            .map(str::to_owned)
            .ok_or_else(|| RequestError::malformed(PATH, "`choices[0].message.content`", &reply.to_string()))
    });
    match text {
        Ok(text) => Ok(Ok(text)),
        Err(error) if error.concerns_the_row() => Ok(Err(error.to_string())),
        Err(error) => Err(EvalError::Request { place: prompt.place.clone(), error }),
    }
}
