//! What the engine last said about itself: a snapshot behind a mutex that is held for a copy and never longer, so
//! that a health check neither waits for a step nor delays one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pipeline;
use super::forecast::{Forecast, Load};
use crate::request::{Request, Tenant};
use crate::scheduler::Counts;

/// How long a request would wait at least, from what the engine's thread last said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outlook {
    /// Steps as they have been.
    pub forecast: Forecast,
    /// What anyone would find at least.
    pub least: Load,
    /// Those that wait, and their tenant and priority, where those of all are the same.
    pub line: Option<Line>,
}

/// Those that wait.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Of all of them.
    pub tenant: Arc<str>,
    /// Of all of them.
    pub priority: i32,
    /// How many.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: usize,
}

impl Outlook {
    /// From how things stand.
    pub fn new(pipeline: &Pipeline, forecast: &Forecast) -> Self {
        let counts = pipeline.scheduler().counts();
        let line = pipeline.scheduler().only_line().map(|(tenant, priority)| Line {
            tenant: Arc::clone(tenant),
            priority: *priority,
            requests: counts.waiting,
            tokens: counts.waiting_tokens,
        });
        Self { forecast: forecast.clone(), least: pipeline.least_load(), line }
    }

    /// What a request of this tenant and priority waits, however short its prompt; 0 where nothing is known.
    pub fn at_least(&self, tenant: &Tenant, priority: i32) -> Wait {
        let mut load = self.least;
        if let Some(line) = &self.line
            && (line.priority < priority || line.priority == priority && line.tenant == tenant.name)
        {
            (load.ahead, load.tokens) = (line.requests, line.tokens);
        }
        let first = self.forecast.first_token(&load);
        let idle = Load { step_tokens: load.step_tokens, ..Load::default() };
        Wait { first, whole: first, alone: self.forecast.first_token(&idle) }
    }
}

/// Seconds that a group must wait.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wait {
    /// Until its first token.
    pub first: f64,
    /// Until all its answers can be there at the earliest: the last has its first token, and as many more as it must have.
    pub whole: f64,
    /// The same on a server with nothing else to do.
    pub alone: f64,
}

impl Wait {
    /// Of a group that comes now; 0 where nothing is known.
    pub fn of<'a>(
        group: impl Iterator<Item = &'a Request>,
        pipeline: &Pipeline,
        forecast: &Forecast,
    ) -> Self {
        let group: Vec<&Request> = group.collect();
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Self::default() };
        // Choices of one prompt find it cached.
        let prompts = group.chunk_by(|one, next| Arc::ptr_eq(&one.prompt, &next.prompt));
        let tokens: usize = prompts.map(|same| same[0].prompt.len()).sum();
        let behind = |load: Load| Load {
            ahead: load.ahead + group.len() - 1,
            tokens: load.tokens + tokens - last.prompt.len(),
            prompt: last.prompt.len(),
            ..load
        };
        let rest = f64::from(last.sampling.min_tokens.saturating_sub(1));
        let whole = |load: &Load| {
            let step = forecast.step_takes(load.running + 1).unwrap_or(0.0);
            forecast.first_token(load) + rest * step
        };
        let load = pipeline.load(first);
        let config = pipeline.scheduler().config();
        let idle = Load { places: config.max_num_seqs, step_tokens: load.step_tokens, ..Load::default() };
        Self { first: forecast.first_token(&load), whole: whole(&behind(load)), alone: whole(&behind(idle)) }
    }
}

/// The engine at the end of its last step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// The scheduler's queue, blocks and totals.
    pub counts: Counts,
    /// Steps enqueued and not collected.
    pub in_flight: usize,
    /// When a step was last collected; `None` before the first.
    pub last_step: Option<Instant>,
    /// Since when there has been work without a pause; `None` while idle. Work that is pending while `last_step`
    /// and this are both long past means that the device hangs.
    pub busy_since: Option<Instant>,
    /// What the steps in flight are expected to take each, at most; 0 where nobody can tell.
    pub expected_step: Duration,
    /// Seconds until another sequence is predicted to end; 0 where nobody can tell.
    pub next_end: f64,
    /// What a first token is predicted from before it is known how long its prompt is.
    pub outlook: Outlook,
    /// Why the engine failed. Once set it stays, and every submit gets [`crate::request::Reject::EngineDown`].
    pub failed: Option<String>,
}

impl Stats {
    /// Whether any request runs or waits.
    pub fn pending(&self) -> bool {
        self.busy_since.is_some()
    }
}
