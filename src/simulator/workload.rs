//! Requests to simulate: drawn from distributions with a seed, or read from a file.

use std::sync::Arc;

use serde::Deserialize;

use super::virtual_time::Ask;
use crate::random::{Random, STEP, mix};

/// A number that varies: gamma distributed, or fixed with a coefficient of variation of 0. With one of 1 it is
/// exponential, and times between arrivals make a Poisson process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Its mean.
    pub mean: f64,
    /// Standard deviation by mean.
    pub cv: f64,
}

/// A request with the time at which it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Seconds from the beginning.
    pub at: f64,
    /// What comes.
    pub ask: Ask,
}

/// Requests to be drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Synthetic {
    /// How many.
    pub requests: usize,
    /// Seconds from one to the next.
    pub interval: Spread,
    /// Tokens of a prompt.
    pub prompt: Spread,
    /// Tokens of an answer.
    pub answer: Spread,
    /// Everything drawn is a function of this.
    pub seed: u64,
}

/// What is drawn for a simulation.
#[derive(Debug, Clone)]
pub struct Draws(Random);

impl Draws {
    /// The sequence of this seed. It is another than [`Random`]'s own, so that arrivals of the load client and of a
    /// simulation with the same seed have nothing in common.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(mix(seed).wrapping_add(STEP)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    fn of(&mut self, spread: Spread) -> f64 {
        if spread.cv == 0.0 {
            return spread.mean;
        }
        let variance = spread.cv * spread.cv;
        self.0.gamma(1.0 / variance) * spread.mean * variance
    }

    /// Random tokens below `vocab`: no two prompts begin alike but by chance.
    fn tokens(&mut self, count: usize, vocab: usize) -> Arc<[u32]> {
        (0..count).map(|_| (self.bits() % vocab as u64) as u32).collect()
    }

    fn ask(&mut self, prompt: usize, answer: usize, vocab: usize) -> Ask {
        Ask::new(self.tokens(prompt, vocab), self.tokens(answer, vocab))
    }
}

impl Synthetic {
    /// Draws them, with ids below `vocab`. Those longer than `limit` tokens are cut, first the answer; how many were is
    /// also said.
    pub fn draw(&self, vocab: usize, limit: usize) -> (Vec<Arrival>, usize) {
        let (mut draws, mut at, mut cut) = (Draws::new(self.seed), 0.0, 0);
        let mut arrivals = Vec::with_capacity(self.requests);
        for _ in 0..self.requests {
            at += draws.of(self.interval);
            let tokens = |x: f64| (x.round() as usize).max(1);
            let (prompt, answer) = (tokens(draws.of(self.prompt)), tokens(draws.of(self.answer)));
            let fitting = prompt.min(limit.saturating_sub(1)).max(1);
            let rest = answer.min(limit.saturating_sub(fitting)).max(1);
            cut += usize::from((fitting, rest) != (prompt, answer));
            arrivals.push(Arrival { at, ask: draws.ask(fitting, rest, vocab) });
        }
        (arrivals, cut)
    }
}

/// A line of a trace in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at: f64,
    prompt_tokens: Option<usize>,
    prompt: Option<Vec<u32>>,
    answer_tokens: usize,
    #[serde(default)]
    priority: i32,
}

/// Reads a trace: a line of JSON for each request, `{"at": seconds, "prompt_tokens": n, "answer_tokens": n}`, or
/// `"prompt": [ids]` in place of the number, and `"priority": n` where it is not 0; or CSV whose first line names the columns, as those of Azure's public
/// traces: `TIMESTAMP,ContextTokens,GeneratedTokens`. Times become seconds since the first request. Prompts that are not
/// given are drawn with the seed.
///
/// # Errors
/// What is wrong, by the line's number.
pub fn parse(text: &str, vocab: usize, seed: u64) -> Result<Vec<Arrival>, String> {
    let mut draws = Draws::new(seed);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut lines = lines.map(|(number, line)| (number + 1, line.trim())).peekable();
    let is_json = lines.peek().is_some_and(|(_, line)| line.starts_with('{'));
    let columns = if is_json { None } else { lines.next().map(|(_, line)| Columns::of(line)).transpose()? };
    let mut arrivals = Vec::new();
    for (number, line) in lines {
        let wrong = |e: String| format!("line {number}: {e}");
        let line = match &columns {
            Some(columns) => columns.line(line).map_err(wrong)?,
            None => serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?,
        };
        let mut ask = match (line.prompt, line.prompt_tokens) {
            (Some(prompt), None) => {
                if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
                    return Err(wrong(format!("expected token ids below {vocab}, got {id}")));
                }
                Ask::new(prompt.into(), draws.tokens(line.answer_tokens, vocab))
            }
            (None, Some(tokens)) => draws.ask(tokens, line.answer_tokens, vocab),
            _ => return Err(wrong("expected `prompt` or `prompt_tokens`".to_owned())),
        };
        if !line.at.is_finite() || ask.request.prompt.is_empty() || ask.answer.is_empty() {
            return Err(wrong("expected a time, and at least one token of prompt and answer".to_owned()));
        }
        ask.request.priority = line.priority;
        arrivals.push(Arrival { at: line.at, ask });
    }
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    let first = arrivals.first().map_or(0.0, |arrival| arrival.at);
    arrivals.iter_mut().for_each(|arrival| arrival.at -= first);
    Ok(arrivals)
}

/// Where a CSV file has what.
struct Columns {
    at: usize,
    prompt: usize,
    answer: usize,
}

impl Columns {
    fn of(line: &str) -> Result<Self, String> {
        let names: Vec<String> = line.split(',').map(|name| name.trim().to_lowercase()).collect();
        let find = |known: &[&str]| {
            let at = names.iter().position(|name| known.contains(&name.as_str()));
            at.ok_or_else(|| {
                format!("line 1: expected lines of JSON, or a column named {}", known.join(" or "))
            })
        };
        Ok(Self {
            at: find(&["timestamp", "at"])?,
            prompt: find(&["contexttokens", "prompt_tokens"])?,
            answer: find(&["generatedtokens", "answer_tokens"])?,
        })
    }

    fn line(&self, line: &str) -> Result<Line, String> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |at: usize| cells.get(at).copied().ok_or_else(|| format!("expected {} columns", at + 1));
        let count = |at: usize| {
            let text = cell(at)?;
            text.parse::<usize>().map_err(|_| format!("expected a number of tokens, got `{text}`"))
        };
        let at = cell(self.at)?;
        let at = seconds(at).ok_or_else(|| format!("expected seconds or a date and time, got `{at}`"))?;
        let (prompt, answer_tokens) = (count(self.prompt)?, count(self.answer)?);
        Ok(Line { at, prompt_tokens: Some(prompt), prompt: None, answer_tokens, priority: 0 })
    }
}

/// A number of seconds, or `2023-11-16 18:15:46.68`, in UTC whatever follows, as seconds since 1970.
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
    // Of the months from March on, which begin as far apart as this formula says.
    let days: f64 = 365.0 * year + leap_days + (30.6 * (month + 1.0)).floor() + day - 719_591.0;
    Some(((days * 24.0 + hour) * 60.0 + minute) * 60.0 + second)
}
