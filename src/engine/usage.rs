//! Who pays for what the device did: each step's time divided between its rows, and KV blocks by the time they are held.
//! Pure arithmetic on plans and times; the engine has the clock, and tells of every launch, result, end and abort.
//!
//! - A step's time is from its launch, or from the results of the step before if they came later, to its own results. It
//!   is divided by weight: a row counts one for each token fed and one for each [`POSITIONS_PER_TOKEN`] positions of KV
//!   that it reads. Where it feeds what was drawn last it is decode, else prefill.
//! - Blocks are charged for the time between two looks at who holds them, of which there is one after every launch.
//! - A request may end while it has a row in flight, whose result nobody will want. Its answer does not wait for that: it
//!   pays in advance for its part of that step, and for its blocks as long, by what the step should take, or where nobody
//!   can tell by what the last one took. What that is off by nobody pays.
//!
//! So the sum of all costs is what the device took, but for those advances.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::metrics::KeyCounters;
use crate::request::Cost;
use crate::scheduler::RequestId;
use crate::scheduler::step_plan::{Row, StepPlan};

/// Reading the keys and values of so many positions weighs as much as feeding one token: of models as large as those we
/// serve, the one takes the memory about as long as the other takes the arithmetic.
pub const POSITIONS_PER_TOKEN: f64 = 4096.0;

/// The account of everything that runs, and of the device.
#[derive(Default)]
pub struct StepCosts {
    open: HashMap<RequestId, RequestUsage>,
    flights: VecDeque<Flight>,
    /// Who held how many blocks when last looked.
    held: Vec<(RequestId, f64)>,
    /// When that was, or when it was last charged for.
    held_since: Option<Instant>,
    last_results: Option<Instant>,
    /// What the last step took, in seconds.
    last_step: f64,
    totals: Totals,
}

/// What the device did in all, whoever pays.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Seconds of prefill rows.
    pub prefill: f64,
    /// Seconds of decode rows.
    pub decode: f64,
    /// KV blocks held times seconds.
    pub kv_block_seconds: f64,
    /// Tokens fed again after preemptions.
    pub recomputed_tokens: u64,
}

/// What one open request has cost so far.
struct RequestUsage {
    cost: Cost,
    payer: Option<Arc<KeyCounters>>,
    submitted: Instant,
    prompt: usize,
    /// Whether it has had a row.
    started: bool,
    /// Positions below this have been fed, or were cached at its first start.
    fed: usize,
    generated: u64,
}

struct Flight {
    launched: Instant,
    /// What it should take, in seconds.
    expected: Option<f64>,
    parts: Vec<Part>,
    /// The sum of the parts'.
    weight: f64,
}

struct Part {
    id: RequestId,
    weight: f64,
    decode: bool,
}

impl StepCosts {
    /// A request has been taken.
    pub fn open(
        &mut self,
        id: RequestId,
        prompt: usize,
        submitted: Instant,
        payer: Option<Arc<KeyCounters>>,
    ) {
        let meter = RequestUsage {
            cost: Cost::default(),
            payer,
            submitted,
            prompt,
            started: false,
            fed: 0,
            generated: 0,
        };
        self.open.insert(id, meter);
    }

    /// A step is launched at this time; `owners` has the request of each row. It should take `expected` seconds, if anybody
    /// can tell.
    pub fn launched(
        &mut self,
        plan: &StepPlan,
        owners: impl Iterator<Item = RequestId>,
        now: Instant,
        expected: Option<f64>,
    ) {
        let mut parts = Vec::with_capacity(plan.rows.len());
        for (row, id) in plan.rows.iter().zip(owners) {
            let Some(meter) = self.open.get_mut(&id) else { continue };
            let before = meter.cost.recomputed_tokens;
            let decode = meter.row(row, now);
            self.totals.recomputed_tokens += meter.cost.recomputed_tokens - before;
            parts.push(Part { id, weight: weight(row), decode });
        }
        let weight = parts.iter().map(|part| part.weight).sum();
        self.flights.push_back(Flight { launched: now, expected, parts, weight });
    }

    /// The results of the earliest step are there. Returns the seconds that it took.
    pub fn results(&mut self, now: Instant) -> f64 {
        self.charge_blocks(now);
        let Some(flight) = self.flights.pop_front() else { return 0.0 };
        let began = self.last_results.map_or(flight.launched, |last| last.max(flight.launched));
        self.last_results = Some(now);
        let took = now.saturating_duration_since(began).as_secs_f64();
        self.last_step = took;
        for part in &flight.parts {
            let share = took * part.weight / flight.weight;
            let total = if part.decode { &mut self.totals.decode } else { &mut self.totals.prefill };
            *total += share;
            // Its advance has been paid if it has ended.
            if let Some(meter) = self.open.get_mut(&part.id) {
                *meter.device(part.decode) += share;
            }
        }
        took
    }

    /// Who holds blocks from now on.
    pub fn hold(&mut self, holdings: impl Iterator<Item = (RequestId, f64)>, now: Instant) {
        self.charge_blocks(now);
        self.held.clear();
        self.held.extend(holdings);
    }

    fn charge_blocks(&mut self, now: Instant) {
        // Results are accounted for some moments after they came, when somebody may have left since.
        let now = self.held_since.map_or(now, |since| since.max(now));
        let Some(since) = self.held_since.replace(now) else { return };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        for &(id, blocks) in &self.held {
            self.totals.kv_block_seconds += blocks * seconds;
            if let Some(meter) = self.open.get_mut(&id) {
                meter.cost.kv_block_seconds += blocks * seconds;
            }
        }
    }

    /// What a request has cost so far, one more token drawn or none.
    pub fn cost(&mut self, id: RequestId, drawn: bool) -> Cost {
        let Some(meter) = self.open.get_mut(&id) else { return Cost::default() };
        meter.generated += u64::from(drawn);
        meter.cost
    }

    /// A request has ended, or its client has left. Returns what it has cost, rows in flight included, of which its payer
    /// is told.
    pub fn close(&mut self, id: RequestId, now: Instant) -> Cost {
        self.charge_blocks(now);
        let Some(mut meter) = self.open.remove(&id) else { return Cost::default() };
        let blocks = self.held.iter().find(|(holder, _)| *holder == id).map_or(0.0, |(_, blocks)| *blocks);
        let mut in_flight = false;
        for flight in &self.flights {
            let takes = flight.expected.unwrap_or(self.last_step);
            for part in flight.parts.iter().filter(|part| part.id == id) {
                in_flight = true;
                *meter.device(part.decode) += takes * part.weight / flight.weight;
                meter.cost.kv_block_seconds += blocks * takes;
            }
        }
        if !in_flight {
            // They are free.
            self.held.retain(|(holder, _)| *holder != id);
        }
        if !meter.started {
            meter.cost.queue = now.saturating_duration_since(meter.submitted).as_secs_f64();
        }
        if let Some(payer) = &meter.payer {
            payer.charge(&meter.cost, meter.prompt as u64, meter.generated);
        }
        meter.cost
    }

    /// Nothing runs, and nobody holds a block.
    pub fn rest(&mut self) {
        self.held.clear();
        self.held_since = None;
    }

    /// What the device did in all.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

impl RequestUsage {
    /// Takes note of a row, and says whether it is decode.
    fn row(&mut self, row: &Row, now: Instant) -> bool {
        let (position, tokens) = (row.position as usize, row.tokens.len());
        let end = position + tokens;
        if !self.started {
            self.started = true;
            self.cost.queue = now.saturating_duration_since(self.submitted).as_secs_f64();
            self.cost.cached_tokens = position as u64;
            self.fed = position;
        }
        let again = self.fed.min(end).saturating_sub(position);
        self.cost.recomputed_tokens += again as u64;
        self.cost.computed_tokens += (tokens - again) as u64;
        self.fed = self.fed.max(end);
        tokens == 1 && again == 0 && position >= self.prompt
    }

    fn device(&mut self, decode: bool) -> &mut f64 {
        if decode { &mut self.cost.decode } else { &mut self.cost.prefill }
    }
}

/// What a row weighs in its step.
fn weight(row: &Row) -> f64 {
    let tokens = row.tokens.len() as f64;
    tokens + (f64::from(row.position) + tokens) / POSITIONS_PER_TOKEN
}
