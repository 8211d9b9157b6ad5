//! Times of steps: charges each step to its requests, writes the step metrics, and predicts later steps. It
//! reads no clock: [`super::EngineCore`] gives every time, so that it works the same in virtual time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::forecast::Forecast;
use super::metrics::EngineMetrics;
use super::options::EngineOptions;
use super::usage::{DeviceTotals, ExpectedTime, LaunchedStep, StepCosts};
use crate::request::{Cost, Update};
use crate::scheduler::step_plan::{Row, StepPlan};
use crate::scheduler::{PlannedRows, RequestId};

/// A launched step whose output has not been collected.
pub(super) struct InFlightStep {
    /// The part that the scheduler takes back.
    pub(super) rows: PlannedRows,
    /// Its times, and the shares of its requests.
    pub(super) launched: LaunchedStep,
}

/// The times of one launch.
pub(super) struct LaunchTimes {
    /// The time just before the engine passed the step to the executor.
    pub(super) began: Instant,
    /// The time just after the engine passed the step to the executor.
    pub(super) ended: Instant,
    /// The executor's prediction of the step's device time, if it makes one.
    pub(super) predicted: Option<Duration>,
    /// Whether no other step was in flight.
    pub(super) device_idle: bool,
}

/// The result of [`super::EngineCore::publish`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Published {
    /// Tokens published.
    pub tokens: usize,
    /// Requests that ended, with their costs.
    pub finished: Vec<(RequestId, Cost)>,
}

/// Times, costs and predictions of steps.
pub(super) struct StepClock {
    metrics: EngineMetrics,
    pub(super) costs: StepCosts,
    pub(super) forecast: Forecast,
    /// Seconds that a step may take while no step time is known.
    unknown_step: f64,
    /// Upper bound of every expected step time.
    longest_step: Duration,
    /// When results last came.
    pub(super) last_step: Option<Instant>,
    /// The start of the current period of work.
    pub(super) busy_since: Option<Instant>,
    /// When results came that no launch has followed yet.
    results_since: Option<Instant>,
    /// The step collected last and the time of its results, until the step is charged.
    uncharged: Option<(LaunchedStep, Instant)>,
}

impl StepClock {
    pub(super) fn new(options: &EngineOptions) -> Self {
        Self {
            metrics: options.metrics.clone(),
            costs: StepCosts::default(),
            forecast: options.forecast.clone(),
            unknown_step: options.unknown_step.as_secs_f64(),
            longest_step: options.longest_step,
            last_step: None,
            busy_since: None,
            results_since: None,
            uncharged: None,
        }
    }

    /// Records a launch. `request_ids` are the requests of the plan's rows.
    pub(super) fn launched(
        &mut self,
        plan: &StepPlan,
        request_ids: impl Iterator<Item = RequestId>,
        times: &LaunchTimes,
    ) -> LaunchedStep {
        let LaunchTimes { began, ended, predicted, device_idle } = *times;
        let idle_since = self.results_since.or(self.busy_since).filter(|_| device_idle);
        self.metrics.idle.observe(idle_since.map_or(0.0, |since| (began - since).as_secs_f64()));
        if let Some(results) = self.results_since.take() {
            self.metrics.host.observe((ended - results).as_secs_f64());
        }
        let tokens: usize = plan.rows.iter().map(Row::most_tokens).sum();
        self.metrics.tokens.observe(tokens as f64);
        // The executor's prediction is better than one from earlier steps.
        let predicted = predicted.map(|time| time.as_secs_f64());
        let expected = predicted.or_else(|| self.forecast.step_takes(tokens));
        let at_most = predicted.or_else(|| self.forecast.step_takes_at_most(tokens));
        let time = ExpectedTime { expected, at_most: at_most.unwrap_or(self.unknown_step) };
        self.costs.launch(plan, request_ids, began, time)
    }

    /// Records that a step's results came at `now`. The device may be waiting for the next step, so the
    /// charging is left to [`Self::charge_collected`].
    pub(super) fn collected(&mut self, step: LaunchedStep, now: Instant) {
        self.charge_collected();
        (self.last_step, self.results_since) = (Some(now), Some(now));
        self.uncharged = Some((step, now));
    }

    /// Counts a step's wait for masks; 0 if none was late.
    pub(super) fn waited_for_masks(&self, wait: Duration) {
        if !wait.is_zero() {
            self.metrics.late_masks.inc();
            self.metrics.mask_wait.inc_by(wait.as_secs_f64());
        }
    }

    /// Charges the step collected last, if that has not been done.
    pub(super) fn charge_collected(&mut self) {
        let Some((step, results_at)) = self.uncharged.take() else { return };
        let before = self.costs.totals();
        let took = self.costs.charge_step(&step, results_at);
        let totals = self.costs.totals();
        let metrics = &self.metrics;
        metrics.step.observe(took);
        metrics.prefill.inc_by(totals.prefill - before.prefill);
        metrics.decode.inc_by(totals.decode - before.decode);
        metrics.kv_block_seconds.inc_by(totals.kv_block_seconds - metrics.kv_block_seconds.get());
        metrics.recomputed.inc_by(totals.recomputed_tokens - metrics.recomputed.get());
        self.forecast.step(step.tokens, took);
        if let Some(expected) = step.expected.filter(|seconds| *seconds > 0.0) {
            metrics.ratio.observe(took / expected);
        }
    }

    /// Writes costs and times into updates that are about to be published, and closes the usage of requests
    /// that ended.
    pub(super) fn charge_updates(
        &mut self,
        updates: &mut [(RequestId, Update)],
        in_flight: &VecDeque<InFlightStep>,
        now: Instant,
    ) -> Published {
        self.charge_collected();
        let mut published = Published::default();
        // Answers of batches do not change what live requests are predicted to take.
        let (mut live_tokens, mut live_ends) = (0, 0);
        for (id, update) in updates {
            published.tokens += update.tokens.len();
            if !self.costs.is_of_batch(*id) {
                live_tokens += update.tokens.len();
                live_ends += usize::from(update.finish.is_some());
            }
            update.cost = self.costs.add_generated(*id, update.tokens.len());
            update.made = self.last_step;
            if update.finish.is_some() {
                update.cost = self.close(*id, in_flight, now);
                published.finished.push((*id, update.cost));
            }
        }
        self.forecast.answers(live_tokens, live_ends);
        published
    }

    /// Closes the usage of a request that ended or whose client left. Returns its cost.
    pub(super) fn close(&mut self, id: RequestId, in_flight: &VecDeque<InFlightStep>, now: Instant) -> Cost {
        // Before that, the request would be charged in advance for a step that has ended, and twice for its
        // blocks.
        self.charge_collected();
        self.costs.close(id, in_flight.iter().map(|step| &step.launched), now)
    }

    /// Records that work is pending at `now`. Returns the start of this period of work.
    pub(super) fn set_busy(&mut self, now: Instant) -> Instant {
        *self.busy_since.get_or_insert(now)
    }

    /// Records that no work is pending.
    pub(super) fn set_idle(&mut self) {
        (self.busy_since, self.results_since) = (None, None);
        self.costs.set_idle();
    }

    /// The longest expected time of a step in flight, or of the step whose results are not charged yet:
    /// readers of the heartbeat do not know of its end before the next publication. 0 where unknown.
    pub(super) fn expected_step(&self, in_flight: &VecDeque<InFlightStep>) -> Duration {
        let uncharged = self.uncharged.iter().map(|(step, _)| step);
        let steps = in_flight.iter().map(|step| &step.launched).chain(uncharged);
        let longest = steps.map(|step| step.at_most).fold(0.0, f64::max);
        Duration::try_from_secs_f64(longest).unwrap_or(Duration::MAX).min(self.longest_step)
    }

    /// Totals of the device over all requests.
    pub(super) fn totals(&self) -> DeviceTotals {
        self.costs.totals()
    }
}
