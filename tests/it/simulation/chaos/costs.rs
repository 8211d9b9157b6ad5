//! Compares the costs that the engine charges with the device's own totals.
//!
//! The definition of costs implies, and the test checks when an engine ends:
//! - If the executor predicts step times exactly, the costs of all requests add up to the device's time, to a
//!   millionth, although requests share steps, are preempted, abort, pass their deadline or fail, with or
//!   without a row in flight. If it does not, the advance charge for a row in flight is an estimate, and all
//!   engines together are within 1 %.
//! - Tokens fed are tokens computed plus tokens recomputed, exactly.
//! - Each key's counters have the sum of its requests' costs, each counted once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octant::engine::{self, EngineCore, EngineMetrics, EngineOptions, KeyCounters, Published, RequestId};
use octant::request::Cost;
use octant::scheduler::step_plan::StepPlan;
use prometheus::{Counter, IntCounter};

use super::asked::TENANTS;
use crate::usage::key_counters;

/// Relative tolerance of exact sums, for the rounding of clocks to nanoseconds.
const EXACT: f64 = 1e-6;
/// Relative tolerance of block-seconds: shares of blocks may change while a discarded row is in flight.
const NEAR: f64 = 0.01;
/// Absolute tolerance of block-seconds: one block for one step.
const BLOCK_STEP: f64 = 0.02;

/// The virtual time of the device and the engine.
#[derive(Clone)]
pub struct Clock {
    zero: Instant,
    bits: Arc<AtomicU64>,
}

impl Clock {
    pub fn new() -> Self {
        Self { zero: Instant::now(), bits: Arc::default() }
    }

    /// Seconds since the start.
    pub fn now(&self) -> f64 {
        f64::from_bits(self.bits.load(Ordering::Relaxed))
    }

    /// Advances to this time, if it is later.
    pub fn reach(&self, at: f64) {
        self.bits.store(self.now().max(at).to_bits(), Ordering::Relaxed);
    }

    /// The options of an engine on this clock.
    pub fn engine_options(
        &self,
        in_flight: usize,
        stream_interval: usize,
        metrics: &EngineMetrics,
    ) -> EngineOptions {
        let (clock, metrics) = (self.clone(), metrics.clone());
        let clock = engine::Clock::virtual_time(move || clock.instant(clock.now()));
        EngineOptions { stream_interval, metrics, clock, ..EngineOptions::new(in_flight) }
    }

    pub fn instant(&self, at: f64) -> Instant {
        self.zero + Duration::from_secs_f64(at)
    }
}

/// An open request.
struct Entry {
    opened: f64,
    /// When its first row was launched.
    started: Option<f64>,
}

/// Checks of one engine's costs.
pub struct CostCheck {
    clock: Clock,
    metrics: EngineMetrics,
    /// The key counters of each tenant.
    counters: Vec<Arc<KeyCounters>>,
    open: BTreeMap<RequestId, Entry>,
    closed: BTreeMap<RequestId, Cost>,
    /// Tokens of all prompts.
    prompts: u64,
    /// Tokens in all rows.
    fed: u64,
    /// Tokens published.
    drawn: u64,
    /// The time of the last count of used blocks, that count, and the block-seconds before that time.
    blocks: (f64, usize),
    block_seconds: f64,
    /// Block-seconds at the last results, which the metrics show.
    metered: f64,
    /// The first error, for the next check.
    wrong: Option<String>,
}

impl CostCheck {
    /// Checks the costs of an engine that writes these metrics.
    pub fn new(clock: Clock, metrics: EngineMetrics) -> Self {
        Self {
            metrics,
            counters: TENANTS.iter().map(|_| key_counters()).collect(),
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            prompts: 0,
            fed: 0,
            drawn: 0,
            blocks: (clock.now(), 0),
            block_seconds: 0.0,
            metered: 0.0,
            wrong: None,
            clock,
        }
    }

    /// Records a launched plan and the requests of its rows.
    pub fn launched(&mut self, plan: &StepPlan, ids: &[RequestId]) {
        self.fed += plan.rows.iter().map(|row| row.tokens.len() as u64).sum::<u64>();
        let now = self.clock.now();
        for id in ids {
            self.open.entry(*id).and_modify(|entry| _ = entry.started.get_or_insert(now));
        }
    }

    /// Records a step's results.
    pub fn collected(&mut self) {
        let since = self.clock.now() - self.blocks.0;
        self.metered = self.block_seconds + since * self.blocks.1 as f64;
    }

    /// Records the updates that the engine published.
    pub fn published(&mut self, published: &Published, core: &EngineCore) {
        self.drawn += published.tokens as u64;
        published.finished.iter().for_each(|(id, cost)| self.note(*id, *cost));
        self.hold(core);
    }

    /// Counts the blocks that are held from now on.
    pub fn hold(&mut self, core: &EngineCore) {
        let now = self.clock.now();
        self.block_seconds += (now - self.blocks.0) * self.blocks.1 as f64;
        self.blocks = (now, core.scheduler().counts().blocks_used);
    }

    fn note(&mut self, id: RequestId, cost: Cost) {
        let Cost { queue, prefill, decode, kv_block_seconds, .. } = cost;
        let sound = [queue, prefill, decode, kv_block_seconds].iter().all(|x| x.is_finite() && *x >= 0.0);
        let waited = self.open.remove(&id).map(|entry| {
            let waited = entry.started.unwrap_or(self.clock.now()) - entry.opened;
            (waited - queue).abs() < EXACT
        });
        if !sound || waited != Some(true) || self.closed.insert(id, cost).is_some() {
            self.wrong.get_or_insert(format!(
                "request {} has a wrong cost: queue time right: {waited:?}, {cost:?}",
                id.0
            ));
        }
    }

    /// The counters of a tenant.
    pub fn counters(&self, tenant: usize) -> Arc<KeyCounters> {
        Arc::clone(&self.counters[tenant])
    }

    /// Records that the engine has taken a request.
    pub fn open(&mut self, id: RequestId, prompt: usize) {
        self.open.insert(id, Entry { opened: self.clock.now(), started: None });
        self.prompts += prompt as u64;
    }

    /// Records the cost of a request that was aborted or cut off. It may have been answered already.
    pub fn left(&mut self, id: RequestId, cost: Cost) {
        if self.open.contains_key(&id) {
            self.note(id, cost);
        } else if cost != Cost::default() {
            self.wrong.get_or_insert(format!("request {} was charged twice", id.0));
        }
    }

    /// Recomputed tokens so far.
    pub fn recomputed(&self) -> u64 {
        self.metrics.recomputed.get()
    }

    /// The cost of a request that has ended.
    pub fn cost(&self, id: RequestId) -> Option<&Cost> {
        self.closed.get(&id)
    }

    pub fn check(&mut self) -> Result<(), String> {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// Checks the sums when an engine has ended; requests that were cut off are charged first. Returns the
    /// requests' costs and the device's totals, in seconds and block-seconds.
    pub fn settle(&mut self, life: &Life, core: &mut EngineCore) -> Result<[[f64; 2]; 2], String> {
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            self.hold(core);
            let cost = core.abort(id);
            self.left(id, cost);
        }
        self.check()?;
        let sum = self.closed.values().fold(Cost::default(), |sum, cost| sum.and(*cost));
        let (prefill, decode) = (self.metrics.prefill.get(), self.metrics.decode.get());
        let block_seconds = self.block_seconds;
        close(prefill + decode, life.busy, EXACT, "the device's time")?;
        // The engine records the blocks that requests hold only after launches.
        let seen = if life.host { NEAR } else { EXACT };
        close(self.metrics.kv_block_seconds.get(), self.metered, seen, "the blocks' time")?;
        let near = NEAR + BLOCK_STEP / block_seconds.max(BLOCK_STEP);
        let due = prefill + decode + life.outstanding;
        if life.exact {
            close(sum.prefill + sum.decode, due, EXACT, "the requests' time")?;
        }
        if life.exact && life.outstanding == 0.0 {
            close(sum.prefill, prefill, EXACT, "prefill")?;
            close(sum.decode, decode, EXACT, "decode")?;
            close(sum.kv_block_seconds, block_seconds, near, "the requests' blocks")?;
        }
        let again = self.recomputed();
        if sum.recomputed_tokens != again || life.preemptions == 0 && again != 0 {
            return Err(format!("{} tokens again, {again} by the device, {life:?}", sum.recomputed_tokens));
        }
        if sum.computed_tokens + again != self.fed {
            return Err(format!("{} tokens were fed: {sum:?}", self.fed));
        }
        self.check_key_counters(&sum)?;
        Ok([[sum.prefill + sum.decode, due], [sum.kv_block_seconds, block_seconds]])
    }

    fn check_key_counters(&self, sum: &Cost) -> Result<(), String> {
        let seconds =
            |of: fn(&KeyCounters) -> &Counter| self.counters.iter().map(|key| of(key).get()).sum::<f64>();
        let count =
            |of: fn(&KeyCounters) -> &IntCounter| self.counters.iter().map(|key| of(key).get()).sum::<u64>();
        close(seconds(|key| &key.queue), sum.queue, EXACT, "the keys' waiting")?;
        close(seconds(|key| &key.prefill), sum.prefill, EXACT, "the keys' prefill")?;
        close(seconds(|key| &key.decode), sum.decode, EXACT, "the keys' decode")?;
        close(seconds(|key| &key.kv_block_seconds), sum.kv_block_seconds, EXACT, "the keys' blocks")?;
        let counted = [
            count(|key| &key.requests),
            count(|key| &key.prompt_tokens),
            count(|key| &key.generated_tokens),
            count(|key| &key.cached_tokens),
            count(|key| &key.computed_tokens),
            count(|key| &key.recomputed_tokens),
        ];
        let Cost { cached_tokens: cached, computed_tokens, recomputed_tokens, .. } = *sum;
        let requests = self.closed.len() as u64;
        let expected = [requests, self.prompts, self.drawn, cached, computed_tokens, recomputed_tokens];
        match counted == expected {
            true => Ok(()),
            false => Err(format!("keys have {counted:?}, expected {expected:?}")),
        }
    }
}

/// The device's side of one engine.
#[derive(Debug)]
pub struct Life {
    /// Device time of the steps collected, in seconds.
    pub busy: f64,
    /// Device time of the steps that were never collected, in seconds.
    pub outstanding: f64,
    /// Whether it predicted step times.
    pub exact: bool,
    /// Whether the host takes time between a step's results and the next launch.
    pub host: bool,
    pub preemptions: u64,
}

fn close(got: f64, expected: f64, within: f64, what: &str) -> Result<(), String> {
    match (got - expected).abs() <= within * expected + 1e-6 {
        true => Ok(()),
        false => Err(format!("{what}: {got}, expected {expected}")),
    }
}
