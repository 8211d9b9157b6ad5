//! The clock beside the turns, as the engine keeps it: the real watch, deadlines and payers, told a virtual time. What
//! requests pay is held against what the device did, counted here from what it was given.
//!
//! What follows from how costs are defined, and is checked when a life ends:
//! - Where the executor knows what steps take, all that requests paid is what the device took, to a millionth, though
//!   they share steps, are preempted, leave, are late or fail, with rows in flight or none. Where it does not, what is
//!   paid in advance for a row in flight is a guess, and all lives together are within 1 %.
//! - Rows fed are tokens computed and tokens computed again, exactly.
//! - Payers were charged what their requests were told, once each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octant::engine::{EngineCore, EngineMetrics, KeyCounters, Published, RequestId};
use octant::request::Cost;
use octant::scheduler::step_plan::StepPlan;
use prometheus::{Counter, IntCounter};

use super::asked::TENANTS;
use crate::usage::key_counters;

/// Of what can be known exactly, for the nanoseconds of clocks.
const EXACT: f64 = 1e-6;
/// Of what is paid for blocks: who holds what part of one may change while a row is in flight for nobody.
const NEAR: f64 = 0.01;
/// And no less than a block for one step.
const BLOCK_STEP: f64 = 0.02;

/// A virtual time that the device and whoever watches it have in common.
#[derive(Clone)]
pub struct Clock {
    zero: Instant,
    bits: Arc<AtomicU64>,
}

impl Clock {
    pub fn new() -> Self {
        Self { zero: Instant::now(), bits: Arc::default() }
    }

    /// Seconds.
    pub fn now(&self) -> f64 {
        f64::from_bits(self.bits.load(Ordering::Relaxed))
    }

    /// Goes on to this time, if it is later.
    pub fn reach(&self, at: f64) {
        self.bits.store(self.now().max(at).to_bits(), Ordering::Relaxed);
    }

    pub fn instant(&self, at: f64) -> Instant {
        self.zero + Duration::from_secs_f64(at)
    }
}

/// A request that has not ended.
struct Entry {
    opened: f64,
    /// When it first had a row.
    started: Option<f64>,
}

/// Of one life.
pub struct Books {
    clock: Clock,
    metrics: EngineMetrics,
    /// By tenant.
    payers: Vec<Arc<KeyCounters>>,
    open: BTreeMap<RequestId, Entry>,
    closed: BTreeMap<RequestId, Cost>,
    /// Tokens of all prompts.
    prompts: u64,
    /// Tokens in all rows.
    fed: u64,
    /// Tokens drawn, of requests that had not ended.
    drawn: u64,
    /// Blocks held since the last look, and those before times their seconds.
    blocks: (f64, usize),
    block_seconds: f64,
    /// The latter when results last came, which is what meters show.
    metered: f64,
    /// What does not add up, said at the next occasion.
    wrong: Option<String>,
}

impl Books {
    /// The books of an engine that writes these metrics.
    pub fn new(clock: Clock, metrics: EngineMetrics) -> Self {
        Self {
            metrics,
            payers: TENANTS.iter().map(|_| key_counters()).collect(),
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

    /// Takes note of a launched plan with the requests of its rows.
    pub fn launched(&mut self, plan: &StepPlan, ids: &[RequestId]) {
        self.fed += plan.rows.iter().map(|row| row.tokens.len() as u64).sum::<u64>();
        let now = self.clock.now();
        for id in ids {
            self.open.entry(*id).and_modify(|entry| _ = entry.started.get_or_insert(now));
        }
    }

    /// Takes note of a step's results.
    pub fn collected(&mut self) {
        let since = self.clock.now() - self.blocks.0;
        self.metered = self.block_seconds + since * self.blocks.1 as f64;
    }

    /// Takes note of what the engine published.
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
            self.wrong.get_or_insert(format!("request {} waited as it paid: {waited:?}, {cost:?}", id.0));
        }
    }

    /// The counters of a tenant.
    pub fn counters(&self, tenant: usize) -> Arc<KeyCounters> {
        Arc::clone(&self.payers[tenant])
    }

    /// A request has been taken.
    pub fn open(&mut self, id: RequestId, prompt: usize) {
        self.open.insert(id, Entry { opened: self.clock.now(), started: None });
        self.prompts += prompt as u64;
    }

    /// A request was aborted or cut off, with this cost, whether it had been answered or not.
    pub fn left(&mut self, id: RequestId, cost: Cost) {
        if self.open.contains_key(&id) {
            self.note(id, cost);
        } else if cost != Cost::default() {
            self.wrong.get_or_insert(format!("request {} paid twice", id.0));
        }
    }

    /// Tokens fed again so far.
    pub fn recomputed(&self) -> u64 {
        self.metrics.recomputed.get()
    }

    /// What a request has cost that has ended.
    pub fn cost(&self, id: RequestId) -> Option<&Cost> {
        self.closed.get(&id)
    }

    pub fn check(&mut self) -> Result<(), String> {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// The life has ended. Whoever was cut off pays for what it had. The device has worked for so long, and has been given
    /// `outstanding` seconds of work that nobody has seen the end of. Returns what was paid and what there was to pay, in
    /// seconds and block-seconds.
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
        // Who holds what is looked at after launches only.
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
        self.check_payers(&sum)?;
        Ok([[sum.prefill + sum.decode, due], [sum.kv_block_seconds, block_seconds]])
    }

    fn check_payers(&self, sum: &Cost) -> Result<(), String> {
        let seconds =
            |of: fn(&KeyCounters) -> &Counter| self.payers.iter().map(|payer| of(payer).get()).sum::<f64>();
        let count = |of: fn(&KeyCounters) -> &IntCounter| {
            self.payers.iter().map(|payer| of(payer).get()).sum::<u64>()
        };
        close(seconds(|payer| &payer.queue), sum.queue, EXACT, "the payers' waiting")?;
        close(seconds(|payer| &payer.prefill), sum.prefill, EXACT, "the payers' prefill")?;
        close(seconds(|payer| &payer.decode), sum.decode, EXACT, "the payers' decode")?;
        close(seconds(|payer| &payer.kv_block_seconds), sum.kv_block_seconds, EXACT, "the payers' blocks")?;
        let counted = [
            count(|payer| &payer.requests),
            count(|payer| &payer.prompt_tokens),
            count(|payer| &payer.generated_tokens),
            count(|payer| &payer.cached_tokens),
            count(|payer| &payer.computed_tokens),
            count(|payer| &payer.recomputed_tokens),
        ];
        let Cost { cached_tokens: cached, computed_tokens, recomputed_tokens, .. } = *sum;
        let requests = self.closed.len() as u64;
        let expected = [requests, self.prompts, self.drawn, cached, computed_tokens, recomputed_tokens];
        match counted == expected {
            true => Ok(()),
            false => Err(format!("payers have {counted:?}, expected {expected:?}")),
        }
    }
}

/// What the device says of a life.
#[derive(Debug)]
pub struct Life {
    /// Seconds that it worked.
    pub busy: f64,
    /// Seconds of steps that it was given and did not return.
    pub outstanding: f64,
    /// Whether it said beforehand what each step takes.
    pub exact: bool,
    /// Whether the host takes time between steps.
    pub host: bool,
    pub preemptions: u64,
}

fn close(got: f64, expected: f64, within: f64, what: &str) -> Result<(), String> {
    match (got - expected).abs() <= within * expected + 1e-6 {
        true => Ok(()),
        false => Err(format!("{what}: {got}, expected {expected}")),
    }
}
