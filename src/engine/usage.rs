//! Divides each step's device time between its rows, and charges KV blocks by the time they are held. Pure
//! arithmetic on plans and times: the caller gives the time of every launch, result, end and abort.
//!
//! - A step's time runs from its launch, or from the previous step's results if they came later, to its own
//!   results. It is divided by weight: a row's weight is the number of tokens fed, plus 1 for each
//!   [`POSITIONS_PER_TOKEN`] positions of KV that it reads. A row that feeds the last sampled token is
//!   decode, every other row is prefill. Drafts have their share of the time, and count as fed once they are
//!   accepted.
//! - Blocks are charged for the time between two calls of [`StepCosts::hold`]; the engine calls it once after
//!   each launch.
//! - A request may end while one of its rows is in flight, whose output is discarded. Its answer does not
//!   wait for that row: the request is charged in advance for its share of that step, and for its blocks
//!   during it. The charge is computed from the step's expected time, or from the last step's time if no
//!   expectation exists. The difference between the estimate and the real time is not billed.
//!
//! The sum of all costs is therefore the device's time, except for the errors of those estimates.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::metrics::KeyCounters;
use crate::request::Cost;
use crate::scheduler::RequestId;
use crate::scheduler::step_plan::{Row, StepPlan};

/// Reading the keys and values of this many positions weighs as much as feeding one token. In models of the
/// size we serve, the memory traffic of the former takes about as long as the arithmetic of the latter.
const POSITIONS_PER_TOKEN: f64 = 4096.0;

/// Usage of all open requests and totals of the device.
#[derive(Default)]
pub(super) struct StepCosts {
    open: HashMap<RequestId, RequestUsage>,
    /// KV blocks of each request at the last call of `hold`.
    held: Vec<(RequestId, f64)>,
    /// The time up to which `held` is charged.
    held_since: Option<Instant>,
    last_results: Option<Instant>,
    /// Device time of the last step, in seconds.
    last_step: f64,
    totals: DeviceTotals,
}

/// Totals of the device over all requests.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DeviceTotals {
    /// Device time of prefill rows, in seconds.
    pub prefill: f64,
    /// Device time of decode rows, in seconds.
    pub decode: f64,
    /// KV blocks held times seconds.
    pub kv_block_seconds: f64,
    /// Tokens fed again after preemptions.
    pub recomputed_tokens: u64,
}

/// The facts about a request when the scheduler takes it.
pub(super) struct OpenedUsage {
    /// Prompt tokens.
    pub(super) prompt: usize,
    /// Whether it is a line of a batch.
    pub(super) batch: bool,
    /// When it was submitted.
    pub(super) submitted: Instant,
    /// The counters that it is charged to.
    pub(super) counters: Option<Arc<KeyCounters>>,
}

/// The usage of one open request so far.
struct RequestUsage {
    opened: OpenedUsage,
    cost: Cost,
    /// Whether it has had a row.
    started: bool,
    /// Positions below this have been fed, or were cached at its first start.
    fed: usize,
    generated: u64,
}

/// The times and shares of a launched step.
pub struct LaunchedStep {
    /// When the launch began.
    pub launched_at: Instant,
    /// Tokens fed.
    pub tokens: usize,
    /// Expected device time in seconds; `None` where unknown.
    pub expected: Option<f64>,
    /// Upper bound of the expected device time, in seconds.
    pub at_most: f64,
    shares: Vec<Share>,
    /// The sum of the shares' weights.
    weight: f64,
}

/// One row's share of a step.
struct Share {
    id: RequestId,
    weight: f64,
    decode: bool,
}

impl LaunchedStep {
    /// The part of `seconds` that a share is charged.
    fn part(&self, share: &Share, seconds: f64) -> f64 {
        seconds * share.weight / self.weight
    }
}

/// Expected times of a step, in seconds.
pub(super) struct ExpectedTime {
    /// See [`LaunchedStep::expected`].
    pub(super) expected: Option<f64>,
    /// See [`LaunchedStep::at_most`].
    pub(super) at_most: f64,
}

impl StepCosts {
    /// Opens the usage of a request that the scheduler has taken.
    pub(super) fn open(&mut self, id: RequestId, opened: OpenedUsage) {
        let cost = Cost::default();
        self.open.insert(id, RequestUsage { opened, cost, started: false, fed: 0, generated: 0 });
    }

    /// Whether an open request is of a batch.
    pub(super) fn is_of_batch(&self, id: RequestId) -> bool {
        self.open.get(&id).is_some_and(|usage| usage.opened.batch)
    }

    /// Records a launch at `launched_at`. `request_ids` are the requests of the plan's rows.
    pub(super) fn launch(
        &mut self,
        plan: &StepPlan,
        request_ids: impl Iterator<Item = RequestId>,
        launched_at: Instant,
        time: ExpectedTime,
    ) -> LaunchedStep {
        let mut shares = Vec::with_capacity(plan.rows.len());
        for (row, id) in plan.rows.iter().zip(request_ids) {
            let Some(usage) = self.open.get_mut(&id) else { continue };
            let before = usage.cost.recomputed_tokens;
            let decode = usage.add_row(row, launched_at);
            self.totals.recomputed_tokens += usage.cost.recomputed_tokens - before;
            shares.push(Share { id, weight: weight(row), decode });
        }
        let weight = shares.iter().map(|share| share.weight).sum();
        let tokens = plan.rows.iter().map(Row::most_tokens).sum();
        let ExpectedTime { expected, at_most } = time;
        LaunchedStep { launched_at, tokens, expected, at_most, shares, weight }
    }

    /// Charges the earliest step, whose results came at `results_at`. Returns its device time in seconds.
    pub(super) fn charge_step(&mut self, step: &LaunchedStep, results_at: Instant) -> f64 {
        self.charge_blocks(results_at);
        let began = self.last_results.map_or(step.launched_at, |last| last.max(step.launched_at));
        self.last_results = Some(results_at);
        let took = results_at.saturating_duration_since(began).as_secs_f64();
        self.last_step = took;
        for share in &step.shares {
            let part = step.part(share, took);
            let total = if share.decode { &mut self.totals.decode } else { &mut self.totals.prefill };
            *total += part;
            // A request that has ended was charged in advance.
            if let Some(usage) = self.open.get_mut(&share.id) {
                *usage.device_time(share.decode) += part;
            }
        }
        took
    }

    /// Sets the KV blocks of each request from `now` on.
    pub(super) fn hold(&mut self, holdings: impl Iterator<Item = (RequestId, f64)>, now: Instant) {
        self.charge_blocks(now);
        self.held.clear();
        self.held.extend(holdings);
    }

    fn charge_blocks(&mut self, now: Instant) {
        // Results are charged some time after they came, and a client may have left in between.
        let now = self.held_since.map_or(now, |since| since.max(now));
        let Some(since) = self.held_since.replace(now) else { return };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        for &(id, blocks) in &self.held {
            self.totals.kv_block_seconds += blocks * seconds;
            if let Some(usage) = self.open.get_mut(&id) {
                usage.cost.kv_block_seconds += blocks * seconds;
            }
        }
    }

    /// Adds the `generated` tokens of a row to a request. Returns its cost so far.
    pub(super) fn add_generated(&mut self, id: RequestId, generated: usize) -> Cost {
        let Some(usage) = self.open.get_mut(&id) else { return Cost::default() };
        usage.generated += generated as u64;
        // All but the last were fed as drafts.
        usage.cost.computed_tokens += generated.saturating_sub(1) as u64;
        if generated > 1 {
            usage.fed = usage.fed.max(usage.opened.prompt + usage.generated as usize - 1);
        }
        usage.cost
    }

    /// Closes the usage of a request that ended or whose client left, and charges its key. Returns its cost,
    /// rows in flight included.
    pub(super) fn close<'a>(
        &mut self,
        id: RequestId,
        in_flight: impl Iterator<Item = &'a LaunchedStep>,
        now: Instant,
    ) -> Cost {
        self.charge_blocks(now);
        let Some(mut usage) = self.open.remove(&id) else { return Cost::default() };
        let blocks = self.held.iter().find(|(holder, _)| *holder == id).map_or(0.0, |(_, blocks)| *blocks);
        let mut has_row_in_flight = false;
        for step in in_flight {
            let seconds = step.expected.unwrap_or(self.last_step);
            for share in step.shares.iter().filter(|share| share.id == id) {
                has_row_in_flight = true;
                *usage.device_time(share.decode) += step.part(share, seconds);
                usage.cost.kv_block_seconds += blocks * seconds;
            }
        }
        if !has_row_in_flight {
            // Its blocks are free now.
            self.held.retain(|(holder, _)| *holder != id);
        }
        if !usage.started {
            usage.cost.queue = now.saturating_duration_since(usage.opened.submitted).as_secs_f64();
        }
        if let Some(counters) = &usage.opened.counters {
            counters.charge(&usage.cost, usage.opened.prompt as u64, usage.generated);
        }
        usage.cost
    }

    /// Records that nothing runs and no block is held.
    pub(super) fn set_idle(&mut self) {
        self.held.clear();
        self.held_since = None;
    }

    /// Totals of the device over all requests.
    pub(super) fn totals(&self) -> DeviceTotals {
        self.totals
    }
}

impl RequestUsage {
    /// Adds a row. Returns whether it is a decode row.
    fn add_row(&mut self, row: &Row, now: Instant) -> bool {
        let (position, tokens) = (row.position as usize, row.len_without_drafts());
        let end = position + tokens;
        if !self.started {
            self.started = true;
            self.cost.queue = now.saturating_duration_since(self.opened.submitted).as_secs_f64();
            self.cost.cached_tokens = position as u64;
            self.fed = position;
        }
        let again = self.fed.min(end).saturating_sub(position);
        self.cost.recomputed_tokens += again as u64;
        self.cost.computed_tokens += (tokens - again) as u64;
        self.fed = self.fed.max(end);
        tokens == 1 && again == 0 && position >= self.opened.prompt
    }

    fn device_time(&mut self, decode: bool) -> &mut f64 {
        if decode { &mut self.cost.decode } else { &mut self.cost.prefill }
    }
}

/// The weight of a row in its step.
fn weight(row: &Row) -> f64 {
    let tokens = row.most_tokens() as f64;
    tokens + (f64::from(row.position) + tokens) / POSITIONS_PER_TOKEN
}
