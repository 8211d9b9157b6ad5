//! Requests to simulate: random ones that are a function of a seed, or those of a file.

use std::sync::Arc;

use serde::Deserialize;

use super::error::SettingsError;
use super::virtual_time::ScriptedRequest;
use crate::random::{Random, STEP, mix};

/// A gamma distribution, or a constant if `cv` is 0. With `cv` 1 it is exponential, so that such intervals
/// between arrivals are a Poisson process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Coefficient of variation: standard deviation divided by mean.
    pub cv: f64,
}

impl Spread {
    fn sample(self, random: &mut Random) -> f64 {
        if self.cv == 0.0 {
            return self.mean;
        }
        let variance = self.cv * self.cv;
        random.gamma(1.0 / variance) * self.mean * variance
    }
}

/// A request and its time of arrival.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Seconds since the start.
    pub at: f64,
    /// The request with its answer.
    pub request: ScriptedRequest,
}

/// Parameters of random requests.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticWorkload {
    /// Number of requests.
    pub requests: usize,
    /// Seconds from one arrival to the next.
    pub interval: Spread,
    /// Tokens of a prompt.
    pub prompt: Spread,
    /// Tokens of an answer.
    pub answer: Spread,
    /// Seed of everything random.
    pub seed: u64,
}

/// Arrivals, and how many of them were shortened.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Requests in order of arrival.
    pub arrivals: Vec<Arrival>,
    /// Requests that were cut to the model's context.
    pub cut: usize,
}

/// The error of a line of a request file.
fn wrong_line(line: usize, message: &str) -> SettingsError {
    SettingsError::Workload { line, message: message.to_owned() }
}

/// Random numbers of a simulation. Their sequence differs from [`Random::new`]'s for the same seed, so that
/// the arrivals of a simulation and of the load client are independent.
pub fn random(seed: u64) -> Random {
    Random::new(mix(seed).wrapping_add(STEP))
}

/// Random token ids below `vocab`, so that two prompts share a prefix only by chance.
fn tokens(random: &mut Random, count: usize, vocab: usize) -> Arc<[u32]> {
    (0..count).map(|_| (random.bits() % vocab as u64) as u32).collect()
}

impl SyntheticWorkload {
    /// Generates the requests, with token ids below `vocab`. Requests of more than `limit` tokens are cut,
    /// first their answer, then their prompt.
    pub fn generate(&self, vocab: usize, limit: usize) -> Workload {
        let (mut random, mut at, mut cut) = (random(self.seed), 0.0, 0);
        let mut arrivals = Vec::with_capacity(self.requests);
        for _ in 0..self.requests {
            at += self.interval.sample(&mut random);
            let count = |x: f64| (x.round() as usize).max(1);
            let prompt = count(self.prompt.sample(&mut random));
            let answer = count(self.answer.sample(&mut random));
            let fitting = prompt.min(limit.saturating_sub(1)).max(1);
            let rest = answer.min(limit.saturating_sub(fitting)).max(1);
            cut += usize::from((fitting, rest) != (prompt, answer));
            let prompt = tokens(&mut random, fitting, vocab);
            let request = ScriptedRequest::new(prompt, tokens(&mut random, rest, vocab));
            arrivals.push(Arrival { at, request });
        }
        Workload { arrivals, cut }
    }
}

/// Makes answers repeat their prompts from random places on. A token differs from the one repeated with the
/// probability 1 − `acceptance`, so that this share of the drafts by prompt lookup is accepted.
pub fn repeat_prompts(arrivals: &mut [Arrival], acceptance: f64, seed: u64) {
    let mut random = Random::stream(seed, 1);
    for Arrival { request, .. } in arrivals {
        let prompt = &request.request.prompt;
        let first = (random.bits() % prompt.len() as u64) as usize;
        let repeated = prompt.iter().cycle().skip(first);
        let token = |(own, repeated): (&u32, &u32)| {
            if random.uniform() < acceptance { *repeated } else { *own }
        };
        request.answer = request.answer.iter().zip(repeated).map(token).collect();
    }
}

/// Maximum tokens of a prompt or of an answer in a file; also the limit of `--max-num-batched-tokens`.
const MOST_TOKENS: usize = 1 << 24;

/// One request of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    at: f64,
    prompt_tokens: Option<usize>,
    prompt: Option<Vec<u32>>,
    answer_tokens: usize,
    #[serde(default)]
    priority: i32,
}

impl RequestLine {
    /// Builds the request; random tokens stand for those that the line does not contain. Errors name the line
    /// `number`.
    fn arrival(self, number: usize, vocab: usize, random: &mut Random) -> Result<Arrival, SettingsError> {
        let wrong = |message: &str| wrong_line(number, message);
        let most = self.prompt_tokens.unwrap_or_default().max(self.answer_tokens);
        if most > MOST_TOKENS {
            return Err(wrong(&format!(
                "expected at most {MOST_TOKENS} tokens of a prompt or answer, got {most}"
            )));
        }
        let prompt: Arc<[u32]> = match (self.prompt, self.prompt_tokens) {
            (Some(prompt), None) => prompt.into(),
            (None, Some(count)) => tokens(random, count, vocab),
            _ => return Err(wrong("expected `prompt` or `prompt_tokens`")),
        };
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(wrong(&format!("expected token ids below {vocab}, got {id}")));
        }
        if !self.at.is_finite() || prompt.is_empty() || self.answer_tokens == 0 {
            return Err(wrong("expected a time, and at least one token of prompt and answer"));
        }
        let mut request = ScriptedRequest::new(prompt, tokens(random, self.answer_tokens, vocab));
        request.request.priority = self.priority;
        Ok(Arrival { at: self.at, request })
    }
}

/// Parses a request file: JSON Lines or CSV.
///
/// - JSON Lines: `{"at": seconds, "prompt_tokens": n, "answer_tokens": n}` for each request. `"prompt":
///   [ids]` may replace `prompt_tokens`, and `"priority": n` may be added.
/// - CSV: the first line names the columns, as in Azure's public traces:
///   `TIMESTAMP,ContextTokens,GeneratedTokens`.
///
/// Times become seconds since the first request. Tokens that the file does not contain are random, by the
/// seed.
///
/// # Errors
/// A line is not valid.
pub fn parse(text: &str, vocab: usize, seed: u64) -> Result<Vec<Arrival>, SettingsError> {
    let mut random = random(seed);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut lines = lines.map(|(number, line)| (number + 1, line.trim())).peekable();
    let is_json = lines.peek().is_some_and(|(_, line)| line.starts_with('{'));
    let columns = if is_json { None } else { lines.next().map(|(_, line)| Columns::of(line)).transpose()? };
    let mut arrivals = Vec::new();
    for (number, text) in lines {
        let line: RequestLine = match &columns {
            Some(columns) => columns.line(number, text)?,
            None => serde_json::from_str(text).map_err(|e| wrong_line(number, &e.to_string()))?,
        };
        arrivals.push(line.arrival(number, vocab, &mut random)?);
    }
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    let first = arrivals.first().map_or(0.0, |arrival| arrival.at);
    arrivals.iter_mut().for_each(|arrival| arrival.at -= first);
    Ok(arrivals)
}

/// Indices of the columns of a CSV file.
struct Columns {
    at: usize,
    prompt: usize,
    answer: usize,
}

impl Columns {
    fn of(line: &str) -> Result<Self, SettingsError> {
        let names: Vec<String> = line.split(',').map(|name| name.trim().to_lowercase()).collect();
        let find = |known: &[&str]| {
            let at = names.iter().position(|name| known.contains(&name.as_str()));
            at.ok_or_else(|| {
                let message = format!("expected lines of JSON, or a column named {}", known.join(" or "));
                wrong_line(1, &message)
            })
        };
        Ok(Self {
            at: find(&["timestamp", "at"])?,
            prompt: find(&["contexttokens", "prompt_tokens"])?,
            answer: find(&["generatedtokens", "answer_tokens"])?,
        })
    }

    /// Parses the line `number` of the file.
    fn line(&self, number: usize, text: &str) -> Result<RequestLine, SettingsError> {
        let wrong = |message: String| wrong_line(number, &message);
        let cells: Vec<&str> = text.split(',').map(str::trim).collect();
        let cell = |at: usize| {
            cells.get(at).copied().ok_or_else(|| wrong(format!("expected at least {} columns", at + 1)))
        };
        let count = |at: usize| {
            let text = cell(at)?;
            text.parse::<usize>().map_err(|_| wrong(format!("expected a number of tokens, got `{text}`")))
        };
        let at = cell(self.at)?;
        let at =
            seconds(at).ok_or_else(|| wrong(format!("expected seconds or a date and time, got `{at}`")))?;
        let (prompt, answer_tokens) = (count(self.prompt)?, count(self.answer)?);
        Ok(RequestLine { at, prompt_tokens: Some(prompt), prompt: None, answer_tokens, priority: 0 })
    }
}

/// Parses a number of seconds, or a UTC time such as `2023-11-16 18:15:46.68` into seconds since 1970. A time
/// zone is ignored.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let time = time.split(['+', 'Z']).next()?;
    let numbers = |text: &str, by: char| {
        text.split(by).map(|part| part.parse::<f64>().ok()).collect::<Option<Vec<f64>>>()
    };
    let ([year, month, day], [hour, minute, second]) =
        (numbers(date, '-')?.try_into().ok()?, numbers(time, ':')?.try_into().ok()?);
    let (year, month): (f64, f64) = if month > 2.0 { (year, month) } else { (year - 1.0, month + 12.0) };
    let leap_days = (year / 4.0).floor() - (year / 100.0).floor() + (year / 400.0).floor();
    // The year begins in March here: 30.6 days a month, rounded down, then gives the day on which each month
    // begins.
    let days: f64 = 365.0 * year + leap_days + (30.6 * (month + 1.0)).floor() + day - 719_591.0;
    Some(((days * 24.0 + hour) * 60.0 + minute) * 60.0 + second)
}
