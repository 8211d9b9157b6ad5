//! The estimate of a dry run: requests, tokens and, where roles state their rates, time.
//!
//! Lists are taken to be full, answers to have half of `max_tokens`, and no prompt to be left out but by
//! `select.most`. Prompt tokens are those that servers report: the whole prompt of each request. The time of
//! a stage is the sum over its roles: the tokens of prompts by `prompt_tokens_per_second`, and those of
//! answers by `tokens_per_second`. So it is the time of a server without a prefix cache and of roles that
//! take turns, without the time in which local models load. The judge only reads. A stage that is complete
//! counts with what it used.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::error::SynthError;
use super::journal::StageFiles;
use super::recipe::{JudgeApi, Recipe, Role};
use super::records::Stage;
use super::servers::Who;
use super::stages::{MOST_TOGETHER, fields};

/// Bytes of English text for one token.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of an answer where `max_tokens` is not stated.
const ANSWER: u64 = 400;
/// Tokens of a prompt in a list, and of a topic or keyword.
const PROMPT: u64 = 60;
const TOPIC: u64 = 8;
/// Tokens of a request for a list or for a turn of the user, beside what it is about.
const REQUEST: u64 = 90;

/// The part of one role in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    who: Who,
    requests: u64,
    /// Tokens of all prompts.
    prompt: u64,
    /// Tokens of all answers.
    completion: u64,
}

/// The estimate of one stage.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    stage: Stage,
    work: Vec<Work>,
    /// Absent if a role states no rate.
    seconds: Option<f64>,
    is_done: bool,
}

/// A number of prompts.
#[derive(Debug, Clone, Copy, Default)]
struct Prompts {
    count: u64,
    /// Tokens of all of them.
    tokens: u64,
}

impl Prompts {
    fn of_texts(texts: &[String]) -> Self {
        Self { count: texts.len() as u64, tokens: texts.iter().map(|text| tokens(text)).sum() }
    }

    fn add(&mut self, count: u64, tokens: u64) {
        self.count += count;
        self.tokens += tokens;
    }

    /// The first of them up to this number, taken to have the mean length.
    fn limited(self, most: Option<usize>) -> Self {
        let count = most.map_or(self.count, |most| self.count.min(most as u64));
        Self { count, tokens: self.tokens * count / self.count.max(1) }
    }
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
            let (requests, prompt) = (summary.requests, summary.prompt_tokens);
            let completion = summary.completion_tokens;
            row.work = vec![Work { who: row.work[0].who, requests, prompt, completion }];
            row.seconds = Some(summary.seconds);
            row.is_done = true;
        }
    }
    Ok(counts.table())
}

impl Counts<'_> {
    fn add(&mut self, stage: Stage, work: impl IntoIterator<Item = Work>) {
        let work: Vec<Work> = work.into_iter().filter(|work| work.requests > 0).collect();
        if !work.is_empty() {
            let seconds = work.iter().map(|work| self.seconds(work).ok()).sum();
            self.rows.push(Row { stage, work, seconds, is_done: false });
        }
    }

    fn role(&self, who: Who) -> Option<&Role> {
        who.role(self.recipe).ok()
    }

    /// The time of a role's work, or the keys of the rates that the role lacks.
    fn seconds(&self, work: &Work) -> Result<f64, Vec<&'static str>> {
        let written = if work.who == Who::Judge { 0 } else { work.completion };
        let role = self.role(work.who);
        let parts = [
            ("prompt_tokens_per_second", work.prompt, role.and_then(|role| role.prompt_tokens_per_second)),
            ("tokens_per_second", written, role.and_then(|role| role.tokens_per_second)),
        ];
        let (mut seconds, mut lacking) = (0.0, Vec::new());
        for (key, tokens, rate) in parts.into_iter().filter(|(_, tokens, _)| *tokens > 0) {
            match rate {
                Some(rate) => seconds += tokens as f64 / rate,
                None => lacking.push(key),
            }
        }
        if lacking.is_empty() { Ok(seconds) } else { Err(lacking) }
    }

    /// Adds the stages of lists and returns the prompts.
    fn lists(&mut self, recipe_folder: &Path) -> Result<Prompts, SynthError> {
        let recipe = self.recipe;
        let who = Who::PromptWriter;
        let list = |requests: u64, completion: u64| {
            let prompt = requests * REQUEST;
            [Work { who, requests, prompt, completion }]
        };
        let topics = &recipe.topics;
        let is_needed = recipe.open_questions.is_some() || recipe.writing.is_some();
        let generated = if is_needed { topics.generate as u64 } else { 0 };
        self.add(Stage::Topics, list(generated.min(1), generated * TOPIC));
        let mut count = if is_needed { generated + topics.given.len() as u64 } else { 0 };
        if topics.subtopics > 0 {
            let all = count * topics.subtopics as u64;
            self.add(Stage::Subtopics, list(count, all * TOPIC));
            count = all;
        }
        let problems = [recipe.mathematics.as_ref(), recipe.coding.as_ref()].into_iter().flatten();
        let listed: Vec<u64> =
            problems.clone().map(|problems| problems.generate as u64).filter(|count| *count > 0).collect();
        self.add(Stage::Keywords, list(listed.len() as u64, listed.iter().sum::<u64>() * TOPIC));
        let open = recipe.open_questions.as_ref().map_or(0, |open| open.per_topic as u64);
        let writing = recipe.writing.as_ref();
        let per_type = writing.map_or(0, |writing| writing.per_topic as u64);
        let types = writing.map_or(0, |writing| writing.document_types.len() as u64);
        let mut requests = count * (u64::from(open > 0) + types);
        let refinable = count * (open + per_type * types);
        let mut made = refinable;
        for problems in problems {
            let keywords = (problems.keywords.len() + problems.generate) as u64;
            requests += keywords;
            made += keywords * problems.per_keyword as u64;
        }
        let [mut work] = list(requests, made * PROMPT);
        let mut prompts = Prompts { count: made, tokens: made * PROMPT };
        if let Some(closed) = &recipe.closed_questions {
            let texts = Prompts::of_texts(&fields(&recipe_folder.join(&closed.file), &closed.field)?);
            let each = closed.per_document as u64;
            work.requests += texts.count;
            work.prompt += texts.count * REQUEST + texts.tokens;
            work.completion += texts.count * each * PROMPT;
            // The prompt is the text with the question.
            prompts.add(texts.count * each, (texts.tokens + texts.count * PROMPT) * each);
        }
        self.add(Stage::Prompts, [work]);
        if let Some(refine) = &recipe.refine {
            let all = refinable * refine.per_prompt as u64;
            let [work] = list(refinable, all * PROMPT);
            self.add(Stage::Refined, [Work { prompt: work.prompt + refinable * PROMPT, ..work }]);
            prompts.add(all - refinable, (all - refinable) * PROMPT);
        }
        if let Some(given) = &recipe.given {
            let texts = Prompts::of_texts(&fields(&recipe_folder.join(&given.file), &given.field)?);
            prompts.add(texts.count, texts.tokens);
        }
        Ok(prompts.limited(recipe.select.most))
    }

    /// Adds the stages of answers and scores.
    fn answers(&mut self, prompts: Prompts) {
        let recipe = self.recipe;
        let responders = &recipe.roles.responders;
        let mut judged = Work { who: Who::Judge, requests: 0, prompt: 0, completion: 0 };
        let is_chat = recipe.roles.judge.as_ref().is_some_and(|judge| judge.api == JudgeApi::Chat);
        let mut dialogues = Prompts::default();
        // Tokens of a turn of the user, and of an answer to it.
        let (said, answered) = (answer(recipe.roles.user.as_ref()), answer(responders.first()));
        if let Some(options) = &recipe.dialogues {
            dialogues = prompts.limited(options.most);
            let Prompts { count, tokens } = dialogues;
            let turns = options.turns as u64;
            // Pairs of a turn and one before it.
            let pairs = turns * (turns - 1) / 2;
            let assistant = Work {
                who: Who::Responder(0),
                requests: count * turns,
                prompt: tokens * turns + count * (said + answered) * pairs,
                completion: count * turns * answered,
            };
            let before = count * (answered * pairs + said * (pairs - (turns - 1)));
            let user = Work {
                who: Who::User,
                requests: count * (turns - 1),
                prompt: (turns - 1) * (tokens + count * REQUEST) + before,
                completion: count * (turns - 1) * said,
            };
            self.add(Stage::Dialogues, [assistant, user]);
            judged.requests += if is_chat { assistant.requests } else { count };
            // The conversation up to each answer.
            judged.prompt += assistant.prompt + assistant.completion;
        }
        if let Some(options) = &recipe.responses {
            let mut prompts = prompts;
            if options.two_turn {
                prompts.add(dialogues.count, dialogues.tokens + dialogues.count * (answered + said));
            }
            let each = options.per_responder as u64;
            let work: Vec<Work> = (0..)
                .zip(responders)
                .map(|(number, role)| Work {
                    who: Who::Responder(number),
                    requests: prompts.count * each,
                    prompt: prompts.tokens * each,
                    completion: prompts.count * each * answer(Some(role)),
                })
                .collect();
            let all = each * responders.len() as u64;
            judged.requests += prompts.count * if is_chat { all } else { all.div_ceil(MOST_TOGETHER as u64) };
            judged.prompt += work.iter().map(|work| work.prompt + work.completion).sum::<u64>();
            self.add(Stage::Responses, work);
        }
        if recipe.reward.is_some() {
            judged.completion = if is_chat { judged.requests } else { 0 };
            self.add(Stage::Rewards, [judged]);
        }
    }

    fn table(&self) -> String {
        let mut out = format!(
            "{:<12} {:>10} {:>14} {:>18} {:>12}\n",
            "stage", "requests", "prompt tokens", "completion tokens", "seconds"
        );
        let mut line = |name: &str, work: &[Work], seconds: Option<f64>, note: &str| {
            let sum = |value: fn(&Work) -> u64| work.iter().map(value).sum::<u64>();
            let (requests, prompt) = (sum(|work| work.requests), sum(|work| work.prompt));
            let completion = sum(|work| work.completion);
            let seconds = seconds.map_or("unknown".to_owned(), |seconds| format!("{seconds:.0}"));
            _ = writeln!(out, "{name:<12} {requests:>10} {prompt:>14} {completion:>18} {seconds:>12}{note}");
        };
        for row in &self.rows {
            line(row.stage.name(), &row.work, row.seconds, if row.is_done { "  done" } else { "" });
        }
        let all: Vec<Work> = self.rows.iter().flat_map(|row| row.work.iter().copied()).collect();
        line("total", &all, self.rows.iter().map(|row| row.seconds).sum(), "");
        for line in self.lacking() {
            out += &line;
        }
        out
    }

    /// A line for each role that states no rate and therefore has no time.
    fn lacking(&self) -> Vec<String> {
        let mut roles: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for work in self.rows.iter().filter(|row| !row.is_done).flat_map(|row| &row.work) {
            let keys = self.seconds(work).err().unwrap_or_default();
            let known = roles.entry(work.who.key()).or_default();
            for key in keys {
                if !known.contains(&key) {
                    known.push(key);
                }
            }
        }
        let lacking = roles.into_iter().filter(|(_, keys)| !keys.is_empty());
        lacking
            .map(|(role, keys)| {
                let name = role.strip_prefix("roles.").unwrap_or(&role);
                format!("time: not estimated, role `{name}` states no {}\n", keys.join(" and no "))
            })
            .collect()
    }
}

fn tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(BYTES_PER_TOKEN)
}

/// Tokens of a role's answer.
fn answer(role: Option<&Role>) -> u64 {
    let sampling = role.map(|role| &role.sampling);
    let most = sampling.and_then(|s| s.get("max_tokens").or_else(|| s.get("max_completion_tokens")));
    most.and_then(serde_json::Value::as_u64).map_or(ANSWER, |most| most.div_ceil(2))
}
