//! Runs a validated request: admission, generation, metrics and log. It knows no transport: the reply is
//! JSON, whole or in chunks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::access_log::AccessRecord;
use super::error::ApiError;
use super::metrics::{AdmittedRequest, Tracker};
use super::reply_builder::ReplyOptions;
use super::reply_writer::{ReplyKind, ReplyWriter};
use super::state::ServerState;
use super::system::random_u64;
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
    /// Bits of the reply's id, if the reply must have the same bytes whenever the request is made. Its time
    /// is then 0, and it does not say how much of the prompt was cached.
    pub(crate) fixed_id: Option<[u64; 2]>,
}

/// An admitted request whose deltas are measured on their way to the client. Dropping it aborts what still
/// runs.
pub(crate) struct TrackedGeneration {
    generation: Generation,
    /// Writes the reply.
    writer: ReplyWriter,
    /// The path of the field that constrains the answer.
    grammar_path: String,
    /// Paths of the request's fields that have no effect.
    ignored: Vec<String>,
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
    kind: ReplyKind,
    record: Arc<AccessRecord>,
) -> Result<TrackedGeneration, ApiError> {
    let mut ignored = valid.ignored().to_vec();
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
    let Admission { permit, received_at, timeout, fixed_id } = admission;
    let [high, low] = match fixed_id {
        Some(id) => id,
        None => [random_u64()?, random_u64()?],
    };
    let id = format!("{}{high:016x}{low:016x}", kind.id_prefix());
    let (key, counters) = state.metrics.key_counters(&state.keys.usage_label(&ask.tenant));
    // The shorter of the limits in the headers and in the body holds.
    let timeout = timeout.into_iter().chain(within).min();
    let deadline = timeout.and_then(|timeout| received_at.checked_add(timeout));
    let counters = Some(counters);
    let submit = SubmitOptions { received_at, deadline, counters, ..SubmitOptions::default() };
    let batch = permit.is_batch();
    let admitted = AdmittedRequest { id: id.clone(), record, key, batch, arrived: Instant::now() };
    let reproducible = fixed_id.is_some();
    let options =
        ReplyOptions { logprobs, include_usage, continuous_usage, names_ids, include_cost, reproducible };
    let paths = kind.prompt_paths();
    let writer = ReplyWriter::new(kind, id, model, options);
    let generation = state.generator.start(permit, ask, submit).await.map_err(|refusal| {
        let (index, refusal) = refusal.located();
        state.metrics.refused(&refusal);
        match refusal {
            Refusal::Grammar(error) => ApiError::invalid(&*grammar_path, error.to_string()),
            refusal => refusal_error(state, refusal, paths.of(index)),
        }
    })?;
    let tracker = Some(state.metrics.track(admitted, &generation));
    ignored.extend_from_slice(generation.ignored_keywords());
    let state = Arc::clone(state);
    Ok(TrackedGeneration { generation, writer, grammar_path, ignored, tracker, state })
}

/// Returns the API error for a refusal. `param` is the request's field that holds the prompt.
pub(crate) fn refusal_error(state: &ServerState, refusal: Refusal, param: &str) -> ApiError {
    ApiError::from_refusal(refusal, param, state.generator.engine().retry_after())
}

impl TrackedGeneration {
    /// Paths of unknown fields, and of keywords in schemas of tools that the answer need not follow.
    pub(crate) fn ignored(&self) -> &[String] {
        &self.ignored
    }

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

    /// Writes the events that precede the answer.
    pub(crate) fn write_begin(&mut self, out: &mut Vec<u8>) {
        self.writer.begin(self.generation.usage(), out);
    }

    /// Writes the events of a delta.
    pub(crate) fn write_delta(&mut self, delta: Delta, out: &mut Vec<u8>) {
        let prompt_tokens = self.generation.prompt_lengths().nth(delta.index).unwrap_or_default();
        let cached_tokens = self.generation.usage().cached_tokens.min(prompt_tokens);
        self.writer.delta(delta, Usage { prompt_tokens, cached_tokens, completion_tokens: 0 }, out);
    }

    /// Writes the last events of a complete answer.
    pub(crate) fn write_end(&mut self, out: &mut Vec<u8>) {
        self.writer.end(self.generation.usage(), self.generation.cost(), out);
    }

    /// Writes the last event of an answer that failed. Returns whether it ends the stream as one of its
    /// protocol.
    pub(crate) fn write_failure(&mut self, error: &ApiError, out: &mut Vec<u8>) -> bool {
        self.writer.failed(error, self.generation.usage(), out)
    }

    /// The bytes that a stream without news gets.
    pub(crate) fn keep_alive(&self) -> &'static [u8] {
        self.writer.keep_alive()
    }

    /// Waits for all choices and returns the JSON of the whole reply.
    ///
    /// # Errors
    /// The error that the generation failed with.
    pub(crate) async fn complete(mut self) -> Result<String, ApiError> {
        while let Some(step) = self.next().await {
            self.writer.collect(step?);
        }
        let (n, usage) = (self.generation.n(), self.generation.usage());
        Ok(self.writer.whole(n, usage, self.generation.cost()))
    }

    /// Records a failure and returns its error. [`ApiError::EngineFailed`], which clients retry, is used only
    /// if the engine has stopped: otherwise the request would fail on another server too.
    fn failed(&mut self, failure: Failure) -> ApiError {
        self.tracker.iter_mut().for_each(|tracker| tracker.failed(&failure, self.generation.costs()));
        let reason = match failure {
            Failure::Engine(reason) => reason,
            Failure::TooComplex(reason) => {
                let text = format!("the grammar became too complex within the answer: {reason}");
                return ApiError::invalid(&*self.grammar_path, text);
            }
            Failure::Late => return ApiError::DeadlineExceeded,
        };
        if self.state.engine_is_gone() {
            ApiError::EngineFailed(reason)
        } else {
            tracing::error!(id = self.writer.id(), reason, "a request failed");
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
