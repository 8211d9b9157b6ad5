//! Health from the engine's heartbeat. A probe reads a snapshot: it takes no slot, waits for no step, and answers as
//! fast under full load as when idle.
//!
//! Alive: the engine has not failed, and if there is work, a step has ended lately. Busy is not hung, and idle is
//! alive. Ready: alive, and taking new requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;

use super::ServerState;

/// What is wrong, if anything.
enum Health {
    Well,
    Draining,
    Stalled(Duration),
    Failed(String),
}

impl Health {
    fn of(state: &ServerState) -> Self {
        let stats = state.generator.engine().stats();
        if let Some(reason) = stats.failed {
            return Self::Failed(reason);
        }
        // The later of the two: work that came after a long rest is not late yet.
        let since = stats.busy_since.map(|busy| stats.last_step.map_or(busy, |step| step.max(busy)));
        match since.map(|since| since.elapsed()) {
            Some(age) if age > state.settings.stalled_after => Self::Stalled(age),
            _ if state.draining() => Self::Draining,
            _ => Self::Well,
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::Well => "ok".to_owned(),
            Self::Draining => "the server is shutting down".to_owned(),
            Self::Stalled(age) => format!("no step has ended for {} s with work pending", age.as_secs()),
            Self::Failed(reason) => format!("the engine has failed: {reason}"),
        }
    }
}

/// Whether a restart would help.
pub async fn live(State(state): State<Arc<ServerState>>) -> impl IntoResponse {
    let health = Health::of(&state);
    let well = matches!(health, Health::Well | Health::Draining);
    body(&state, &health, well, if well { "live" } else { "dead" })
}

/// Whether to send requests here.
pub async fn ready(State(state): State<Arc<ServerState>>) -> impl IntoResponse {
    let health = Health::of(&state);
    let well = matches!(health, Health::Well);
    body(&state, &health, well, if well { "ready" } else { "not_ready" })
}

fn body(state: &ServerState, health: &Health, well: bool, status: &str) -> impl IntoResponse + use<> {
    let stats = state.generator.engine().stats();
    let code = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reason = health.reason();
    let body = json!({
        "object": "health.response",
        "status": status,
        "message": reason,
        "reason": reason,
        "running": stats.counts.running,
        "waiting": stats.counts.waiting,
        "last_step_age_s": stats.last_step.map(|step| step.elapsed().as_secs_f64()),
    });
    (code, Json(body))
}
