//! Every decision about the queue's room and a request's wait, as pure functions: whether the queue has room,
//! how long a group would wait, whether that is too long, and when a refused client should try again.
//!
//! A request is checked four times. The server checks the queue's room before it reads the body, and again
//! when the body is there ([`check_room`]). Once the body is parsed, the group's size is known
//! ([`check_group`]), and the wait is estimated from the last step's [`QueueSnapshot`], before the prompt is
//! tokenised. Last, the engine's thread estimates the wait from the prompt's tokens
//! ([`WaitEstimate::of_group`]), and the scheduler applies the same queue limits to the tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::forecast::{Forecast, PromptLoad, QueueState};
use crate::request::{Reject, Request, Tenant};
use crate::scheduler::step_plan::BLOCK_TOKENS;
use crate::scheduler::{Counts, Scheduler, SchedulerConfig, queue_limits};

/// The longest `Retry-After`, in seconds: clients ignore longer ones.
const LONGEST_RETRY: f64 = 120.0;

/// Checks that the queue has room for `requests` more. `permits` requests hold a [`super::QueuePermit`] and
/// are not among the scheduler's waiting ones yet.
///
/// # Errors
/// [`Reject::QueueFull`], or [`Reject::QueueTokensFull`] if not one more prompt token fits.
pub(crate) fn check_room(
    config: &SchedulerConfig,
    counts: &Counts,
    permits: usize,
    requests: usize,
) -> Result<(), Reject> {
    queue_limits::check_requests(config, counts.waiting + permits, requests)?;
    queue_limits::check_tokens(config, counts.waiting_tokens, 1)
}

/// Checks that a request with one place in the queue may become a group of `requests`. `permits` counts other
/// requests' places. A queue that is empty but for this request takes a group of any size.
///
/// # Errors
/// [`Reject::QueueFull`].
pub(crate) fn check_group(
    config: &SchedulerConfig,
    counts: &Counts,
    permits: usize,
    requests: usize,
) -> Result<(), Reject> {
    queue_limits::check_requests(config, counts.waiting + permits, requests)
}

/// The queue that `request` would find if it arrived now. Sequences of batches are no part of it, since they
/// give way.
pub fn queue_state(scheduler: &Scheduler, steps_in_flight: usize, request: &Request) -> QueueState {
    let (counts, config) = (scheduler.counts(), scheduler.config());
    let ahead = scheduler.ahead(&request.tenant, request.priority);
    // Assumes that the sequences that start next have the mean prompt length of those ahead and this one.
    let mean_tokens = (ahead.tokens + request.prompt.len()).div_ceil(ahead.requests + 1);
    let mean_blocks = mean_tokens.div_ceil(BLOCK_TOKENS).max(1);
    let free_slots = config.max_num_seqs.saturating_sub(counts.running);
    QueueState {
        requests_ahead: ahead.requests,
        tokens_ahead: ahead.tokens + scheduler.unfed_tokens(),
        prompt_tokens: request.prompt.len(),
        running: counts.running,
        can_start: free_slots.min(startable_blocks(&counts) / mean_blocks),
        step_tokens: config.max_num_batched_tokens,
        steps_in_flight,
    }
}

/// The load of the next step. Sequences of batches are no part of it.
pub(crate) fn prompt_load(scheduler: &Scheduler) -> PromptLoad {
    let counts = scheduler.counts();
    PromptLoad {
        decodes: counts.running,
        waiting_tokens: counts.waiting_tokens + scheduler.unfed_tokens(),
        step_tokens: scheduler.config().max_num_batched_tokens,
    }
}

/// A lower bound of [`queue_state`] for every request: no request is ahead, and the earliest step in flight
/// ends now.
fn shortest_queue_state(config: &SchedulerConfig, counts: &Counts, steps_in_flight: usize) -> QueueState {
    QueueState {
        running: counts.running,
        can_start: config.max_num_seqs.saturating_sub(counts.running).min(startable_blocks(counts)),
        step_tokens: config.max_num_batched_tokens,
        steps_in_flight: steps_in_flight.saturating_sub(1),
        ..QueueState::default()
    }
}

/// Blocks that live requests may start with: those that no live sequence holds or has reserved.
fn startable_blocks(counts: &Counts) -> usize {
    let taken = counts.blocks_used + counts.blocks_reserved;
    counts.blocks_total - taken.saturating_sub(counts.batch_blocks)
}

/// Seconds that a group of requests must wait.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WaitEstimate {
    /// Seconds until the group's first token.
    pub first_token: f64,
    /// Seconds until all answers of the group can be complete at the earliest: until the last request has its
    /// first token and `min_tokens` - 1 more.
    pub all_answers: f64,
    /// The same as `all_answers`, on an idle server.
    pub all_answers_idle: f64,
}

impl WaitEstimate {
    /// Estimates the wait of a group that arrives now. All values are 0 while the forecast knows nothing.
    pub(crate) fn of_group<'a>(
        group: impl Iterator<Item = &'a Request>,
        scheduler: &Scheduler,
        steps_in_flight: usize,
        forecast: &Forecast,
    ) -> Self {
        let group: Vec<&Request> = group.collect();
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Self::default() };
        // Choices of one prompt find it in the prefix cache.
        let prompts = group.chunk_by(|one, next| Arc::ptr_eq(&one.prompt, &next.prompt));
        let tokens: usize = prompts.map(|same| same[0].prompt.len()).sum();
        let of_last = |state: QueueState| QueueState {
            requests_ahead: state.requests_ahead + group.len() - 1,
            tokens_ahead: state.tokens_ahead + tokens - last.prompt.len(),
            prompt_tokens: last.prompt.len(),
            ..state
        };
        let further_tokens = f64::from(last.sampling.min_tokens.saturating_sub(1));
        // As few steps as possible: every draft is accepted.
        let further_steps = (further_tokens / (scheduler.config().max_drafts + 1) as f64).ceil();
        let all_answers = |state: &QueueState| {
            let step = forecast.step_takes(state.running + 1).unwrap_or(0.0);
            forecast.first_token(state) + further_steps * step
        };
        let now = queue_state(scheduler, steps_in_flight, first);
        let idle = QueueState {
            can_start: scheduler.config().max_num_seqs,
            step_tokens: now.step_tokens,
            ..QueueState::default()
        };
        Self {
            first_token: forecast.first_token(&now),
            all_answers: all_answers(&of_last(now)),
            all_answers_idle: all_answers(&of_last(idle)),
        }
    }
}

/// The queue after the last step, from which handles estimate a wait before the prompt is tokenised.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueueSnapshot {
    /// Step times and answer lengths so far.
    pub forecast: Forecast,
    /// A lower bound of the queue that a new request finds, for any tenant and priority.
    pub shortest: QueueState,
    /// The waiting requests, if all have the same tenant and priority.
    pub uniform: Option<UniformQueue>,
}

/// Waiting requests that all have the same tenant and priority.
#[derive(Debug, Clone, PartialEq)]
pub struct UniformQueue {
    /// The tenant of each waiting request.
    pub tenant: Arc<str>,
    /// The priority of each waiting request.
    pub priority: i32,
    /// Number of waiting requests.
    pub requests: usize,
    /// Prompt tokens of all waiting requests.
    pub tokens: usize,
}

impl QueueSnapshot {
    /// The snapshot of an engine without requests.
    pub fn empty(config: &SchedulerConfig, forecast: &Forecast) -> Self {
        let shortest = shortest_queue_state(config, &Counts::empty(config), 0);
        Self { forecast: forecast.clone(), shortest, uniform: None }
    }

    /// The snapshot of a scheduler with `steps_in_flight` steps.
    pub fn new(scheduler: &Scheduler, steps_in_flight: usize, forecast: &Forecast) -> Self {
        let counts = scheduler.counts();
        let uniform = scheduler.uniform_queue().map(|(tenant, priority)| UniformQueue {
            tenant: Arc::clone(tenant),
            priority: *priority,
            requests: counts.waiting,
            tokens: counts.waiting_tokens,
        });
        let shortest = shortest_queue_state(scheduler.config(), &counts, steps_in_flight);
        Self { forecast: forecast.clone(), shortest, uniform }
    }

    /// A lower bound of the wait of a request with this tenant and priority, whatever its prompt.
    pub fn wait_at_least(&self, tenant: &Tenant, priority: i32) -> WaitEstimate {
        let mut state = self.shortest;
        if let Some(queue) = &self.uniform
            && (queue.priority < priority || queue.priority == priority && queue.tenant == tenant.name)
        {
            (state.requests_ahead, state.tokens_ahead) = (queue.requests, queue.tokens);
        }
        let first_token = self.forecast.first_token(&state);
        let idle = QueueState { step_tokens: state.step_tokens, ..QueueState::default() };
        let all_answers_idle = self.forecast.first_token(&idle);
        WaitEstimate { first_token, all_answers: first_token, all_answers_idle }
    }
}

/// The longest acceptable wait of a group.
#[derive(Debug, Clone, Copy)]
pub struct WaitLimits {
    /// When the server received the group's request.
    pub received_at: Instant,
    /// When the client's deadline passes.
    pub deadline: Option<Instant>,
    /// The operator's `--max-ttft`.
    pub max_ttft: Option<Duration>,
}

impl WaitLimits {
    /// Whether the group has a limit at all; without one no estimate is needed.
    pub fn any(&self) -> bool {
        self.deadline.is_some() || self.max_ttft.is_some()
    }

    /// Refuses a group whose estimated wait exceeds a limit. An idle engine takes a group whatever `max_ttft`
    /// is: otherwise a `max_ttft` below the time of one step would refuse every request.
    ///
    /// # Errors
    /// [`Reject::DeadlineUnmet`] or [`Reject::Busy`].
    pub fn check(&self, estimate: &WaitEstimate, engine_idle: bool, now: Instant) -> Result<(), Reject> {
        let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        if let Some(deadline) = self.deadline {
            let (predicted, left) = (time(estimate.all_answers), deadline.saturating_duration_since(now));
            if left < predicted || left.is_zero() {
                let whole = deadline.saturating_duration_since(self.received_at);
                let ever = time(estimate.all_answers_idle) <= whole;
                return Err(Reject::DeadlineUnmet { predicted, left, ever });
            }
        }
        let predicted = time(estimate.first_token);
        match self.max_ttft {
            Some(limit) if limit < predicted && !engine_idle => Err(Reject::Busy { predicted, limit }),
            _ => Ok(()),
        }
    }
}

/// Whole seconds after which a refused client should try again: at least 1, at most 120.
pub fn retry_after(seconds: f64) -> Duration {
    Duration::from_secs(seconds.ceil().clamp(1.0, LONGEST_RETRY) as u64)
}
