//! A request's body from the socket to a JSON object, within limits of size, time, depth and number of values.
//!
//! Depth and number are checked on the raw bytes before any parser runs, so that fields that nobody reads are covered
//! too: a parsed value takes far more memory than its digit and comma. Large bodies are parsed a few at a time and off
//! the async threads, which answer probes meanwhile. Of a key given twice the last counts.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderValue, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::ServerState;
use super::error::ApiError;

/// Arrays and objects within each other.
pub const MAX_JSON_DEPTH: usize = 32;
/// Commas and colons outside strings: room for a million token ids.
pub const MAX_JSON_VALUES: usize = 1_200_000;
/// Bytes of a body that is parsed at once, in well under a millisecond.
const SMALL: usize = 64 << 10;

/// The most that a body may be, and may take.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyLimits {
    /// Bytes.
    pub max_bytes: usize,
    /// From the end of the head to the end of the body.
    pub deadline: Duration,
}

/// Reads a body that should be JSON. No content type, or a wrong one such as curl's default, is taken for JSON; a form
/// of parts or a compressed body is not.
///
/// # Errors
/// 400, 408, 413 or 415; 429 if too many others come meanwhile, 503 if the server ends.
pub async fn read(request: Request<Body>, state: &ServerState) -> Result<Bytes, ApiError> {
    check_type(request.headers())?;
    let mut seat = state.reading.enter();
    tokio::select! {
        bytes = all(request.into_body(), &state.settings.http.body) => bytes,
        () = seat.lost() => Err(ApiError::TooManyBodies(state.settings.http.max_reading)),
        () = state.cut_off() => Err(ApiError::Draining),
    }
}

/// Parses a body that must be a JSON object.
///
/// # Errors
/// 400.
pub async fn parse(bytes: Bytes, state: &ServerState) -> Result<Map<String, Value>, ApiError> {
    if bytes.len() <= SMALL {
        return parse_object(&bytes);
    }
    let internal = |_| ApiError::Internal("the server failed to read the request body".to_owned());
    // The permit goes with the work, which goes on if the client leaves.
    let permit = Arc::clone(&state.parsing).acquire_owned().await.map_err(|e| internal(e.to_string()))?;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        parse_object(&bytes)
    });
    work.await.map_err(|e| internal(e.to_string()))?
}

async fn all(body: Body, limits: &BodyLimits) -> Result<Bytes, ApiError> {
    let all = Limited::new(body, limits.max_bytes).collect();
    match tokio::time::timeout(limits.deadline, all).await {
        Err(_elapsed) => Err(ApiError::TooSlow(limits.deadline.as_secs())),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(ApiError::TooLarge(limits.max_bytes))
        }
        Ok(Err(_broken)) => Err(ApiError::Malformed("The request body is incomplete.".to_owned())),
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase();
    let encoding = headers.get(CONTENT_ENCODING).map(text).unwrap_or_default();
    if !matches!(encoding.as_str(), "" | "identity") {
        return Err(ApiError::MediaType("Compressed request bodies are not supported.".to_owned()));
    }
    let kind = headers.get(CONTENT_TYPE).map(text).unwrap_or_default();
    if kind.starts_with("multipart/") {
        return Err(ApiError::MediaType("Expected a body of type application/json.".to_owned()));
    }
    Ok(())
}

/// Parses a JSON object.
///
/// # Errors
/// 400 with a text of our own: what a parser says about a body can be as long as the body.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let (depth, values) = measure(bytes);
    if depth > MAX_JSON_DEPTH {
        let text = format!("The request body nests arrays and objects deeper than {MAX_JSON_DEPTH} levels.");
        return Err(ApiError::Malformed(text));
    }
    if values > MAX_JSON_VALUES {
        let text = format!("The request body has more than {MAX_JSON_VALUES} values.");
        return Err(ApiError::Malformed(text));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::Malformed("Expected the request body to be a JSON object.".to_owned())),
        Err(error) => Err(ApiError::Malformed(format!(
            "The request body is not valid JSON (syntax, UTF-8, escapes or a number's range) at line {}, column {}.",
            error.line(),
            error.column()
        ))),
    }
}

/// How deep brackets outside strings nest, and how many commas and colons there are. For text that is not JSON the
/// answer may be anything; the parser refuses it.
fn measure(bytes: &[u8]) -> (usize, usize) {
    let (mut depth, mut deepest, mut values) = (0_usize, 0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for &byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b',' | b':') => values += 1,
            _ => {}
        }
    }
    (deepest, values)
}
