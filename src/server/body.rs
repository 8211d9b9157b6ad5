//! A request's body from the socket to a JSON object, within limits of size, time and depth.
//!
//! Depth is checked on the raw bytes before any parser runs, so that fields that nobody reads are covered too. Of a
//! key given twice the last counts.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderValue, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Arrays and objects within each other.
pub const MAX_JSON_DEPTH: usize = 32;

/// The most that a body may be, and may take.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyLimits {
    /// Bytes.
    pub max_bytes: usize,
    /// From the end of the head to the end of the body.
    pub deadline: Duration,
}

/// Reads a body that must be a JSON object. No content type, or a wrong one such as curl's default, is taken for
/// JSON; a form of parts or a compressed body is not.
///
/// # Errors
/// 400, 408, 413 or 415.
pub async fn read_json(request: Request<Body>, limits: &BodyLimits) -> Result<Map<String, Value>, ApiError> {
    check_type(request.headers())?;
    parse_object(&read(request.into_body(), limits).await?)
}

async fn read(body: Body, limits: &BodyLimits) -> Result<Bytes, ApiError> {
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
    if deeper_than(bytes, MAX_JSON_DEPTH) {
        let text = format!("The request body nests arrays and objects deeper than {MAX_JSON_DEPTH} levels.");
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

/// Whether brackets outside strings nest deeper than `limit`. For text that is not JSON the answer may be either;
/// the parser refuses it.
fn deeper_than(bytes: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}
