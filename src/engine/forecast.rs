//! When a request would have its first token, and how soon a place in the queue is free: what admission goes by.
//!
//! A step takes `base + per_token × tokens`, fitted to the steps that ended, the later ones counting more. Before there
//! are any it is fitted to what the operator's cost model says of a few. A sequence takes as many steps as those that
//! ended lately had tokens. With these three numbers a wait is arithmetic, pure, and the same in virtual time.

use std::time::Duration;

/// What each step leaves of the weight of those before it.
const STEP_DECAY: f64 = 0.99;
/// What each answer's end leaves of the weight of those before it.
const ANSWER_DECAY: f64 = 0.97;
/// Tokens of an answer before one has ended, and for how many answers that counts.
const USUAL_ANSWER: (f64, f64) = (128.0, 1.0);
/// Clients take no heed of a longer time to wait.
const LONGEST_RETRY: f64 = 120.0;

/// Steps and answers as they have been lately.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Weighted sums over steps: 1, tokens, seconds, tokens², tokens × seconds.
    sums: [f64; 5],
    /// Weighted sums over answers: tokens, ends.
    answers: (f64, f64),
}

/// How things stand when a request comes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Requests that would start before it.
    pub ahead: usize,
    /// Tokens of their prompts, and those that sequences which run have still to take in.
    pub tokens: usize,
    /// Its own.
    pub prompt: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that could start now beside them.
    pub places: usize,
    /// Tokens that a step may have.
    pub step_tokens: usize,
    /// Steps in flight.
    pub in_flight: usize,
}

impl Default for Forecast {
    fn default() -> Self {
        Self { sums: [0.0; 5], answers: (USUAL_ANSWER.0 * USUAL_ANSWER.1, USUAL_ANSWER.1) }
    }
}

impl Forecast {
    /// Knows of a few steps what they would take: (tokens, seconds).
    pub fn new(steps: &[(usize, f64)]) -> Self {
        let mut forecast = Self::default();
        steps.iter().for_each(|(tokens, seconds)| forecast.step(*tokens, *seconds));
        forecast
    }

    /// A step of so many tokens took so long.
    pub fn step(&mut self, tokens: usize, seconds: f64) {
        if !(seconds.is_finite() && seconds >= 0.0) {
            return;
        }
        let x = tokens as f64;
        for (sum, value) in self.sums.iter_mut().zip([1.0, x, seconds, x * x, x * seconds]) {
            *sum = *sum * STEP_DECAY + value;
        }
    }

    /// So many tokens were generated since the last call, and so many answers ended.
    pub fn answers(&mut self, tokens: usize, ends: usize) {
        self.answers.0 += tokens as f64;
        self.answers.1 += ends as f64;
        let left = ANSWER_DECAY.powi(i32::try_from(ends).unwrap_or(i32::MAX));
        self.answers = (self.answers.0 * left, self.answers.1 * left);
    }

    /// Seconds of a step, whatever it has, and for each token; both 0 where nothing is known.
    pub fn line(&self) -> (f64, f64) {
        let [n, x, y, xx, xy] = self.sums;
        if n == 0.0 {
            return (0.0, 0.0);
        }
        let spread = n * xx - x * x;
        // Steps all alike say nothing of what a token adds.
        let slope = if spread > 1e-6 * n * xx { (n * xy - x * y) / spread } else { 0.0 };
        let slope = slope.clamp(0.0, if x > 0.0 { y / x } else { 0.0 });
        ((y - slope * x) / n, slope)
    }

    /// Seconds that a step of so many tokens should take; `None` before anything is known.
    pub fn step_takes(&self, tokens: usize) -> Option<f64> {
        let (base, per_token) = self.line();
        (self.sums[0] > 0.0).then_some(base + per_token * tokens as f64)
    }

    /// Seconds that such a step should take at most, as far as is known: where it has more tokens than those that ended
    /// had, all that they took may have been for their tokens, even if the line says otherwise. `None` before anything is
    /// known.
    pub fn step_takes_at_most(&self, tokens: usize) -> Option<f64> {
        let [n, x, y, ..] = self.sums;
        // Of the mean step, whose tokens are x / n.
        let times = if x > 0.0 { (tokens as f64 * n / x).max(1.0) } else { 1.0 };
        self.step_takes(tokens).map(|line| line.max(times * y / n))
    }

    /// Tokens of an answer.
    pub fn answer_tokens(&self) -> f64 {
        (self.answers.0 / self.answers.1).max(1.0)
    }

    /// Seconds until the request has its first token; 0 where nothing is known.
    ///
    /// It starts when those ahead have started and there is a place for it. When all places are taken, of `running + places`
    /// sequences one ends every `answer_tokens` divided by that many steps; prompts ahead share these steps. Then come the
    /// steps of its own prompt. Steps in flight come first: requests are taken when one has just ended.
    pub fn first_token(&self, load: &Load) -> f64 {
        let (base, per_token) = self.line();
        let decodes = load.running as f64;
        let room = (load.step_tokens as f64 - decodes).max(1.0);
        let short = (load.ahead + 1).saturating_sub(load.places) as f64;
        let taken = load.running + load.places;
        let turns = if taken == 0 { 0.0 } else { short * self.answer_tokens() / taken as f64 };
        let before = turns.max((load.tokens as f64 / room).floor());
        let left = (load.tokens as f64 - before * room).max(0.0);
        let own = ((load.prompt as f64 + left) / room).ceil().max(1.0);
        let steps = before + own;
        let fed = load.tokens as f64 + load.prompt as f64 + decodes * steps;
        let planned = load.in_flight as f64;
        let busy = base + per_token * (decodes + (load.tokens as f64).min(room));
        planned * busy + steps * base + fed * per_token
    }

    /// Seconds until another sequence ends, where so many run; 0 where nothing is known.
    pub fn next_end(&self, running: usize) -> f64 {
        let (base, per_token) = self.line();
        let step = base + per_token * running as f64;
        if running == 0 { step } else { step * self.answer_tokens() / running as f64 }
    }
}

/// Whole seconds after which to try again, from what is predicted: at least one, and no more than clients heed.
pub fn retry_after(seconds: f64) -> Duration {
    Duration::from_secs(seconds.ceil().clamp(1.0, LONGEST_RETRY) as u64)
}
