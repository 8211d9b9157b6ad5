//! Health from atomics: a probe takes no lock, no queue place and no step, and is answered as fast under full
//! load as on an idle server.
//!
//! - Started: the model is loaded and its steps are captured.
//! - Live: the engine has not failed and is not stalled. It is stalled if it has work and no step has ended
//!   for `--stall-timeout` beyond the expected duration of the steps in flight, which comes from the
//!   executor's cost model or from earlier steps. An idle server is live, and so is one that still loads
//!   weights.
//! - Ready: started, live, and not shutting down. A server with a full queue is ready.
//!
//! [`ALIASES`] lists every path. They are the same on the main port, as routes, and on the health port
//! ([`super::management`]), which has a thread of its own.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use schemars::JsonSchema;

use super::status::{ServerStatus, ShutdownPhase, Stage, StatusSnapshot};

/// Kinds of probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Has the server started?
    Startup,
    /// Is the process healthy (if not, restart it)?
    Live,
    /// Does the server accept requests (if not, send them elsewhere)?
    Ready,
}

/// Every probe's path, its kind, and the software that uses the path. None needs a key; all take GET and
/// HEAD.
pub const ALIASES: [(&str, Probe, &str); 15] = [
    ("/health", Probe::Ready, "vLLM, TGI, SGLang, llama.cpp"),
    ("/health/startup", Probe::Startup, "Octant"),
    ("/health/live", Probe::Live, "Octant"),
    ("/health/ready", Probe::Ready, "Octant"),
    ("/v1/health/startup", Probe::Startup, "NIM"),
    ("/v1/health/live", Probe::Live, "NIM"),
    ("/v1/health/ready", Probe::Ready, "NIM"),
    ("/v2/health/live", Probe::Live, "Triton, KServe"),
    ("/v2/health/ready", Probe::Ready, "Triton, KServe"),
    ("/startupz", Probe::Startup, "Kubernetes"),
    ("/livez", Probe::Live, "Kubernetes"),
    ("/readyz", Probe::Ready, "Kubernetes"),
    ("/healthz", Probe::Live, "Kubernetes"),
    ("/ping", Probe::Ready, "vLLM, SageMaker"),
    ("/health_generate", Probe::Ready, "SGLang, TensorRT-LLM"),
];

/// Returns the kind of probe at a path, if the path is a probe's.
pub fn probe(path: &str) -> Option<Probe> {
    ALIASES.iter().find(|(alias, ..)| *alias == path).map(|(_, probe, _)| *probe)
}

/// Health of the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Health {
    /// The model is not loaded yet.
    Starting {
        /// Stage of startup.
        stage: Stage,
        /// Percentage of the weights' bytes that is loaded.
        percent: f64,
        /// Time until all weights are loaded, at the rate so far; `None` before the first byte.
        eta: Option<Duration>,
    },
    /// The server accepts requests and the engine makes progress.
    Healthy,
    /// The server shuts down.
    Draining {
        /// Time until running requests are aborted.
        left: Duration,
    },
    /// The engine has work and no step ends.
    Stalled {
        /// Time since the last step ended, or since work arrived if that was later.
        age: Duration,
        /// The longest such time that counts as healthy.
        bound: Duration,
    },
    /// The engine has failed, with this reason.
    Failed(String),
}

/// Assesses a snapshot. `now` must have been taken before it.
pub fn assess(snapshot: &StatusSnapshot, now: Instant) -> Health {
    let engine = &snapshot.engine;
    if let Some(reason) = &engine.failed {
        return Health::Failed(reason.clone());
    }
    if snapshot.stage != Stage::Started {
        return starting(snapshot, now);
    }
    // The later of the two: work that arrives after a long idle time is not late yet.
    let since = engine.pending_since.map(|work| engine.last_step.map_or(work, |step| step.max(work)));
    let age = since.map(|since| now.saturating_duration_since(since));
    let bound = snapshot.stall_margin + engine.expected_step;
    match age {
        Some(age) if age > bound => Health::Stalled { age, bound },
        _ if snapshot.phase == ShutdownPhase::Serving => Health::Healthy,
        _ => {
            let left = snapshot.drained_by.map(|by| by.saturating_duration_since(now));
            Health::Draining { left: left.unwrap_or_default() }
        }
    }
}

fn starting(snapshot: &StatusSnapshot, now: Instant) -> Health {
    let (done, total) = (snapshot.bytes_loaded, snapshot.bytes_total);
    let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
    let elapsed = snapshot.loading_since.map(|since| now.saturating_duration_since(since));
    let eta = elapsed.filter(|_| done > 0).map(|elapsed| elapsed.mul_f64((1.0 - share).max(0.0) / share));
    Health::Starting { stage: snapshot.stage, percent: 100.0 * share, eta }
}

impl Health {
    /// Returns true if a probe gets status 200, false if it gets 503.
    pub fn passes(&self, probe: Probe) -> bool {
        match probe {
            Probe::Startup => !matches!(self, Self::Starting { .. }),
            Probe::Live => !matches!(self, Self::Stalled { .. } | Self::Failed(_)),
            Probe::Ready => *self == Self::Healthy,
        }
    }

    /// The field `phase` of a probe's response.
    fn phase(&self) -> &'static str {
        match self {
            Self::Starting { stage, .. } => match stage {
                Stage::Opening => "opening_devices",
                Stage::Downloading => "downloading_model",
                Stage::Reading => "reading_model",
                Stage::Loading => "loading_weights",
                Stage::Preparing | Stage::Started => "preparing_steps",
            },
            Self::Healthy => "serving",
            Self::Draining { .. } => "draining",
            Self::Stalled { .. } => "stalled",
            Self::Failed(_) => "failed",
        }
    }

    /// The field `reason` of a probe's response, for people.
    fn reason(&self) -> String {
        match self {
            Self::Starting { stage, percent, eta } => {
                let phase = self.phase().replace('_', " ");
                let what = if *stage == Stage::Downloading { "downloaded" } else { "of the weights loaded" };
                let eta = eta.map(|eta| format!(", {:.0} s left", eta.as_secs_f64())).unwrap_or_default();
                format!("the server is starting: {phase}, {percent:.0} % {what}{eta}")
            }
            Self::Healthy => "ok".to_owned(),
            Self::Draining { left } => {
                format!("the server is shutting down, within {} s", left.as_secs_f64().ceil())
            }
            Self::Stalled { age, bound } => {
                let (age, bound) = (age.as_secs_f64(), bound.as_secs_f64());
                format!("the engine has work but no step has ended for {age:.1} s; the limit is {bound:.1} s")
            }
            Self::Failed(reason) => format!("the engine has failed: {reason}"),
        }
    }
}

/// Responds to a probe with the current health.
pub(crate) fn respond(status: &ServerStatus, probe: Probe) -> Response<Body> {
    let now = Instant::now();
    let snapshot = status.snapshot();
    let health = assess(&snapshot, now);
    let reply = describe(&snapshot, &health, probe, now);
    let json = serde_json::to_vec(&reply).expect("text and finite numbers can be written as JSON");
    let mut response = Response::new(Body::from(json));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !health.passes(probe) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// Body of a probe's response. `object`, `message` and `status` are NVIDIA NIM's.
#[derive(Debug, serde::Serialize, JsonSchema)]
pub(super) struct HealthReply {
    object: &'static str,
    /// Result of the probe.
    status: &'static str,
    /// The same as `reason`.
    message: String,
    /// Reason for people.
    reason: String,
    /// Phase of the server.
    phase: &'static str,
    /// Running sequences.
    running: usize,
    /// Waiting sequences.
    waiting: usize,
    /// Requests whose response is not complete.
    open_requests: usize,
    /// Seconds since the last step ended.
    last_step_age_s: Option<f64>,
    /// Seconds without a step, while there is work, after which the server counts as stalled.
    stall_bound_s: f64,
    /// Percentage of the weights that is loaded, while the server starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
    /// Seconds until all weights are loaded, while the server starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_s: Option<Option<f64>>,
    /// Seconds until running requests are aborted, while the server shuts down.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_remaining_s: Option<f64>,
}

fn describe(snapshot: &StatusSnapshot, health: &Health, probe: Probe, now: Instant) -> HealthReply {
    let status = match (probe, health.passes(probe)) {
        (Probe::Startup, true) => "started",
        (Probe::Startup, false) => "starting",
        (Probe::Live, true) => "live",
        (Probe::Live, false) => "dead",
        (Probe::Ready, true) => "ready",
        (Probe::Ready, false) => "not_ready",
    };
    let tenths = |value: f64| (value * 10.0).round() / 10.0;
    let (percent, eta_s, drain_remaining_s) = match health {
        Health::Starting { percent, eta, .. } => {
            (Some(tenths(*percent)), Some(eta.map(|eta| tenths(eta.as_secs_f64()))), None)
        }
        Health::Draining { left } => (None, None, Some(left.as_secs_f64())),
        _ => (None, None, None),
    };
    let (engine, reason) = (&snapshot.engine, health.reason());
    HealthReply {
        object: "health.response",
        status,
        message: reason.clone(),
        reason,
        phase: health.phase(),
        running: engine.running,
        waiting: engine.waiting,
        open_requests: snapshot.open_requests,
        last_step_age_s: engine.last_step.map(|step| now.saturating_duration_since(step).as_secs_f64()),
        stall_bound_s: (snapshot.stall_margin + engine.expected_step).as_secs_f64(),
        percent,
        eta_s,
        drain_remaining_s,
    }
}
