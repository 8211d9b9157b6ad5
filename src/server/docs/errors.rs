//! The errors that a route can return, by status. Statuses and codes are those of [`ApiError`] itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::error::ApiError;

/// Which errors a route can return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    /// Those of a request's head, which every route but the probes can return.
    Head,
    /// Also an unknown model in the path.
    Model,
    /// Also those of a body.
    Body,
    /// Also those of a body and of the engine.
    Generation,
    /// Also those of finding a file or batch.
    Object,
    /// Also those of finding a file or batch and of changing it.
    ObjectChange,
    /// Also those of a form with a file.
    Upload,
    /// Also those of a body, of finding a file, and of room on the disk.
    NewBatch,
}

impl Errors {
    /// An error of each kind.
    fn examples(self) -> Vec<ApiError> {
        let none = String::new;
        let mut all = vec![
            ApiError::Malformed(none()),
            ApiError::BadKey,
            ApiError::HostNotAllowed(none()),
            ApiError::OriginNotAllowed(none()),
            ApiError::HeadersTooLarge(0, 0),
            ApiError::NotReady,
            ApiError::Draining,
        ];
        match self {
            Self::Head => {}
            Self::Model => all.push(ApiError::ModelNotFound(none())),
            Self::Body => all.extend(body()),
            Self::Generation => all.extend(body().into_iter().chain(engine())),
            Self::Object => all.extend(object()),
            Self::ObjectChange => all.extend(object().into_iter().chain([ApiError::Conflict(none())])),
            Self::Upload => all.extend(upload()),
            Self::NewBatch => all.extend(upload().into_iter().chain(object())),
        }
        all
    }

    /// The responses of these errors, by status. `body` is the reference to the schema of their bodies.
    pub(super) fn responses(self, body: &str) -> BTreeMap<String, Value> {
        let mut statuses: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        for error in self.examples() {
            let codes = statuses.entry(error.status().as_u16()).or_default();
            let code = error.code().unwrap_or("null").to_owned();
            if !codes.contains(&code) {
                codes.push(code);
            }
        }
        statuses
            .into_iter()
            .map(|(status, codes)| (status.to_string(), response(status, &codes, body)))
            .collect()
    }
}

/// Errors of the body of a request for an answer or for tokens.
fn body() -> Vec<ApiError> {
    let none = String::new;
    let mut all = arrival();
    all.extend([
        ApiError::ModelNotFound(none()),
        ApiError::QueueFull { message: none(), retry_after: None },
        ApiError::ContextBytes { param: none(), limit: 0, bytes: 0 },
    ]);
    all
}

/// Errors while a body arrives, and of its fields.
fn arrival() -> Vec<ApiError> {
    let none = String::new;
    vec![
        ApiError::invalid("", ""),
        ApiError::unsupported("", ""),
        ApiError::TooSlow(0),
        ApiError::TooLarge(0),
        ApiError::MediaType(none()),
        ApiError::TooManyBodies(0),
        ApiError::TooManyBytes(0),
        ApiError::Internal(none()),
    ]
}

/// Errors of the engine.
fn engine() -> Vec<ApiError> {
    let none = String::new;
    vec![
        ApiError::ContextLength { param: none(), limit: 0, prompt: 0, completion: 0 },
        ApiError::DeadlineUnmet { message: none(), retry_after: Some(Duration::ZERO) },
        ApiError::DeadlineExceeded,
        ApiError::EngineDown(none()),
        ApiError::EngineFailed(none()),
    ]
}

/// Errors of finding a file or batch. A server that keeps none refuses the request as unsupported.
fn object() -> Vec<ApiError> {
    let none = String::new;
    vec![
        ApiError::invalid("", ""),
        ApiError::unsupported("", ""),
        ApiError::NoObject(none()),
        ApiError::Internal(none()),
    ]
}

/// Errors of a body that takes room on the disk.
fn upload() -> Vec<ApiError> {
    let mut all = arrival();
    all.push(ApiError::StorageFull(String::new()));
    all
}

fn response(status: u16, codes: &[String], body: &str) -> Value {
    let mut response = json!({
        "description": format!("{}. Codes: {}.", meaning(status), codes.join(", ")),
        "content": { "application/json": { "schema": { "$ref": body } } },
        "x-octant-codes": codes,
    });
    if matches!(status, 429 | 503) {
        let seconds = json!({ "schema": { "type": "integer" }, "description": "Seconds to wait." });
        response["headers"] = json!({ "Retry-After": seconds });
    }
    response
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is not valid, or asks for something that is not supported",
        401 => "The API key is missing or wrong",
        403 => "The request's host or origin is not allowed",
        404 => "The model, file or batch does not exist",
        408 => "The body did not arrive in time",
        409 => "The file is in use or the batch has ended, so it does not change",
        413 => "The body is too large, or the server has no room for it",
        415 => "The body's type or encoding is not supported",
        429 => "The server is busy; another status can be configured",
        431 => "The request's head is too large",
        500 => "The server failed on this request",
        503 => "The server is starting, is shutting down, or its engine has stopped",
        504 => "The deadline of the request has passed",
        _ => "Another error",
    }
}
