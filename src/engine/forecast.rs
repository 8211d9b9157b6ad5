//! Predicts when a request gets its first token, and when the next sequence ends. Admission uses both
//! predictions. Limits the prompt tokens of a step, so that running streams do not wait long for it.
//!
//! A step takes `base + per_token × tokens` seconds. The two coefficients are fitted to the steps so far by
//! weighted least squares; later steps weigh more. Before the first step they are fitted to a few steps of
//! the operator's cost model, if there is one. A sequence is expected to take as many steps as recently ended
//! answers had tokens. Every prediction is computed from these three numbers without reading a clock, so
//! predictions also work in virtual time.

use std::fmt;

/// Factor by which each step lowers the weight of all earlier steps.
const STEP_DECAY: f64 = 0.99;
/// Factor by which each ended answer lowers the weight of all earlier answers.
const ANSWER_DECAY: f64 = 0.97;
/// Expected tokens of an answer before any has ended, and the number of ended answers that this value counts
/// as.
const USUAL_ANSWER: (f64, f64) = (128.0, 1.0);

/// Prompt tokens that a step may have whatever the target is, and the unit of its limit. A step of few tokens
/// takes about as long with fewer: it reads the weights.
const LEAST_PROMPT_TOKENS: usize = 32;
/// With [`TargetItl::Auto`] and many waiting prompts, they are computed at least at this share of the tokens
/// per second of the longest step.
const AUTO_SHARE: f64 = 0.95;
/// With [`TargetItl::Auto`], steps are short if they compute all waiting prompts within this many seconds.
const LIGHT_LOAD: f64 = 1.0;

/// Target for the inter-token latency of running streams. Prompts are split into chunks so that a step beside
/// streams is predicted to take no longer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum TargetItl {
    /// Steps twice as long as one without prompts, if they compute all waiting prompts within a second.
    /// Otherwise the shortest steps that compute prompts at 95 % of the tokens per second of the longest.
    #[default]
    Auto,
    /// No target: steps have as many prompt tokens as fit.
    Off,
    /// Seconds of a step.
    Seconds(f64),
}

impl fmt::Display for TargetItl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Seconds(seconds) => write!(f, "{seconds}"),
        }
    }
}

/// Recent step times and answer lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Weighted sums over steps of 1, tokens, seconds, tokens² and tokens × seconds.
    sums: [f64; 5],
    /// Weighted sums of generated tokens and of ended answers.
    answers: (f64, f64),
    target_itl: TargetItl,
}

/// The queue and the running sequences that a new request finds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct QueueState {
    /// Requests that start before the new request.
    pub requests_ahead: usize,
    /// Prompt tokens of these requests, plus the prompt tokens of running sequences that no step has planned
    /// yet.
    pub tokens_ahead: usize,
    /// Prompt tokens of the new request.
    pub prompt_tokens: usize,
    /// Running sequences.
    pub running: usize,
    /// Sequences that could start now beside the running ones.
    pub can_start: usize,
    /// The most tokens of a step.
    pub step_tokens: usize,
    /// Steps in flight.
    pub steps_in_flight: usize,
}

/// The prompts that wait, and the sequences that generate, when a step is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLoad {
    /// Sequences that generate.
    pub decodes: usize,
    /// Prompt tokens of waiting and running sequences that no step has planned yet.
    pub waiting_tokens: usize,
    /// The most tokens of a step.
    pub step_tokens: usize,
}

impl Default for Forecast {
    fn default() -> Self {
        let answers = (USUAL_ANSWER.0 * USUAL_ANSWER.1, USUAL_ANSWER.1);
        Self { sums: [0.0; 5], answers, target_itl: TargetItl::Off }
    }
}

impl Forecast {
    /// Creates a forecast from a few known steps, each given as (tokens, seconds).
    pub fn new(steps: &[(usize, f64)]) -> Self {
        let mut forecast = Self::default();
        steps.iter().for_each(|(tokens, seconds)| forecast.step(*tokens, *seconds));
        forecast
    }

    /// The same forecast of an engine with this target.
    pub fn with_target_itl(self, target_itl: TargetItl) -> Self {
        Self { target_itl, ..self }
    }

    /// Adds a step of `tokens` tokens that took `seconds`. Ignores times that are negative or not finite.
    pub fn step(&mut self, tokens: usize, seconds: f64) {
        if !(seconds.is_finite() && seconds >= 0.0) {
            return;
        }
        let x = tokens as f64;
        for (sum, value) in self.sums.iter_mut().zip([1.0, x, seconds, x * x, x * seconds]) {
            *sum = *sum * STEP_DECAY + value;
        }
    }

    /// Adds tokens generated and answers ended since the last call.
    pub fn answers(&mut self, tokens: usize, ends: usize) {
        self.answers.0 += tokens as f64;
        self.answers.1 += ends as f64;
        let left = ANSWER_DECAY.powi(i32::try_from(ends).unwrap_or(i32::MAX));
        self.answers = (self.answers.0 * left, self.answers.1 * left);
    }

    /// The coefficients `base` and `per_token` in seconds; both 0 while nothing is known.
    pub fn coefficients(&self) -> (f64, f64) {
        let [n, x, y, xx, xy] = self.sums;
        if n == 0.0 {
            return (0.0, 0.0);
        }
        let spread = n * xx - x * x;
        // Steps with equal numbers of tokens do not determine a slope.
        let slope = if spread > 1e-6 * n * xx { (n * xy - x * y) / spread } else { 0.0 };
        let slope = slope.clamp(0.0, if x > 0.0 { y / x } else { 0.0 });
        ((y - slope * x) / n, slope)
    }

    /// Expected seconds of a step with this many tokens; `None` while nothing is known.
    pub(crate) fn step_takes(&self, tokens: usize) -> Option<f64> {
        let (base, per_token) = self.coefficients();
        (self.sums[0] > 0.0).then_some(base + per_token * tokens as f64)
    }

    /// Upper bound in seconds for a step with this many tokens; `None` while nothing is known. The bound is
    /// the larger of two times: that of the fitted line, and that of the mean step, multiplied by the ratio
    /// of tokens if this step has more tokens than the mean step.
    pub(crate) fn step_takes_at_most(&self, tokens: usize) -> Option<f64> {
        let [n, x, y, ..] = self.sums;
        // The step's tokens divided by x / n, the tokens of the mean step.
        let times = if x > 0.0 { (tokens as f64 * n / x).max(1.0) } else { 1.0 };
        self.step_takes(tokens).map(|line| line.max(times * y / n))
    }

    /// The most prompt tokens of the next step if it also generates for running sequences: a multiple of 32,
    /// or `None` for no limit.
    pub fn prompt_tokens(&self, load: &PromptLoad) -> Option<usize> {
        let (base, per_token) = self.coefficients();
        if per_token <= 0.0 {
            return None;
        }
        let decodes = load.decodes as f64;
        let tokens = match self.target_itl {
            TargetItl::Off => return None,
            TargetItl::Seconds(target) => (target - base) / per_token - decodes,
            TargetItl::Auto => {
                let decode_step = base + per_token * decodes;
                // Tokens that make the step twice as long as one that only generates.
                let short = (decode_step / per_token).max(LEAST_PROMPT_TOKENS as f64);
                let steps = load.waiting_tokens as f64 / short;
                let is_light = steps * (decode_step + per_token * short) <= LIGHT_LOAD;
                if is_light { short } else { short.max(self.efficient_chunk(load.step_tokens)) }
            }
        };
        // The cast turns what is below 0 into 0.
        let chunks = (tokens as usize / LEAST_PROMPT_TOKENS).max(1);
        Some(chunks.saturating_mul(LEAST_PROMPT_TOKENS)).filter(|tokens| *tokens < load.step_tokens)
    }

    /// Tokens of the shortest chunks that compute a prompt at [`AUTO_SHARE`] of the tokens per second that
    /// chunks of `step_tokens` tokens give. In chunks of n tokens, a token takes base / n + per_token
    /// seconds.
    fn efficient_chunk(&self, step_tokens: usize) -> f64 {
        let (base, per_token) = self.coefficients();
        let longest = base / step_tokens as f64 + per_token;
        let chunk = base / (longest / AUTO_SHARE - per_token);
        (chunk / LEAST_PROMPT_TOKENS as f64).ceil() * LEAST_PROMPT_TOKENS as f64
    }

    /// Expected tokens of an answer; at least 1.
    pub fn answer_tokens(&self) -> f64 {
        (self.answers.0 / self.answers.1).max(1.0)
    }

    /// Expected seconds until the request has its first token; 0 while nothing is known.
    ///
    /// The request starts when those ahead have started and a slot with blocks is free. Once all slots are
    /// taken, `running + can_start` sequences run, and one of them ends every `answer_tokens` / (`running` +
    /// `can_start`) steps. The same steps compute the prompts ahead. The steps of the request's own prompt
    /// follow. Steps in flight come first. They count in full, since the engine takes new requests when a
    /// step has just ended.
    pub fn first_token(&self, queue: &QueueState) -> f64 {
        let (base, per_token) = self.coefficients();
        let decodes = queue.running as f64;
        let (tokens_ahead, prompt) = (queue.tokens_ahead as f64, queue.prompt_tokens as f64);
        let load = PromptLoad {
            decodes: queue.running,
            waiting_tokens: queue.tokens_ahead + queue.prompt_tokens,
            step_tokens: queue.step_tokens,
        };
        let limit = self.prompt_tokens(&load).filter(|_| queue.running > 0);
        let prefill_tokens = (queue.step_tokens as f64 - decodes).max(1.0);
        let prefill_tokens = limit.map_or(prefill_tokens, |limit| prefill_tokens.min(limit as f64));
        let must_end = (queue.requests_ahead + 1).saturating_sub(queue.can_start) as f64;
        let most_running = queue.running + queue.can_start;
        let steps_until_ended =
            if most_running == 0 { 0.0 } else { must_end * self.answer_tokens() / most_running as f64 };
        let steps_before = steps_until_ended.max((tokens_ahead / prefill_tokens).floor());
        let tokens_left = (tokens_ahead - steps_before * prefill_tokens).max(0.0);
        let own_steps = ((prompt + tokens_left) / prefill_tokens).ceil().max(1.0);
        let steps = steps_before + own_steps;
        let tokens_fed = tokens_ahead + prompt + decodes * steps;
        let step_in_flight = base + per_token * (decodes + tokens_ahead.min(prefill_tokens));
        queue.steps_in_flight as f64 * step_in_flight + steps * base + tokens_fed * per_token
    }

    /// Expected seconds until one of `running` sequences ends; 0 while nothing is known.
    pub fn next_end(&self, running: usize) -> f64 {
        let (base, per_token) = self.coefficients();
        let step = base + per_token * running as f64;
        if running == 0 { step } else { step * self.answer_tokens() / running as f64 }
    }
}
