//! The clock beside the turns: what steps took, who pays for it, and what it says of the steps to come. It is told the
//! time, so that it is the same beside a clock that jumps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::StepEvent;
use super::stats::Outlook;
use super::usage::StepCosts;
use super::{EngineMetrics, Forecast, KeyCounters, Pipeline, Stats};
use crate::request::{Cost, Update};
use crate::scheduler::RequestId;
use crate::scheduler::step_plan::StepPlan;

/// What is known of time; told of each moment of a turn as it passes.
pub struct StepClock {
    meters: EngineMetrics,
    account: StepCosts,
    forecast: Forecast,
    /// Seconds that a step may take before anything is known of steps.
    unknown_step: f64,
    /// What a step may take at all.
    longest_step: Duration,
    last_step: Option<Instant>,
    busy_since: Option<Instant>,
    /// Since when the results of a step have been there without another launch.
    results_since: Option<Instant>,
    /// When results came that have not been accounted for.
    results_seen: Option<Instant>,
    /// When the step that is being launched was.
    launching: Option<Instant>,
    /// Steps in flight, and one whose results have come and are not accounted for.
    launched: VecDeque<Launched>,
}

/// A step, as it was launched.
struct Launched {
    tokens: usize,
    /// Seconds that it should take, if anybody can tell.
    expected: Option<f64>,
    /// Seconds that it should take at most.
    at_most: f64,
}

impl StepClock {
    /// With nothing to do.
    pub fn new(
        forecast: Forecast,
        (unknown_step, longest_step): (Duration, Duration),
        meters: EngineMetrics,
    ) -> Self {
        Self {
            meters,
            account: StepCosts::default(),
            forecast,
            unknown_step: unknown_step.as_secs_f64(),
            longest_step,
            last_step: None,
            busy_since: None,
            results_since: None,
            results_seen: None,
            launching: None,
            launched: VecDeque::new(),
        }
    }

    /// A moment of a turn.
    pub fn see(&mut self, pipeline: &Pipeline, moment: StepEvent<'_>, now: Instant) {
        match moment {
            StepEvent::Launching => self.launching = Some(now),
            StepEvent::Launched(plan, predicted) => self.launched(pipeline, plan, predicted, now),
            // The device has its steps: what this takes it does not see.
            StepEvent::Telling(updates) => {
                self.catch_up();
                self.charge(updates, now);
                self.account.hold(pipeline.scheduler().holdings(), now);
            }
            StepEvent::Results => {
                (self.last_step, self.results_since, self.results_seen) = (Some(now), Some(now), Some(now));
            }
        }
    }

    fn launched(&mut self, pipeline: &Pipeline, plan: &StepPlan, predicted: Option<Duration>, now: Instant) {
        let began = self.launching.take().unwrap_or(now);
        let idle_since = self.results_since.or(self.busy_since).filter(|_| pipeline.in_flight() == 1);
        self.meters.idle.observe(idle_since.map_or(0.0, |since| (began - since).as_secs_f64()));
        if let Some(results) = self.results_since.take() {
            self.meters.host.observe((now - results).as_secs_f64());
        }
        let tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
        self.meters.tokens.observe(tokens as f64);
        // Whoever executes steps knows best, or else those that have been.
        let predicted = predicted.map(|time| time.as_secs_f64());
        let expected = predicted.or_else(|| self.forecast.step_takes(tokens));
        let at_most = predicted.or_else(|| self.forecast.step_takes_at_most(tokens));
        let at_most = at_most.unwrap_or(self.unknown_step);
        self.launched.push_back(Launched { tokens, expected, at_most });
        self.account.launched(plan, pipeline.scheduler().owners(), began, expected);
    }

    /// Accounts for results that have come.
    fn catch_up(&mut self) {
        if let Some(results) = self.results_seen.take() {
            self.results(results);
        }
    }

    /// The results of the earliest step came at this time: how long did it take?
    fn results(&mut self, now: Instant) {
        let before = self.account.totals();
        let took = self.account.results(now);
        let totals = self.account.totals();
        let meters = &self.meters;
        meters.step.observe(took);
        meters.prefill.inc_by(totals.prefill - before.prefill);
        meters.decode.inc_by(totals.decode - before.decode);
        meters.kv_block_seconds.inc_by(totals.kv_block_seconds - meters.kv_block_seconds.get());
        meters.recomputed.inc_by(totals.recomputed_tokens - meters.recomputed.get());
        let Some(Launched { tokens, expected, .. }) = self.launched.pop_front() else { return };
        self.forecast.step(tokens, took);
        if let Some(expected) = expected.filter(|seconds| *seconds > 0.0) {
            self.meters.ratio.observe(took / expected);
        }
    }

    /// What was drawn is charged to whom it was drawn for.
    fn charge(&mut self, updates: &mut [(RequestId, Update)], now: Instant) {
        let (mut tokens, mut ended) = (0, 0);
        for (id, update) in updates {
            tokens += usize::from(update.token.is_some());
            update.cost = self.account.cost(*id, update.token.is_some());
            update.made = self.last_step;
            if update.finish.is_some() {
                ended += 1;
                update.cost = self.close(*id, now);
            }
        }
        self.forecast.answers(tokens, ended);
    }

    /// A request has been taken.
    pub fn open(
        &mut self,
        id: RequestId,
        prompt: usize,
        submitted: Instant,
        payer: Option<Arc<KeyCounters>>,
    ) {
        self.account.open(id, prompt, submitted, payer);
    }

    /// A request has ended, or its client has left. Returns what it has cost.
    pub fn close(&mut self, id: RequestId, now: Instant) -> Cost {
        // Or it would pay in advance for a step that has ended, and for its blocks twice.
        self.catch_up();
        self.account.close(id, now)
    }

    /// There is something to do. Returns since when.
    pub fn busy(&mut self, now: Instant) -> Option<Instant> {
        self.busy_since.get_or_insert(now);
        self.busy_since
    }

    /// There is nothing to do.
    pub fn rest(&mut self) {
        (self.busy_since, self.results_since) = (None, None);
        self.account.rest();
    }

    /// What the steps in flight should take each, at most; 0 where nobody can tell.
    pub fn expected_step(&self) -> Duration {
        let longest = self.launched.iter().map(|step| step.at_most).fold(0.0, f64::max);
        Duration::try_from_secs_f64(longest).unwrap_or(Duration::MAX).min(self.longest_step)
    }

    /// What to expect.
    pub fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    /// How things stand.
    pub fn stats(&self, pipeline: &Pipeline) -> Stats {
        let counts = pipeline.scheduler().counts();
        Stats {
            in_flight: pipeline.in_flight(),
            last_step: self.last_step,
            busy_since: self.busy_since,
            expected_step: self.expected_step(),
            next_end: self.forecast.next_end(counts.running),
            outlook: Outlook::new(pipeline, &self.forecast),
            counts,
            failed: None,
        }
    }
}
