//! Middleware around all routes and fallbacks: the check of [`access`], the request id, headers for browsers
//! (CORS), HTTP metrics and the access log.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONNECTION, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::access::{self, Access};
use super::access_log::AccessRecord;
use super::error_response::{self, ErrorLabel};
use super::state::ServerState;
use super::system::random_u64;

/// Checks a request, calls its route, and completes the response.
pub(crate) async fn handle(
    State(state): State<Arc<ServerState>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let began = Instant::now();
    let id = request_id(request.headers());
    let record = AccessRecord::new(request.method().as_str(), request.uri().path(), Some(id.clone()));
    let handler = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "PATCH") => known.to_owned(),
        _ => "OTHER".to_owned(),
    };
    let origin = request.headers().get(ORIGIN).cloned();
    let path = request.uri().path().to_owned();
    let mut response = match access::check(&state, &request) {
        Ok(Access::Route { caller, usage }) => {
            request.extensions_mut().insert(Arc::clone(&record));
            request.extensions_mut().insert(usage);
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Ok(Access::Preflight(response)) => response,
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        *response.status_mut() = state.settings.queue_full_status;
    }
    error_response::adapt(&path, Some(&id), &mut response);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    state.origins.add_headers(origin.as_ref(), response.headers_mut());
    if state.shutting_down() {
        // Load balancers keep connections open. This header makes them close those to this server before it
        // stops accepting requests.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16();
    if let Some(ErrorLabel { code, .. }) = response.extensions().get() {
        state.metrics.error(code);
    }
    answered(&record, &response);
    state.metrics.http(handler.as_deref().unwrap_or("none"), &method, status, began.elapsed());
    response
}

/// Returns the record of a request for the access log, which the middleware has made.
pub(crate) fn record_of(request: &Request) -> Arc<AccessRecord> {
    let made = request.extensions().get::<Arc<AccessRecord>>().cloned();
    made.unwrap_or_else(|| AccessRecord::new(request.method().as_str(), request.uri().path(), None))
}

/// Puts a response into the record of its request.
pub(crate) fn answered(record: &AccessRecord, response: &Response<Body>) {
    record.responded(response.status().as_u16());
    if let Some(ErrorLabel { code, param, .. }) = response.extensions().get() {
        record.failed(code, param.as_deref());
    }
}

/// Returns the client's `x-request-id` if it consists of 1 to 128 letters, digits and `-_.:/`, else a new id.
fn request_id(headers: &HeaderMap) -> String {
    let valid = |id: &&str| {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        (1..=128).contains(&id.len()) && id.bytes().all(harmless)
    };
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok()).filter(valid);
    given.map_or_else(|| format!("req-{:016x}", random_u64().unwrap_or_default()), str::to_owned)
}
