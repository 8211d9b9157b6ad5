//! The access log: one line for each HTTP request, written when its response is complete.
//!
//! A line is at level info, that of a probe or a scrape at level debug. Neither the body nor the query of a
//! request is logged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::health;
use super::log_values::{bounded, thousandths};

/// Status in the log of a request whose client disconnected before the response. nginx uses it too.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Facts about one request for its line. The record is held by the middleware and by the generation;
/// the line is written when the last one drops it.
pub(crate) struct AccessRecord {
    method: String,
    path: String,
    /// `x-request-id` of the request, if it has one.
    request_id: Option<String>,
    began: Instant,
    /// Whether the record is written to the log.
    is_logged: bool,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    status: Option<u16>,
    code: Option<&'static str>,
    param: Option<String>,
    /// When the response ended, if that is not the time at which the record is dropped.
    ended: Option<Instant>,
    generation: Option<GenerationRecord>,
}

/// Facts about an admitted request for a completion.
pub(crate) struct GenerationRecord {
    /// `id` of the answer, such as `chatcmpl-…`.
    pub(crate) id: String,
    /// Label of the API key or user whose counters are charged.
    pub(crate) key: String,
    /// How each choice ended, separated by commas.
    pub(crate) ended: String,
    pub(crate) prompt_tokens: usize,
    pub(crate) generated_tokens: u32,
    pub(crate) cached_tokens: u64,
    pub(crate) computed_tokens: u64,
    pub(crate) recomputed_tokens: u64,
    /// Seconds in the queue.
    pub(crate) queue: f64,
    /// Seconds of device time for the prompt.
    pub(crate) prefill: f64,
    /// Seconds of device time for the answer.
    pub(crate) decode: f64,
    /// KV blocks held, integrated over time in seconds.
    pub(crate) kv_block_seconds: f64,
    /// Time from the validated request to the end of the answer.
    pub(crate) total: Duration,
}

impl AccessRecord {
    /// Starts the record of a request whose head has been read.
    pub(crate) fn new(method: &str, path: &str, request_id: Option<String>) -> Arc<Self> {
        Self::make(method, path, request_id, true)
    }

    /// Starts the record of a batch's line.
    pub(crate) fn of_line(path: &str, request_id: Option<String>, is_logged: bool) -> Arc<Self> {
        Self::make("POST", path, request_id, is_logged)
    }

    fn make(method: &str, path: &str, request_id: Option<String>, is_logged: bool) -> Arc<Self> {
        Arc::new(Self {
            method: bounded(method),
            path: bounded(path),
            request_id,
            began: Instant::now(),
            is_logged,
            outcome: Mutex::default(),
        })
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the response's status.
    pub(crate) fn responded(&self, status: u16) {
        self.outcome().status = Some(status);
    }

    /// Sets the code of an error response, and the JSON field that caused the error.
    pub(crate) fn failed(&self, code: &'static str, param: Option<&str>) {
        let mut outcome = self.outcome();
        (outcome.code, outcome.param) = (Some(code), param.map(bounded));
    }

    /// Sets tokens and cost of an admitted request, and the end of its answer.
    pub(crate) fn generated(&self, generation: GenerationRecord, ended: Instant) {
        let mut outcome = self.outcome();
        (outcome.generation, outcome.ended) = (Some(generation), Some(ended));
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        if !self.is_logged {
            return;
        }
        let outcome = std::mem::take(&mut *self.outcome());
        let Outcome { status, code, param, ended, generation } = outcome;
        let status = status.unwrap_or(CLIENT_CLOSED_REQUEST);
        let (method, path, request_id) = (&*self.method, &*self.path, self.request_id.as_deref());
        let duration = ended.unwrap_or_else(Instant::now).saturating_duration_since(self.began);
        let duration_ms = thousandths(duration.as_secs_f64() * 1e3);
        let Some(generation) = generation else {
            if health::probe(path).is_some() || path == "/metrics" {
                tracing::debug!(method, path, status, code, param, request_id, duration_ms, "request");
            } else {
                tracing::info!(method, path, status, code, param, request_id, duration_ms, "request");
            }
            return;
        };
        tracing::info!(
            method,
            path,
            status,
            code,
            param,
            request_id,
            duration_ms,
            id = generation.id,
            key = generation.key,
            ended = generation.ended,
            prompt_tokens = generation.prompt_tokens,
            generated_tokens = generation.generated_tokens,
            cached_tokens = generation.cached_tokens,
            computed_tokens = generation.computed_tokens,
            recomputed_tokens = generation.recomputed_tokens,
            queue_ms = thousandths(generation.queue * 1e3),
            prefill_ms = thousandths(generation.prefill * 1e3),
            decode_ms = thousandths(generation.decode * 1e3),
            kv_block_s = thousandths(generation.kv_block_seconds),
            total_ms = thousandths(generation.total.as_secs_f64() * 1e3),
            "request"
        );
    }
}

/// Logs a request whose head could not be read.
pub(crate) fn malformed(status: u16, code: &'static str) {
    tracing::info!(status, code, "request");
}
