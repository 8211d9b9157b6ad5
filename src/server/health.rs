//! Health from atomics: a probe takes no slot, no lock and no step, and answers as fast under full load as when idle.
//!
//! - Started: the model is loaded and its steps are recorded.
//! - Live: the engine has not failed, and if there is work, a step has ended lately. Busy is not hung, idle is alive,
//!   and so is a server that still loads. Lately is `--stall-timeout` beyond what the steps in flight are expected to take,
//!   by the executor's cost model or by the steps that have ended.
//! - Ready: started, live, and taking new requests. A full queue is no reason to say no.
//!
//! [`ALIASES`] has every path. They are the same on the main port, where routes lead here, and on the health port,
//! which has a thread of its own ([`super::management`]).

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::status::{Phase, Reading, ServerStatus, Stage};

/// What a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Whether starting is over.
    Startup,
    /// Whether a restart would not help.
    Live,
    /// Whether to send requests here.
    Ready,
}

/// Every path of a probe, what it asks, and who looks for it there. All need no key and take GET and HEAD.
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

/// What a path asks, if it is a probe's.
pub fn probe(path: &str) -> Option<Probe> {
    ALIASES.iter().find(|(alias, ..)| *alias == path).map(|(_, probe, _)| *probe)
}

/// What is wrong, if anything.
#[derive(Debug, Clone, PartialEq)]
pub enum Health {
    /// The model is not loaded yet.
    Starting {
        /// What is being done.
        stage: Stage,
        /// Of the weights' bytes.
        percent: f64,
        /// Until they are in, at the rate so far; `None` where there is none yet.
        eta: Option<Duration>,
    },
    /// Nothing.
    Well,
    /// The server shuts down.
    Draining {
        /// Until running requests are cut off.
        left: Duration,
    },
    /// Work is pending and no step ends.
    Stalled {
        /// For so long.
        age: Duration,
        /// Rather than this, at most.
        bound: Duration,
    },
    /// The engine has failed, for this reason.
    Failed(String),
}

/// What a reading means at a time, which was taken before it.
pub fn judge(reading: &Reading, now: Instant) -> Health {
    if let Some(reason) = &reading.beat.failed {
        return Health::Failed(reason.clone());
    }
    if reading.stage != Stage::Started {
        return starting(reading, now);
    }
    // The later of the two: work that came after a long rest is not late yet.
    let beat = &reading.beat;
    let since = beat.pending_since.map(|work| beat.last_step.map_or(work, |step| step.max(work)));
    let age = since.map(|since| now.saturating_duration_since(since));
    let bound = reading.stall_margin + beat.expected_step;
    match age {
        Some(age) if age > bound => Health::Stalled { age, bound },
        _ if reading.phase == Phase::Serving => Health::Well,
        _ => {
            let left = reading.drained_by.map(|by| by.saturating_duration_since(now));
            Health::Draining { left: left.unwrap_or_default() }
        }
    }
}

fn starting(reading: &Reading, now: Instant) -> Health {
    let (done, total) = reading.loaded;
    let share = if total == 0 { 0.0 } else { done as f64 / total as f64 };
    let elapsed = reading.loading_since.map(|since| now.saturating_duration_since(since));
    let eta = elapsed.filter(|_| done > 0).map(|elapsed| elapsed.mul_f64((1.0 - share).max(0.0) / share));
    Health::Starting { stage: reading.stage, percent: 100.0 * share, eta }
}

impl Health {
    /// Whether a probe is told yes.
    pub fn answers(&self, probe: Probe) -> bool {
        match probe {
            Probe::Startup => !matches!(self, Self::Starting { .. }),
            Probe::Live => !matches!(self, Self::Stalled { .. } | Self::Failed(_)),
            Probe::Ready => *self == Self::Well,
        }
    }

    /// In one word.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::Starting { stage, .. } => match stage {
                Stage::Opening => "opening_devices",
                Stage::Reading => "reading_model",
                Stage::Loading => "loading_weights",
                Stage::Preparing | Stage::Started => "preparing_steps",
            },
            Self::Well => "serving",
            Self::Draining { .. } => "draining",
            Self::Stalled { .. } => "stalled",
            Self::Failed(_) => "failed",
        }
    }

    /// For people.
    pub fn reason(&self) -> String {
        match self {
            Self::Starting { percent, eta, .. } => {
                let phase = self.phase().replace('_', " ");
                let eta = eta.map(|eta| format!(", {:.0} s left", eta.as_secs_f64())).unwrap_or_default();
                format!("the server is starting: {phase}, {percent:.0} % of the weights are in{eta}")
            }
            Self::Well => "ok".to_owned(),
            Self::Draining { left } => {
                format!("the server is shutting down, within {} s", left.as_secs_f64().ceil())
            }
            Self::Stalled { age, bound } => {
                let (age, bound) = (age.as_secs_f64(), bound.as_secs_f64());
                format!(
                    "no step has ended for {age:.1} s with work pending; expected one within {bound:.1} s"
                )
            }
            Self::Failed(reason) => format!("the engine has failed: {reason}"),
        }
    }
}

/// The answer to a probe, now.
pub fn answer(status: &ServerStatus, probe: Probe) -> Response<Body> {
    let now = Instant::now();
    let reading = status.read();
    let health = judge(&reading, now);
    let well = health.answers(probe);
    let mut response = Response::new(Body::from(describe(&reading, &health, probe, now).to_string()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !well {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// What a reading means, as JSON. `object`, `message` and `status` are as NIM has them.
pub fn describe(reading: &Reading, health: &Health, probe: Probe, now: Instant) -> Value {
    let status = match (probe, health.answers(probe)) {
        (Probe::Startup, true) => "started",
        (Probe::Startup, false) => "starting",
        (Probe::Live, true) => "live",
        (Probe::Live, false) => "dead",
        (Probe::Ready, true) => "ready",
        (Probe::Ready, false) => "not_ready",
    };
    let reason = health.reason();
    let beat = &reading.beat;
    let age = beat.last_step.map(|step| now.saturating_duration_since(step).as_secs_f64());
    let mut body = json!({
        "object": "health.response",
        "status": status,
        "message": reason,
        "reason": reason,
        "phase": health.phase(),
        "running": beat.running,
        "waiting": beat.waiting,
        "open_requests": reading.open,
        "last_step_age_s": age,
        "stall_bound_s": (reading.stall_margin + beat.expected_step).as_secs_f64(),
    });
    match health {
        Health::Starting { percent, eta, .. } => {
            body["percent"] = json!((percent * 10.0).round() / 10.0);
            body["eta_s"] = json!(eta.map(|eta| (eta.as_secs_f64() * 10.0).round() / 10.0));
        }
        Health::Draining { left } => body["drain_remaining_s"] = json!(left.as_secs_f64()),
        _ => {}
    }
    body
}
