//! Decides which tokens run in the next step, and in which KV blocks. The decisions are pure: no clock, no
//! IO, no randomness, no device. The same calls always give the same plans.
//!
//! Continuous batching: each step gives one token to every sequence that is generating. Prompts share the
//! rest of the step's token budget in chunks: first the prompts already begun, then new ones in the order of
//! `fair_queue`. A sequence takes all blocks of its known tokens when it starts, and one more for every 64
//! tokens it generates. When every free block is reserved, the last running sequence in order is preempted:
//! it gives up its blocks and is computed again later, at most as often as [`Policy::max_preemptions`] allows
//! (see `planner`). A sequence waits for a prefix block that another sequence is about to compute.
//!
//! [`Scheduler::plan`] returns a step; [`Scheduler::commit`] takes it back with its output. One more step may
//! be planned in between; its decode rows feed tokens that are not known yet. A sequence that ends or is
//! preempted while it has a row in flight keeps its blocks and its slot until that row is committed.
//!
//! With [`SchedulerConfig::max_drafts`], decode rows may feed drafts as well (see `speculation`).
//!
//! Requests of batches run behind live ones: they wait in a queue of their own, without ageing, and get what
//! live requests leave (see `yielding`). Limits of the queue, forecasts and the counters of fairness between
//! live requests do not see them.
//!
//! `planner` makes plans, `step_plan` is their data, `fair_queue` orders waiting requests, `sequence` is one
//! request's state, `blocks` and `prefix` keep the KV cache's books, `request_check` refuses requests that
//! can never run, `queue_limits` those that the queue has no room for, and `integrity` recounts everything.
//! `speculation` chooses drafts by `step_times`: `ngram` finds them, or the executor's draft model proposes
//! them, of which `draft_model` knows how often they are accepted. `commit` takes the outputs of rows.
//! `prefetch` concerns the processor's caches only.

pub mod blocks;
mod commit;
mod counts;
mod draft_model;
mod error;
pub mod fair_queue;
mod fingerprint;
mod integrity;
mod ngram;
mod planner;
mod prefetch;
pub mod prefix;
pub(crate) mod queue_limits;
mod request_check;
mod sequence;
mod slots;
mod speculation;
pub mod step_plan;
mod step_times;
mod yielding;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::request::{Reject, Request, Tenant, Update};
use blocks::Pool;
pub use counts::{Counts, SpeculationCounts};
use draft_model::{DraftModelState, ModelDrafts};
pub use error::SchedulerError;
use fair_queue::{Ahead, FairQueue};
use sequence::{Order, PlannedRow, Sequence};
use slots::Slots;
pub use speculation::MAX_DRAFTS;
use step_plan::{StepOutput, StepPlan};
pub use step_times::{ContextTime, StepTime, StepTimes};

/// The most steps that may be planned and not yet committed.
pub(crate) const MAX_IN_FLIGHT: usize = 2;

/// Identifies one request. An id is never used twice while the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct RequestId(pub u64);

/// The scheduler's limits.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SchedulerConfig {
    /// The most sequences that run at once; each has a slot.
    pub max_num_seqs: usize,
    /// The most tokens of a step.
    pub max_num_batched_tokens: usize,
    /// The most tokens of a sequence, prompt and output together.
    pub max_model_len: usize,
    /// KV blocks, each of [`step_plan::BLOCK_TOKENS`] tokens.
    pub num_blocks: usize,
    /// Size of the vocabulary; all token ids are below it.
    pub vocab_size: usize,
    /// The most requests that wait. An empty queue takes one group of any size.
    pub max_queue_requests: usize,
    /// The most prompt tokens that wait. An empty queue takes one group of any length.
    pub max_queue_tokens: usize,
    /// Enables sharing of KV blocks between requests with equal prefixes.
    pub prefix_caching: bool,
    /// Values of the model's reward head. 0: the model has none and generates.
    pub reward_width: usize,
    /// Rules for ageing, preemption and reservation.
    pub policy: Policy,
    /// The most drafts of a row, at most [`MAX_DRAFTS`]; 0 without speculative decoding.
    pub max_drafts: usize,
    /// Whether the executor proposes the drafts by a draft model. Otherwise they are found in the sequence.
    pub draft_model: bool,
}

/// Rules for ageing, preemption and reservation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Policy {
    /// Steps of waiting that raise a request by one priority; 0 disables ageing.
    pub ageing_steps: u64,
    /// The most preemptions of one sequence. With 0, all blocks that a sequence can need are reserved when it
    /// starts.
    pub max_preemptions: u32,
    /// Share of a sequence's possible growth that is reserved when it starts, from 0 to 1. With 1 no sequence
    /// is ever preempted, and blocks for unused `max_tokens` stay idle while the sequence runs.
    pub kv_reserve: f32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { ageing_steps: 1000, max_preemptions: 3, kv_reserve: 0.0 }
    }
}

impl Policy {
    /// Blocks to reserve for a growth of `growth` blocks, rounded up.
    fn share_of(&self, growth: usize) -> usize {
        ((growth as f64 * f64::from(self.kv_reserve)).ceil() as usize).min(growth)
    }
}

impl SchedulerConfig {
    /// Tokens of the longest sequence that can run: it must fit the context and the whole KV cache.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_model_len.min(self.num_blocks * step_plan::BLOCK_TOKENS)
    }

    /// # Panics
    /// If a limit that must be positive is 0, or `kv_reserve` is not from 0 to 1.
    pub(crate) fn assert_sound(&self) {
        assert!(self.max_num_seqs > 0, "max_num_seqs must be positive");
        assert!(self.max_num_batched_tokens > 0, "max_num_batched_tokens must be positive");
        assert!(self.max_model_len > 0, "max_model_len must be positive");
        assert!(self.num_blocks > 0, "num_blocks must be positive");
        assert!(self.vocab_size > 0, "vocab_size must be positive");
        assert!((0.0..=1.0).contains(&self.policy.kv_reserve), "kv_reserve must be from 0 to 1");
        assert!(self.max_drafts <= MAX_DRAFTS, "max_drafts must be at most {MAX_DRAFTS}");
    }
}

/// A step as [`Scheduler::plan`] returns it.
pub struct PlannedStep {
    /// The plan that the executor runs.
    pub plan: Arc<StepPlan>,
    /// The part that [`Scheduler::commit`] takes back.
    pub rows: PlannedRows,
}

/// The scheduler's record of a step in flight. The caller keeps it and returns it to
/// [`Scheduler::commit`].
pub struct PlannedRows {
    step: u64,
    rows: Vec<PlannedRow>,
}

impl PlannedRows {
    /// The request of each row, in row order.
    pub fn request_ids(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.rows.iter().map(|row| row.id)
    }
}

/// Decides what each step computes.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: Pool,
    slots: Slots,
    /// Live sequences without blocks and without a slot.
    waiting: FairQueue,
    /// Sequences of batches without blocks and without a slot.
    waiting_batch: FairQueue,
    /// Sequences with a slot and the blocks of all tokens planned.
    running: BTreeMap<Order, Sequence>,
    /// Sequences that have left `running` and keep blocks and slot for a row in flight.
    leaving: BTreeMap<Order, LeavingSequence>,
    /// Every request that still gets an update.
    orders: HashMap<RequestId, Order>,
    /// Prompt tokens of waiting live sequences.
    waiting_tokens: usize,
    /// The sum of all sequences' reserved blocks.
    reserved: usize,
    next_sequence_number: u64,
    /// Steps committed; the id of the next step to commit.
    committed_steps: u64,
    /// Rows planned and not committed.
    rows_in_flight: usize,
    /// Whether the step in flight has drafts.
    drafts_in_flight: bool,
    step_times: StepTimes,
    draft_model: DraftModelState,
    totals: Counts,
}

/// A sequence that releases its blocks and its slot when its last row in flight is committed.
struct LeavingSequence {
    sequence: Sequence,
    reason: LeaveReason,
}

/// Why a sequence no longer runs.
#[derive(Clone, Copy, PartialEq)]
enum LeaveReason {
    /// The sequence was preempted: its output in flight still counts, and it waits to run again.
    Preempted,
    /// The sequence has finished or was aborted: its output in flight is discarded.
    Ended,
}

impl Scheduler {
    /// Makes a scheduler with no requests and all blocks free.
    ///
    /// # Panics
    /// If a limit that must be positive is 0.
    pub fn new(config: SchedulerConfig) -> Self {
        config.assert_sound();
        Self {
            pool: Pool::new(config.num_blocks),
            slots: Slots::new(config.max_num_seqs),
            waiting: FairQueue::default(),
            waiting_batch: FairQueue::default(),
            running: BTreeMap::new(),
            leaving: BTreeMap::new(),
            orders: HashMap::new(),
            waiting_tokens: 0,
            reserved: 0,
            next_sequence_number: 0,
            committed_steps: 0,
            rows_in_flight: 0,
            drafts_in_flight: false,
            step_times: StepTimes::default(),
            draft_model: DraftModelState::default(),
            totals: Counts::default(),
            config,
        }
    }

    /// Takes a group of requests into the queue, all or none.
    ///
    /// # Errors
    /// A request can never run, or the queue is full.
    ///
    /// # Panics
    /// If a request's id was used before.
    pub fn submit(&mut self, group: Vec<(RequestId, Request)>) -> Result<(), Reject> {
        for (_, request) in &group {
            request_check::check(request, &self.config)?;
        }
        let live = || group.iter().filter(|(_, request)| !request.batch);
        if live().next().is_some() {
            let tokens: usize = live().map(|(_, request)| request.prompt.len()).sum();
            queue_limits::check_requests(&self.config, self.waiting.len(), live().count())?;
            queue_limits::check_tokens(&self.config, self.waiting_tokens, tokens)?;
        }
        if self.orders.is_empty() {
            self.waiting.reset_counters();
            self.waiting_batch.reset_counters();
        }
        for (id, request) in group {
            let mut sequence = Sequence::new(id, self.next_sequence_number, self.totals.steps, request);
            sequence.model_drafts = self.config.draft_model.then(ModelDrafts::default);
            self.next_sequence_number += 1;
            let earlier = self.orders.insert(id, sequence.order);
            assert!(earlier.is_none(), "request {} was submitted twice", id.0);
            self.enqueue(sequence);
        }
        Ok(())
    }

    /// The queue of live sequences or that of batches.
    fn queue(&mut self, batch: bool) -> &mut FairQueue {
        if batch { &mut self.waiting_batch } else { &mut self.waiting }
    }

    fn enqueue(&mut self, sequence: Sequence) {
        if !sequence.order.batch {
            self.waiting_tokens += sequence.prompt_len();
        }
        self.queue(sequence.order.batch).push(sequence);
    }

    /// Takes a sequence out of its queue; `None` if it does not wait.
    fn dequeue(&mut self, order: &Order) -> Option<Sequence> {
        let sequence = self.queue(order.batch).remove(order)?;
        if !order.batch {
            self.waiting_tokens -= sequence.prompt_len();
        }
        Some(sequence)
    }

    /// Requests that would start before a new request of this tenant and priority.
    pub fn ahead(&self, tenant: &Tenant, priority: i32) -> Ahead {
        self.waiting.ahead(&tenant.name, priority, self.totals.steps, self.config.policy.ageing_steps)
    }

    /// The tenant and priority of all waiting requests; `None` where they differ. A new request of this
    /// tenant and priority, or of a lower priority, starts after all of them, whatever their ages.
    pub(crate) fn uniform_queue(&self) -> Option<&(Arc<str>, i32)> {
        self.waiting.only_key()
    }

    /// Ends a request without a further update. Its blocks are free at once, or when its row in flight is
    /// committed. An unknown or ended request is not an error.
    pub fn abort(&mut self, id: RequestId) {
        let Some(order) = self.orders.remove(&id) else { return };
        if self.dequeue(&order).is_some() {
            return;
        }
        if let Some(sequence) = self.running.remove(&order) {
            self.release(sequence, LeaveReason::Ended);
        } else if let Some(leaving) = self.leaving.get_mut(&order) {
            leaving.reason = LeaveReason::Ended;
        }
    }

    /// Plans the next step. Beside running live sequences it has at most `prompt_tokens` tokens of prompts,
    /// so that their next tokens do not wait long for it. `None` is no limit.
    ///
    /// Returns `None` if nothing can be computed now, or [`MAX_IN_FLIGHT`] steps are in flight.
    /// While batches have the device alone, one step is in flight: a live request that arrives then waits for
    /// the rest of that step and for no other. While sequences speculate, one step is in flight too.
    pub fn plan(&mut self, prompt_tokens: Option<usize>) -> Option<PlannedStep> {
        if self.steps_in_flight() >= self.most_in_flight() {
            return None;
        }
        let (rows, planned) = self.plan_rows(prompt_tokens);
        if rows.is_empty() {
            return None;
        }
        let id = self.totals.steps;
        self.totals.steps += 1;
        self.rows_in_flight += planned.len();
        self.drafts_in_flight = planned.iter().any(|row| row.drafts > 0);
        if !self.drafts_in_flight {
            self.draft_model.allow(self.step_times.seconds(planned.len()));
        }
        let rows_of_step = PlannedRows { step: id, rows: planned };
        Some(PlannedStep { plan: Arc::new(StepPlan { id, rows }), rows: rows_of_step })
    }

    /// Takes back the earliest step in flight, with its output. Returns the updates for clients.
    ///
    /// # Errors
    /// The output does not fit the step, or the step is not the earliest in flight.
    pub fn commit(
        &mut self,
        rows: PlannedRows,
        output: StepOutput,
    ) -> Result<Vec<(RequestId, Update)>, SchedulerError> {
        let (expected, got) = ((self.committed_steps, rows.rows.len()), (output.id, output.rows.len()));
        if rows.step != self.committed_steps || expected != got {
            let expected = (self.steps_in_flight() > 0).then_some(expected);
            let message = format!("the executor returned (step, rows) {got:?}, expected {expected:?}");
            return Err(SchedulerError::new(message));
        }
        self.committed_steps += 1;
        self.rows_in_flight -= rows.rows.len();
        let mut updates = Vec::with_capacity(rows.rows.len());
        if self.steps_in_flight() == 0 {
            self.drafts_in_flight = false;
        }
        for (row, output) in rows.rows.iter().zip(output.rows) {
            self.totals.speculation.add(output.drafts.len(), output.tokens.len());
            self.observe_proposals(row, &output);
            self.commit_row(row, output, &mut updates);
        }
        self.waiting.flush_charges();
        self.waiting_batch.flush_charges();
        Ok(updates)
    }

    fn steps_in_flight(&self) -> usize {
        (self.totals.steps - self.committed_steps) as usize
    }

    /// Prompt tokens of running live sequences that are not planned yet.
    pub(crate) fn unfed_tokens(&self) -> usize {
        self.running_live().map(Sequence::pending).filter(|pending| *pending > 1).sum()
    }

    /// Whether no request waits or runs, and no step is in flight.
    pub fn is_idle(&self) -> bool {
        let none_wait = self.waiting.is_empty() && self.waiting_batch.is_empty();
        none_wait && self.running.is_empty() && self.steps_in_flight() == 0
    }

    /// Current numbers and totals.
    pub fn counts(&self) -> Counts {
        let batch_running = self.running_batch().count();
        let batch_blocks = self.running_batch().map(|sequence| sequence.table.len() + sequence.reserved);
        Counts {
            running: self.running.len() - batch_running,
            waiting: self.waiting.len(),
            waiting_tokens: self.waiting_tokens,
            batch_running,
            batch_waiting: self.waiting_batch.len(),
            batch_blocks: batch_blocks.sum(),
            blocks_free: self.pool.free(),
            blocks_used: self.pool.used(),
            blocks_cached: self.pool.cached(),
            blocks_total: self.pool.total(),
            blocks_reserved: self.reserved,
            ..self.totals.clone()
        }
    }

    /// KV blocks of each request that holds some. A block that n requests share counts 1/n for each, so that
    /// the sum is the number of blocks used.
    pub fn holdings(&self) -> impl Iterator<Item = (RequestId, f64)> + '_ {
        let leaving = self.leaving.values().map(|leaving| &leaving.sequence);
        let share = |sequence: &Sequence| {
            let parts = sequence.table.blocks().iter().map(|block| 1.0 / block.holders() as f64);
            (sequence.id, parts.sum())
        };
        self.running.values().chain(leaving).map(share)
    }

    /// The scheduler's limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }
}
