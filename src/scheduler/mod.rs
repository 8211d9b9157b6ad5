//! Which tokens run next, in which KV blocks: pure decisions. No clock, no IO, no randomness, no device; the same
//! calls always give the same plans.
//!
//! Continuous batching: each step, every sequence that is generating gets a row of one token, then prompts get what
//! is left of the step's token budget, in chunks, first those already begun, then new ones in the order of `fair`.
//! A sequence takes all blocks of its known tokens when it starts, and one more for every 64 tokens it generates. When
//! none is left that is not reserved, the last in order gives up its blocks and waits to be computed again, but not more
//! often than a setting says (see `batch`). What a sequence could share with one that is about to compute it, it waits
//! for.
//!
//! A step is planned, then committed when its output is there. One more may be planned in between; its decode rows
//! feed a token that is not known yet. A sequence that turns out to have ended, or must give up its blocks, while it
//! has a row in flight keeps blocks and slot until that row is collected.
//!
//! `batch` makes plans, `fair` says who is next, `sequence` is one request on its way, `blocks` and `prefix` are the KV
//! cache's bookkeeping, `door` refuses what could never run, `integrity` recounts everything.

pub mod blocks;
pub mod fair_queue;
mod fingerprint;
mod integrity;
mod planner;
pub mod prefix;
mod request_check;
mod sequence;
mod slots;
pub mod step_plan;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::request::{Finish, Reject, Request, Tenant, Update};
use blocks::Pool;
use fair_queue::{Ahead, Queue};
use sequence::{Order, Pending, Sequence};
use slots::Slots;
use step_plan::{RowOutput, StepOutput, StepPlan};

/// Steps that may be planned and not yet committed.
pub const MAX_IN_FLIGHT: usize = 2;

/// Names one request for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct RequestId(pub u64);

/// The limits within which the scheduler decides.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SchedulerConfig {
    /// Slots: sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens per step.
    pub max_num_batched_tokens: usize,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
    /// KV blocks of [`step_plan::BLOCK_TOKENS`] tokens.
    pub num_blocks: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Requests that may wait. An empty queue takes any one group, whatever its size.
    pub max_queue_requests: usize,
    /// Prompt tokens that may wait. An empty queue takes any one group, whatever its length.
    pub max_queue_tokens: usize,
    /// Whether requests share the KV blocks of equal prefixes.
    pub prefix_caching: bool,
    /// Who waits for whom.
    pub policy: Policy,
}

/// How those that wait and run make way for one another.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Policy {
    /// Steps of waiting that lift a request by one priority; 0 is never.
    pub ageing_steps: u64,
    /// Times that a sequence may be made to give up its blocks. With 0 all that it can need is reserved from the start.
    pub max_preemptions: u32,
    /// Of the blocks that a sequence may grow by, the share that is reserved when it starts; from 0 to 1. With 1 nothing is
    /// ever preempted, and what answers do not use of their `max_tokens` lies idle while they run.
    pub kv_reserve: f32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { ageing_steps: 1000, max_preemptions: 3, kv_reserve: 0.0 }
    }
}

impl Policy {
    /// Blocks to reserve of so many, rounded up.
    fn share_of(&self, growth: usize) -> usize {
        ((growth as f64 * f64::from(self.kv_reserve)).ceil() as usize).min(growth)
    }
}

impl SchedulerConfig {
    /// Tokens of the longest sequence that can run: it must fit the context, and the cache when it is there alone.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_model_len.min(self.num_blocks * step_plan::BLOCK_TOKENS)
    }

    /// Whether requests may join those that wait. An empty queue takes any group that can run at all, or that could
    /// never be served.
    pub fn check_queue_requests(&self, waiting: usize, more: usize) -> Result<(), Reject> {
        let limit = self.max_queue_requests;
        if waiting > 0 && waiting + more > limit {
            return Err(Reject::QueueFull { waiting, limit });
        }
        Ok(())
    }

    /// Likewise for prompt tokens.
    pub fn check_queue_tokens(&self, waiting: usize, more: usize) -> Result<(), Reject> {
        let limit = self.max_queue_tokens;
        if waiting > 0 && waiting + more > limit {
            return Err(Reject::QueueTokensFull { waiting, limit });
        }
        Ok(())
    }

    /// # Panics
    /// If a limit that must be positive is 0.
    pub fn assert_sound(&self) {
        assert!(self.max_num_seqs > 0, "max_num_seqs must be positive");
        assert!(self.max_num_batched_tokens > 0, "max_num_batched_tokens must be positive");
        assert!(self.max_model_len > 0, "max_model_len must be positive");
        assert!(self.num_blocks > 0, "num_blocks must be positive");
        assert!(self.vocab_size > 0, "vocab_size must be positive");
        assert!((0.0..=1.0).contains(&self.policy.kv_reserve), "kv_reserve must be from 0 to 1");
    }
}

/// How things stand. Totals count up from the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait, preempted ones among them.
    pub waiting: usize,
    /// Prompt tokens of those that wait.
    pub waiting_tokens: usize,
    /// KV blocks that hold nothing.
    pub blocks_free: usize,
    /// KV blocks that a sequence holds.
    pub blocks_used: usize,
    /// KV blocks that hold a cached prefix and nobody holds: free when needed.
    pub blocks_cached: usize,
    /// All KV blocks: free, used and cached ones.
    pub blocks_total: usize,
    /// Of the free and the cached ones, those that are kept for sequences that run: part of these two.
    pub blocks_reserved: usize,
    /// Total: steps planned.
    pub steps: u64,
    /// Total: preemptions.
    pub preemptions: u64,
    /// Total: tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Total: tokens found there.
    pub prefix_hits: u64,
    /// Total: prompt tokens of requests whose answer has begun.
    pub prompt_tokens: u64,
    /// Total: tokens generated.
    pub generated_tokens: u64,
}

/// An output that does not fit the plan it answers: the executor is broken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the executor returned (step, rows) {got:?}, expected {expected:?}")]
pub struct Mismatch {
    /// Step id and number of rows of the output.
    pub got: (u64, usize),
    /// Those of the earliest plan not committed, if there is one.
    pub expected: Option<(u64, usize)>,
}

/// Decides what each step computes.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: Pool,
    slots: Slots,
    /// Hold neither blocks nor a slot.
    waiting: Queue,
    /// Hold a slot and the blocks of all tokens planned.
    running: BTreeMap<Order, Sequence>,
    /// Have left `running`, and hold blocks and slot for a row in flight.
    leaving: BTreeMap<Order, Leaver>,
    /// Every request that is owed an answer.
    orders: HashMap<RequestId, Order>,
    in_flight: VecDeque<Flight>,
    waiting_tokens: usize,
    /// The sum of what sequences have reserved.
    reserved: usize,
    arrivals: u64,
    totals: Counts,
}

/// A sequence that gives up its blocks once its rows in flight are collected.
struct Leaver {
    sequence: Sequence,
    fate: Fate,
}

/// What becomes of a sequence that leaves.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// Its output still counts, and it waits to run again.
    Requeue,
    /// It has been answered or aborted: its output is nobody's.
    Discard,
}

/// A plan whose output has not come.
struct Flight {
    id: u64,
    rows: Vec<Pending>,
}

impl Scheduler {
    /// With nothing running and all blocks free.
    ///
    /// # Panics
    /// If a limit that must be positive is 0.
    pub fn new(config: SchedulerConfig) -> Self {
        config.assert_sound();
        Self {
            pool: Pool::new(config.num_blocks),
            slots: Slots::new(config.max_num_seqs),
            waiting: Queue::default(),
            running: BTreeMap::new(),
            leaving: BTreeMap::new(),
            orders: HashMap::new(),
            in_flight: VecDeque::new(),
            waiting_tokens: 0,
            reserved: 0,
            arrivals: 0,
            totals: Counts::default(),
            config,
        }
    }

    /// Takes a group into the queue, all or none. Ids must be new.
    pub fn submit(&mut self, group: Vec<(RequestId, Request)>) -> Result<(), Reject> {
        for (_, request) in &group {
            request_check::check(request, &self.config)?;
        }
        let tokens: usize = group.iter().map(|(_, request)| request.prompt.len()).sum();
        self.config.check_queue_requests(self.waiting.len(), group.len())?;
        self.config.check_queue_tokens(self.waiting_tokens, tokens)?;
        if self.orders.is_empty() {
            self.waiting.forget();
        }
        for (id, request) in group {
            let sequence = Sequence::new(id, self.arrivals, self.totals.steps, request);
            self.arrivals += 1;
            let earlier = self.orders.insert(id, sequence.order);
            assert!(earlier.is_none(), "request {} was submitted twice", id.0);
            self.waiting_tokens += sequence.prompt_len();
            self.waiting.arrive(sequence);
        }
        Ok(())
    }

    /// What would start before a request of this tenant and priority that came now.
    pub fn ahead(&self, tenant: &Tenant, priority: i32) -> Ahead {
        self.waiting.ahead(&tenant.name, priority, self.totals.steps, self.config.policy.ageing_steps)
    }

    /// The tenant and the priority of all that wait, where those of all are the same: a request of these two, or of a lower
    /// priority, waits for all of them, whatever their ages.
    pub fn only_line(&self) -> Option<&(Arc<str>, i32)> {
        self.waiting.only_line()
    }

    /// Forgets a request; no further update names it. Its blocks are free at once, or when its row in flight is
    /// committed. A request that has ended, or never was, is no error.
    pub fn abort(&mut self, id: RequestId) {
        let Some(order) = self.orders.remove(&id) else { return };
        if let Some(sequence) = self.waiting.remove(&order) {
            self.waiting_tokens -= sequence.prompt_len();
        } else if let Some(sequence) = self.running.remove(&order) {
            self.depart(sequence, Fate::Discard);
        } else if let Some(leaver) = self.leaving.get_mut(&order) {
            leaver.fate = Fate::Discard;
        }
    }

    /// The next step, or `None` if there is nothing to compute now, or [`MAX_IN_FLIGHT`] steps await their outputs.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if self.in_flight.len() == MAX_IN_FLIGHT {
            return None;
        }
        let (rows, pending) = self.plan_rows();
        if rows.is_empty() {
            return None;
        }
        let id = self.totals.steps;
        self.totals.steps += 1;
        self.in_flight.push_back(Flight { id, rows: pending });
        Some(StepPlan { id, rows })
    }

    /// Takes in what the earliest uncommitted step computed.
    pub fn commit(&mut self, output: &StepOutput) -> Result<Vec<(RequestId, Update)>, Mismatch> {
        let expected = self.in_flight.front().map(|flight| (flight.id, flight.rows.len()));
        if expected != Some((output.id, output.rows.len())) {
            return Err(Mismatch { got: (output.id, output.rows.len()), expected });
        }
        self.touch();
        let flight = self.in_flight.pop_front().expect("it has just been compared");
        let mut updates = Vec::with_capacity(flight.rows.len());
        for (row, output) in flight.rows.iter().zip(&output.rows) {
            updates.extend(self.settle(row, output));
        }
        self.waiting.settle();
        Ok(updates)
    }

    /// While a step ran, what runs has left the processor's caches. A loop that only looks at it has many of its lines on
    /// their way at once; the work that follows would wait for one after the other.
    fn touch(&self) {
        let sum = self.running.values().fold(0, |sum: u64, sequence| sum.wrapping_add(sequence.touch()));
        std::hint::black_box(sum);
    }

    /// Brings one row's output to its sequence, and says what its client learns.
    fn settle(&mut self, row: &Pending, output: &RowOutput) -> Option<(RequestId, Update)> {
        if let Some(sequence) = self.running.get_mut(&row.order) {
            let update = absorb(sequence, row, output, &self.pool, &self.config)?;
            let (id, prompt) = (sequence.id, sequence.prompt_len());
            if update.token.is_some() {
                self.waiting.charge_output(sequence.tenant());
            }
            if update.finish.is_some() {
                let sequence = self.running.remove(&row.order).expect("it was there a moment ago");
                self.depart(sequence, Fate::Discard);
            }
            self.account(id, prompt, &update);
            return Some((id, update));
        }
        let leaver = self.leaving.remove(&row.order).expect("whoever has a row in flight runs or leaves");
        let (mut sequence, mut fate) = (leaver.sequence, leaver.fate);
        let update = match fate {
            Fate::Requeue => absorb(&mut sequence, row, output, &self.pool, &self.config),
            Fate::Discard => {
                sequence.discard();
                None
            }
        };
        let (id, prompt) = (sequence.id, sequence.prompt_len());
        if update.as_ref().is_some_and(|update| update.token.is_some()) {
            self.waiting.charge_output(sequence.tenant());
        }
        if update.as_ref().is_some_and(|update| update.finish.is_some()) {
            fate = Fate::Discard;
        }
        self.depart(sequence, fate);
        let update = update?;
        self.account(id, prompt, &update);
        Some((id, update))
    }

    /// A sequence that no longer runs gives up slot and blocks, now or when its last row in flight is collected.
    fn depart(&mut self, mut sequence: Sequence, fate: Fate) {
        self.reserved -= std::mem::take(&mut sequence.reserved);
        if sequence.in_flight > 0 {
            self.leaving.insert(sequence.order, Leaver { sequence, fate });
        } else if fate == Fate::Requeue {
            sequence.give_up();
            self.waiting_tokens += sequence.prompt_len();
            self.waiting.arrive(sequence);
        }
    }

    fn account(&mut self, id: RequestId, prompt: usize, update: &Update) {
        self.totals.generated_tokens += u64::from(update.token.is_some());
        if update.cached_tokens.is_some() {
            self.totals.prompt_tokens += prompt as u64;
        }
        if update.finish.is_some() {
            self.orders.remove(&id);
        }
    }

    /// Prompt tokens that running sequences have still to feed.
    pub fn unfed_tokens(&self) -> usize {
        self.running.values().map(Sequence::pending).filter(|pending| *pending > 1).sum()
    }

    /// Whether there is no request, and no row in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.in_flight.is_empty()
    }

    /// How things stand.
    pub fn counts(&self) -> Counts {
        Counts {
            running: self.running.len(),
            waiting: self.waiting.len(),
            waiting_tokens: self.waiting_tokens,
            blocks_free: self.pool.free(),
            blocks_used: self.pool.used(),
            blocks_cached: self.pool.cached(),
            blocks_total: self.pool.total(),
            blocks_reserved: self.reserved,
            ..self.totals.clone()
        }
    }

    /// Whose the rows of the last plan are, in their order. Nothing if all plans are committed.
    pub fn owners(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.in_flight.back().into_iter().flat_map(|flight| flight.rows.iter().map(|row| row.id))
    }

    /// Who holds KV blocks, and how many: of a block that several hold each has its part, so that the sum is the number of
    /// blocks used.
    pub fn holdings(&self) -> impl Iterator<Item = (RequestId, f64)> + '_ {
        let leaving = self.leaving.values().map(|leaver| &leaver.sequence);
        let share = |sequence: &Sequence| {
            let parts = sequence.table.blocks().iter().map(|block| 1.0 / block.holders() as f64);
            (sequence.id, parts.sum())
        };
        self.running.values().chain(leaving).map(share)
    }

    /// The limits it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }
}

/// Takes in a row's output. Blocks that it completes are cached; if it failed, nothing that it wrote or read may be
/// found again, since a chunk that draws no token does not show that its values are finite.
fn absorb(
    sequence: &mut Sequence,
    row: &Pending,
    output: &RowOutput,
    pool: &Pool,
    config: &SchedulerConfig,
) -> Option<Update> {
    let before = sequence.computed();
    let update = sequence.absorb(row, output, config.vocab_size);
    if let Some(Update { finish: Some(Finish::Error(_)), .. }) = update {
        sequence.table.blocks().iter().for_each(|block| pool.forget(block));
    } else if config.prefix_caching {
        sequence.publish(before, pool);
    }
    update
}
