//! The scheduler: decides which tokens each step computes, and in which KV blocks. Its decisions are pure: it
//! sees no clock, IO, randomness or device, and the same calls always give the same plans.
//!
//! Continuous batching: in each step every generating sequence gets a decode row of one token. Prompts share
//! the rest of the step's token budget in chunks: first those already started, then new ones in the order of
//! `fair_queue`. A sequence takes all blocks of its known tokens when it starts, and one more for every 64
//! tokens it generates. If no unreserved block is left, the last sequence in order is preempted: it frees its
//! blocks and is recomputed later, at most `max_preemptions` times (see `planner`). A sequence whose prefix
//! another one is just computing waits for that prefix, to share it.
//!
//! A step is planned, and committed when its output has arrived. One more step may be planned in between; its
//! decode rows feed a token that is not known yet. If a sequence finishes or is preempted while it has a row
//! in flight, it keeps its blocks and its slot until that row is committed.
//!
//! - `planner` plans steps and preempts.
//! - `fair_queue` orders waiting sequences.
//! - `sequence` is one request in the scheduler.
//! - `blocks` and `prefix` keep the KV cache blocks and the prefix cache.
//! - `request_check` rejects requests that could never run.
//! - `integrity` is the self-check.

pub mod blocks;
mod error;
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
use blocks::BlockPool;
pub use error::IntegrityError;
use fair_queue::{Ahead, FairQueue};
use sequence::{Order, Pending, Sequence};
use slots::Slots;
use step_plan::{RowOutput, StepOutput, StepPlan};

/// Steps that may be planned and not yet committed.
pub const MAX_IN_FLIGHT: usize = 2;

/// Identifies a request during the lifetime of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Limits of the scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Sequences that run at once; each has a slot.
    pub max_num_seqs: usize,
    /// Tokens that one step may feed.
    pub max_num_batched_tokens: usize,
    /// Tokens per sequence: prompt and output.
    pub max_model_len: usize,
    /// Number of KV blocks, each of [`step_plan::BLOCK_TOKENS`] tokens.
    pub num_blocks: usize,
    /// Size of the vocabulary; all token ids are below it.
    pub vocab_size: usize,
    /// Limit on waiting requests. An empty queue accepts one group of any size.
    pub max_queue_requests: usize,
    /// Limit on the prompt tokens of waiting requests. An empty queue accepts one group of any length.
    pub max_queue_tokens: usize,
    /// Whether requests share the KV blocks of equal prefixes.
    pub prefix_caching: bool,
    /// Ageing, preemption and reservation.
    pub policy: Policy,
}

/// Rules by which requests yield to each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Steps of waiting after which a request gains one priority class; 0 turns ageing off.
    pub ageing_steps: u64,
    /// Limit on preemptions per sequence. With 0, all blocks that a sequence can need are reserved when it
    /// starts.
    pub max_preemptions: u32,
    /// The share, from 0 to 1, of the blocks a sequence may still need that is reserved when it starts. With
    /// 1 no sequence is ever preempted, but blocks reserved for output that is never generated stay idle
    /// meanwhile.
    pub kv_reserve: f32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { ageing_steps: 1000, max_preemptions: 3, kv_reserve: 0.0 }
    }
}

impl Policy {
    /// The blocks to reserve out of `growth`, rounded up.
    fn share_of(&self, growth: usize) -> usize {
        ((growth as f64 * f64::from(self.kv_reserve)).ceil() as usize).min(growth)
    }
}

impl SchedulerConfig {
    /// Tokens of the longest sequence that can run: limited by the context and by the whole KV cache.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_model_len.min(self.num_blocks * step_plan::BLOCK_TOKENS)
    }

    /// Checks that `more` requests may join `waiting` ones. An empty queue accepts any group, because a group
    /// larger than the limit could otherwise never be served.
    pub fn check_queue_requests(&self, waiting: usize, more: usize) -> Result<(), Reject> {
        let limit = self.max_queue_requests;
        if waiting > 0 && waiting + more > limit {
            return Err(Reject::QueueFull { waiting, limit });
        }
        Ok(())
    }

    /// Checks that `more` prompt tokens may join `waiting` ones, by the same rule.
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

/// Current state and totals. Totals count from the start of the engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Running sequences.
    pub running: usize,
    /// Waiting sequences, including preempted ones.
    pub waiting: usize,
    /// Prompt tokens of waiting sequences.
    pub waiting_tokens: usize,
    /// Free KV blocks, without contents.
    pub blocks_free: usize,
    /// KV blocks held by a sequence.
    pub blocks_used: usize,
    /// KV blocks that hold a cached prefix and that no sequence holds. They are evicted when blocks are
    /// needed.
    pub blocks_cached: usize,
    /// All KV blocks: free, used and cached.
    pub blocks_total: usize,
    /// Free and cached KV blocks that are reserved for running sequences. Already counted in these two.
    pub blocks_reserved: usize,
    /// Total: planned steps.
    pub steps: u64,
    /// Total: preemptions.
    pub preemptions: u64,
    /// Total: tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Total: tokens found in the prefix cache.
    pub prefix_hits: u64,
    /// Total: prompt tokens of requests that have received their first update.
    pub prompt_tokens: u64,
    /// Total: generated tokens.
    pub generated_tokens: u64,
}

/// An output that does not match the plan it answers. The executor is faulty.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the executor returned (step, rows) {got:?}, expected {expected:?}")]
pub struct Mismatch {
    /// Step id and number of rows of the output.
    pub got: (u64, usize),
    /// Step id and number of rows of the earliest uncommitted plan, if there is one.
    pub expected: Option<(u64, usize)>,
}

/// Decides what each step computes.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    slots: Slots,
    /// Waiting sequences. They hold neither blocks nor a slot.
    waiting: FairQueue,
    /// Running sequences. They hold a slot and the blocks of all planned tokens.
    running: BTreeMap<Order, Sequence>,
    /// Sequences that have left `running` but keep blocks and slot until their row in flight is committed.
    leaving: BTreeMap<Order, Leaver>,
    /// All open requests: those that have not received their last update.
    orders: HashMap<RequestId, Order>,
    in_flight: VecDeque<Flight>,
    waiting_tokens: usize,
    /// Sum of the blocks that running sequences have reserved.
    reserved: usize,
    arrivals: u64,
    totals: Counts,
}

/// A sequence that frees its blocks once its rows in flight are committed.
struct Leaver {
    sequence: Sequence,
    fate: Fate,
}

/// What happens to a leaving sequence.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// Its output still counts, and it returns to the waiting queue.
    Requeue,
    /// It has finished or was aborted, so its output is dropped.
    Discard,
}

/// A plan whose output has not come.
struct Flight {
    id: u64,
    rows: Vec<Pending>,
}

impl Scheduler {
    /// Creates a scheduler without requests; all blocks are free.
    ///
    /// # Panics
    /// If a limit that must be positive is 0.
    pub fn new(config: SchedulerConfig) -> Self {
        config.assert_sound();
        Self {
            pool: BlockPool::new(config.num_blocks),
            slots: Slots::new(config.max_num_seqs),
            waiting: FairQueue::default(),
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
            self.waiting.reset();
        }
        for (id, request) in group {
            let sequence = Sequence::new(id, self.arrivals, self.totals.steps, request);
            self.arrivals += 1;
            let earlier = self.orders.insert(id, sequence.order);
            assert!(earlier.is_none(), "request {} was submitted twice", id.0);
            self.waiting_tokens += sequence.prompt_len();
            self.waiting.push(sequence);
        }
        Ok(())
    }

    /// Estimates the work that would start before a request of this tenant and priority if it were submitted
    /// now.
    pub fn ahead(&self, tenant: &Tenant, priority: i32) -> Ahead {
        self.waiting.ahead(&tenant.name, priority, self.totals.steps, self.config.policy.ageing_steps)
    }

    /// The tenant and the priority of all waiting requests, if they all have the same. A further request of
    /// that tenant and of this or a lower priority waits for all of them, whatever their age.
    pub fn only_queue(&self) -> Option<&(Arc<str>, i32)> {
        self.waiting.only_queue()
    }

    /// Aborts a request; no later update names it. Its blocks are freed at once, or when its row in flight is
    /// committed. An unknown or finished id is ignored.
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

    /// The next step, or `None` if there is nothing to compute now, or [`MAX_IN_FLIGHT`] steps await their
    /// outputs.
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

    /// While a step ran, what runs has left the processor's caches. A loop that only looks at it has many of
    /// its lines on their way at once; the work that follows would wait for one after the other.
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

    /// Frees slot and blocks of a sequence that no longer runs, now or when its last row in flight is
    /// committed.
    fn depart(&mut self, mut sequence: Sequence, fate: Fate) {
        self.reserved -= std::mem::take(&mut sequence.reserved);
        if sequence.in_flight > 0 {
            self.leaving.insert(sequence.order, Leaver { sequence, fate });
        } else if fate == Fate::Requeue {
            sequence.release();
            self.waiting_tokens += sequence.prompt_len();
            self.waiting.push(sequence);
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

    /// Prompt tokens that running sequences have not been fed yet.
    pub fn unfed_tokens(&self) -> usize {
        self.running.values().map(Sequence::pending).filter(|pending| *pending > 1).sum()
    }

    /// Whether no request is open and no row is in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.in_flight.is_empty()
    }

    /// Current state and totals.
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

    /// The requests that hold KV blocks, and how many. A block shared by n sequences counts 1/n for each, so
    /// the numbers add up to the blocks used.
    pub fn holdings(&self) -> impl Iterator<Item = (RequestId, f64)> + '_ {
        let leaving = self.leaving.values().map(|leaver| &leaver.sequence);
        let share = |sequence: &Sequence| {
            let parts = sequence.table.blocks().iter().map(|block| 1.0 / block.holders() as f64);
            (sequence.id, parts.sum())
        };
        self.running.values().chain(leaving).map(share)
    }

    /// The limits that the scheduler was created with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }
}

/// Applies a row's output to its sequence and caches the blocks that it completes. If the row failed, all
/// blocks of the sequence leave the prefix cache: a chunk without sampling does not show whether its values
/// are finite.
fn absorb(
    sequence: &mut Sequence,
    row: &Pending,
    output: &RowOutput,
    pool: &BlockPool,
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
