//! Responses whose status is not a success.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Response;
use hyper::body::Incoming;
use serde_json::Value;

use super::back_off::pause_asked;

/// Bytes of an error body that are read.
const MAX_BODY: usize = 64 << 10;

/// A response whose status is not a success.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// HTTP status.
    pub(crate) status: u16,
    /// The pause of `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
    /// The body, empty if it could not be read.
    pub(crate) body: Bytes,
}

impl Refusal {
    /// Reads the response.
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let status = response.status().as_u16();
        let retry_after = pause_asked(response.headers());
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Self { status, retry_after, body: body.map(|body| body.to_bytes()).unwrap_or_default() }
    }

    /// The server's message, or the body itself if it is not JSON.
    pub(crate) fn message(&self) -> String {
        match serde_json::from_slice(&self.body) {
            Ok(value) => message(&value),
            Err(_) => String::from_utf8_lossy(&self.body).trim().to_owned(),
        }
    }
}

/// Message of an error response in any common form: `error.message`, `message`, `detail`, or the value
/// itself.
pub fn message(error: &Value) -> String {
    let inner = error.get("error").unwrap_or(error);
    let text = inner.get("message").or_else(|| inner.get("detail")).unwrap_or(inner);
    text.as_str().map_or_else(|| text.to_string(), str::to_owned)
}
