//! Reads request bodies and parses their JSON, that of large bodies on a blocking thread.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderValue, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::byte_budget::HeldBytes;
use super::error::ApiError;
use super::json::parse_object;
use super::settings::BodyLimits;
use super::state::ServerState;

/// Bytes of the largest body that is parsed on an async thread, which takes well under a millisecond. Async
/// threads also answer probes, so a larger body is parsed on a blocking thread.
const MAX_INLINE_PARSE: usize = 64 << 10;

/// The bytes of a body, counted among those of all bodies until they are parsed.
pub(crate) struct ReadBody {
    bytes: Bytes,
    _held: HeldBytes,
}

/// Reads the bytes of a body that should be JSON. A missing or wrong content type is accepted, since curl's
/// default is wrong; multipart and compressed bodies are refused. A web page can send some of these types to
/// another origin without a preflight request; `access` has refused it by its `Origin` header.
///
/// # Errors
/// Status 400, 408, 413 or 415; 429 if too many other bodies arrive meanwhile or take too much memory; 503 if
/// the shutdown aborts requests.
pub(crate) async fn read(request: Request<Body>, state: &ServerState) -> Result<ReadBody, ApiError> {
    check_type(request.headers())?;
    let mut permit = state.body_permits.acquire();
    tokio::select! {
        body = read_within(request.into_body(), state) => body,
        () = permit.evicted() => Err(ApiError::TooManyBodies(state.settings.http.max_reading)),
        () = state.abort.cancelled() => Err(ApiError::Draining),
    }
}

/// Parses a body that must be a JSON object, a large one on a blocking thread.
///
/// # Errors
/// Status 400.
pub(crate) async fn parse(body: ReadBody, state: &ServerState) -> Result<Map<String, Value>, ApiError> {
    if body.bytes.len() <= MAX_INLINE_PARSE {
        return parse_object(&body.bytes);
    }
    let internal = || ApiError::Internal("the server failed to read the request body".to_owned());
    // The blocking thread owns the permit, because it continues after the client has disconnected.
    let permit = Arc::clone(&state.parsing).acquire_owned().await.map_err(|_closed| internal())?;
    let work = tokio::task::spawn_blocking(move || {
        let (_permit, body) = (permit, body);
        parse_object(&body.bytes)
    });
    work.await.map_err(|_panicked| internal())?
}

async fn read_within(body: Body, state: &ServerState) -> Result<ReadBody, ApiError> {
    let limits = &state.settings.http.body;
    match tokio::time::timeout(limits.deadline, read_all(body, state)).await {
        Err(_elapsed) => Err(ApiError::TooSlow(limits.deadline.as_secs())),
        Ok(read) => read,
    }
}

/// Reads all frames of a body.
async fn read_all(body: Body, state: &ServerState) -> Result<ReadBody, ApiError> {
    let BodyLimits { max_bytes, max_total_bytes, .. } = state.settings.http.body;
    let mut body = Limited::new(body, max_bytes);
    let mut held = state.body_bytes.hold();
    // Most bodies are one frame, which is not copied.
    let (mut first, mut joined) = (Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => ApiError::TooLarge(max_bytes),
            None => ApiError::Malformed("The request body is incomplete.".to_owned()),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if !held.add(data.len()) {
            return Err(ApiError::TooManyBytes(max_total_bytes));
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut first));
            joined.extend_from_slice(&data);
        }
    }
    let bytes = if joined.is_empty() { first } else { joined.into() };
    Ok(ReadBody { bytes, _held: held })
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
