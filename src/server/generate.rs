//! Runs a validated request: admission, generation, metrics and log. It knows no transport: the reply is
//! JSON, whole or in chunks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::access_log::AccessRecord;
use super::error::ApiError;
use super::metrics::{AdmittedRequest, Tracker};
use super::reply_builder::{CompleteChoice, ReplyBuilder, ReplyFormat, ReplyOptions};
use super::state::ServerState;
use super::system::{random_u64, unix_time};
use super::validate::ValidRequest;
use crate::engine::{QueuePermit, SubmitOptions};
use crate::generation::{Delta, Failure, Generation, Refusal, Usage};

/// How long to wait for the final cost of aborted choices, which the engine reports with its next step.
const FINAL_COST_TIMEOUT: Duration = Duration::from_secs(10);

/// A request's place in the queue, with the arrival time and the time limit of its head.
pub(crate) struct Admission {
    /// One place in the queue.
    pub(crate) permit: QueuePermit,
    /// When the request's head arrived.
    pub(crate) received_at: Instant,
    /// The time limit of the request's headers.
    pub(crate) timeout: Option<Duration>,
}

/// An admitted request whose deltas are measured on their way to the client. Dropping it aborts what still
/// runs.
pub(crate) struct TrackedGeneration {
    generation: Generation,
    /// Builds the reply's JSON.
    pub(crate) builder: ReplyBuilder,
    /// Taken when this is dropped.
    tracker: Option<Tracker>,
    state: Arc<ServerState>,
}

/// Submits a validated request and waits until the scheduler has admitted or refused it. A refusal therefore
/// has its own status even if the reply would be a stream.
///
/// # Errors
/// The error that the request is refused with.
pub(crate) async fn start(
    state: &Arc<ServerState>,
    admission: Admission,
    valid: ValidRequest,
    format: ReplyFormat,
    record: Arc<AccessRecord>,
) -> Result<TrackedGeneration, ApiError> {
    let ValidRequest {
        model,
        ask,
        timeout: within,
        include_usage,
        continuous_usage,
        names_ids,
        include_cost,
        logprobs,
        grammar_path,
        ..
    } = valid;
    let id = format!("{}-{:016x}{:016x}", format.id_prefix(), random_u64()?, random_u64()?);
    let (key, counters) = state.metrics.key_counters(&state.keys.usage_label(&ask.tenant));
    let Admission { permit, received_at, timeout } = admission;
    // The shorter of the limits in the headers and in the body holds.
    let timeout = timeout.into_iter().chain(within).min();
    let deadline = timeout.and_then(|timeout| received_at.checked_add(timeout));
    let counters = Some(counters);
    let submit = SubmitOptions { received_at, deadline, counters, ..SubmitOptions::default() };
    let batch = permit.is_batch();
    let admitted = AdmittedRequest { id: id.clone(), record, key, batch, arrived: Instant::now() };
    let options = ReplyOptions { logprobs, include_usage, continuous_usage, names_ids, include_cost };
    let builder = ReplyBuilder::new(format, id, unix_time(), model, options);
    let generation = state.generator.start(permit, ask, submit).await.map_err(|refusal| {
        state.metrics.refused(&refusal);
        match refusal {
            Refusal::Grammar(error) => ApiError::invalid(grammar_path, error.to_string()),
            refusal => refusal_error(state, refusal, format),
        }
    })?;
    let tracker = Some(state.metrics.track(admitted, &generation));
    Ok(TrackedGeneration { generation, builder, tracker, state: Arc::clone(state) })
}

/// Returns the API error for a refusal.
pub(crate) fn refusal_error(state: &ServerState, refusal: Refusal, format: ReplyFormat) -> ApiError {
    ApiError::from_refusal(refusal, format.prompt_param(), state.generator.engine().retry_after())
}

impl TrackedGeneration {
    /// Returns the next delta of any choice, as [`Generation::next`] does, and records it in the metrics.
    ///
    /// # Errors
    /// The error that the generation failed with.
    pub(crate) async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        match self.generation.next().await? {
            Ok(delta) => {
                self.tracker.iter_mut().for_each(|tracker| tracker.delta(&delta));
                Some(Ok(delta))
            }
            Err(failure) => Some(Err(self.failed(failure))),
        }
    }

    /// Number of choices, over all prompts.
    pub(crate) fn choices(&self) -> usize {
        self.generation.choices()
    }

    /// Token counts of a choice that has generated this many tokens.
    pub(crate) fn usage_of(&self, index: usize, completion_tokens: usize) -> Usage {
        let prompt_tokens = self.generation.prompt_lengths().nth(index).unwrap_or_default();
        let cached_tokens = self.generation.usage().cached_tokens.min(prompt_tokens);
        Usage { prompt_tokens, completion_tokens, cached_tokens }
    }

    /// JSON of the chunk with usage and cost so far, if the request asked for either.
    pub(crate) fn final_chunk(&self) -> Option<String> {
        self.builder.final_chunk(self.generation.usage(), self.generation.cost())
    }

    /// Waits for all choices and returns the JSON of the whole reply.
    ///
    /// # Errors
    /// The error that the generation failed with.
    pub(crate) async fn complete(mut self) -> Result<String, ApiError> {
        let mut choices: Vec<CompleteChoice> =
            (0..self.choices()).map(|_| CompleteChoice::default()).collect();
        while let Some(step) = self.next().await {
            let delta = step?;
            choices[delta.index].push(delta);
        }
        Ok({
            let (n, usage) = (self.generation.n(), self.generation.usage());
            self.builder.complete(choices, n, usage, self.generation.cost())
        })
    }

    /// Records a failure and returns its error. [`ApiError::EngineFailed`], which clients retry, is used only
    /// if the engine has stopped: otherwise the request would fail on another server too.
    fn failed(&mut self, failure: Failure) -> ApiError {
        self.tracker.iter_mut().for_each(|tracker| tracker.failed(&failure, self.generation.costs()));
        let Failure::Engine(reason) = failure else { return ApiError::DeadlineExceeded };
        if self.state.engine_is_gone() {
            ApiError::EngineFailed(reason)
        } else {
            tracing::error!(id = self.builder.id(), reason, "a request failed");
            ApiError::Internal(reason)
        }
    }
}

impl Drop for TrackedGeneration {
    /// Aborts the choices that still run. Their final cost, known after the engine's next step, is only
    /// needed for the log, so a separate task waits for it.
    fn drop(&mut self) {
        let Some(mut tracker) = self.tracker.take() else { return };
        tracker.end(self.generation.costs());
        let left = self.generation.abort_all();
        // Without a runtime the process is ending: the log gets the costs known by now.
        if let (false, Ok(runtime)) = (left.is_empty(), Handle::try_current()) {
            runtime.spawn(timeout(FINAL_COST_TIMEOUT, async move {
                for (index, choice) in left {
                    if let Some(cost) = choice.cost().await {
                        tracker.cost(index, cost);
                    }
                }
            }));
        }
    }
}
