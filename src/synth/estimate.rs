//! The estimate of a dry run: requests, tokens and, where roles state their speed, time.
//!
//! Lists are taken to be full and answers to have half of `max_tokens`. A stage that is complete counts with
//! what it used.

use std::fmt::Write as _;
use std::path::Path;

use super::error::SynthError;
use super::journal::StageFiles;
use super::recipe::{Recipe, Role};
use super::records::Stage;

/// Bytes of English text for one token.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of an answer where `max_tokens` is not stated.
const ANSWER: u64 = 400;
/// Tokens of a prompt in a list, and of a topic or keyword.
const PROMPT: u64 = 60;
const TOPIC: u64 = 8;
/// Tokens of a request for a list, beside what it is about.
const REQUEST: u64 = 90;

/// The estimate of one stage.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    stage: Stage,
    requests: u64,
    prompt: u64,
    completion: u64,
    seconds: Option<f64>,
    is_done: bool,
}

/// Counts of a recipe under the assumption that every list is full.
struct Counts<'a> {
    recipe: &'a Recipe,
    rows: Vec<Row>,
}

/// The table of the estimate. `folder` is where the run's files are or will be.
///
/// # Errors
/// A summary in the folder cannot be read, or a file of the recipe.
pub(super) fn estimate(recipe: &Recipe, recipe_folder: &Path, folder: &Path) -> Result<String, SynthError> {
    let mut counts = Counts { recipe, rows: Vec::new() };
    let prompts = counts.lists(recipe_folder)?;
    counts.answers(prompts);
    for row in &mut counts.rows {
        if let Some(summary) = StageFiles::new(folder, row.stage).complete()? {
            row.requests = summary.requests;
            row.prompt = summary.prompt_tokens;
            row.completion = summary.completion_tokens;
            row.seconds = Some(summary.seconds);
            row.is_done = true;
        }
    }
    Ok(table(&counts.rows))
}

impl Counts<'_> {
    fn add(&mut self, stage: Stage, requests: u64, prompt: u64, completion: u64, role: Option<&Role>) {
        if requests == 0 {
            return;
        }
        let rate = role.and_then(|role| role.tokens_per_second);
        let seconds = rate.map(|rate| (requests * completion) as f64 / rate);
        let (prompt, completion) = (requests * prompt, requests * completion);
        self.rows.push(Row { stage, requests, prompt, completion, seconds, is_done: false });
    }

    /// Adds the stages of lists and returns the number of prompts.
    fn lists(&mut self, recipe_folder: &Path) -> Result<u64, SynthError> {
        let recipe = self.recipe;
        let writer = recipe.roles.prompt_writer.as_ref();
        let topics = &recipe.topics;
        let is_needed = recipe.open_questions.is_some() || recipe.writing.is_some();
        let generated = if is_needed { topics.generate as u64 } else { 0 };
        self.add(Stage::Topics, generated.min(1), REQUEST, generated * TOPIC, writer);
        let mut count = if is_needed { generated + topics.given.len() as u64 } else { 0 };
        if topics.subtopics > 0 {
            self.add(Stage::Subtopics, count, REQUEST, topics.subtopics as u64 * TOPIC, writer);
            count *= topics.subtopics as u64;
        }
        let problems = [recipe.mathematics.as_ref(), recipe.coding.as_ref()];
        let problems = || problems.iter().copied().flatten();
        let listed = problems().filter(|problems| problems.generate > 0).count() as u64;
        let most = problems().map(|problems| problems.generate as u64).max().unwrap_or(0);
        self.add(Stage::Keywords, listed, REQUEST, most * TOPIC, writer);
        let open = recipe.open_questions.as_ref().map_or(0, |open| open.per_topic as u64);
        let writing = recipe.writing.as_ref();
        let per_type = writing.map_or(0, |writing| writing.per_topic as u64);
        let types = writing.map_or(0, |writing| writing.document_types.len() as u64);
        let mut requests = count * (u64::from(open > 0) + types);
        let refinable = count * (open + per_type * types);
        let mut prompts = refinable;
        for problems in problems() {
            let keywords = (problems.keywords.len() + problems.generate) as u64;
            requests += keywords;
            prompts += keywords * problems.per_keyword as u64;
        }
        let mut prompt = REQUEST;
        if let Some(closed) = &recipe.closed_questions {
            let text = read(&recipe_folder.join(&closed.file))?;
            let documents = text.lines().count() as u64;
            requests += documents;
            prompts += documents * closed.per_document as u64;
            prompt += text.len() as u64 / BYTES_PER_TOKEN / requests.max(1);
        }
        self.add(Stage::Prompts, requests, prompt, prompts * PROMPT / requests.max(1), writer);
        if let Some(refine) = &recipe.refine {
            let n = refine.per_prompt as u64;
            self.add(Stage::Refined, refinable, REQUEST + PROMPT, n * PROMPT, writer);
            prompts += refinable * n - refinable;
        }
        if let Some(given) = &recipe.given {
            prompts += read(&recipe_folder.join(&given.file))?.lines().count() as u64;
        }
        Ok(prompts.min(recipe.select.most.map_or(u64::MAX, |most| most as u64)))
    }

    /// Adds the stages of answers and scores.
    fn answers(&mut self, prompts: u64) {
        let roles = &self.recipe.roles;
        let first = roles.responders.first();
        let mut scored = 0;
        let mut dialogues = 0;
        if let Some(options) = &self.recipe.dialogues {
            dialogues = prompts.min(options.most.map_or(u64::MAX, |most| most as u64));
            let turns = options.turns as u64;
            let answer = answer(first);
            // The mean length of the conversation before a turn.
            let before = PROMPT + (turns - 1) * (answer + PROMPT) / 2;
            self.add(Stage::Dialogues, dialogues * (2 * turns - 1), before, answer, first);
            scored += dialogues * turns * answer;
        }
        let mut requests = dialogues;
        if let Some(options) = &self.recipe.responses {
            let prompts = prompts + if options.two_turn { dialogues } else { 0 };
            let each = options.per_responder as u64;
            let all: u64 = roles.responders.iter().map(|role| answer(Some(role))).sum();
            let count = roles.responders.len() as u64;
            self.add(Stage::Responses, prompts * each * count, PROMPT, all / count.max(1), first);
            requests += prompts;
            scored += prompts * (PROMPT + each * all);
        }
        if self.recipe.reward.is_some() {
            let judge = roles.judge.as_ref();
            self.add(Stage::Rewards, requests, scored / requests.max(1), 1, judge);
        }
    }
}

fn read(path: &Path) -> Result<String, SynthError> {
    std::fs::read_to_string(path).map_err(SynthError::file(path))
}

/// Tokens of a role's answer.
fn answer(role: Option<&Role>) -> u64 {
    let sampling = role.map(|role| &role.sampling);
    let most = sampling.and_then(|s| s.get("max_tokens").or_else(|| s.get("max_completion_tokens")));
    most.and_then(serde_json::Value::as_u64).map_or(ANSWER, |most| most.div_ceil(2))
}

fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<12} {:>10} {:>14} {:>18} {:>12}\n",
        "stage", "requests", "prompt tokens", "completion tokens", "seconds"
    );
    let mut line = |name: &str, row: &Row, note: &str| {
        let seconds = row.seconds.map_or("unknown".to_owned(), |seconds| format!("{seconds:.0}"));
        let (requests, prompt, completion) = (row.requests, row.prompt, row.completion);
        _ = writeln!(out, "{name:<12} {requests:>10} {prompt:>14} {completion:>18} {seconds:>12}{note}");
    };
    for row in rows {
        line(row.stage.name(), row, if row.is_done { "  done" } else { "" });
    }
    let sum = |value: fn(&Row) -> u64| rows.iter().map(value).sum();
    let total = Row {
        stage: Stage::Topics,
        requests: sum(|row| row.requests),
        prompt: sum(|row| row.prompt),
        completion: sum(|row| row.completion),
        seconds: rows.iter().map(|row| row.seconds).sum(),
        is_done: false,
    };
    line("total", &total, "");
    if total.seconds.is_none() {
        out.push_str("Seconds are known for roles that state `tokens_per_second`.\n");
    }
    out
}
