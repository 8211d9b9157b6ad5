//! Writes an [`ApiError`] as an HTTP response: status, headers, and the JSON object as body, in the form of
//! the route's protocol.

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response};
use axum::response::IntoResponse;

use super::anthropic::{self, reply::error_json};
use super::error::ApiError;

/// Extension of an error's response, for metrics and log.
#[derive(Debug, Clone)]
pub(crate) struct ErrorLabel {
    /// [`ApiError::label`].
    pub(crate) code: &'static str,
    /// [`ApiError::param`].
    pub(crate) param: Option<String>,
    error: ApiError,
}

/// Gives the response of an error the body that clients of this path expect. `id` is the request's.
pub(super) fn adapt(path: &str, id: Option<&str>, response: &mut Response<Body>) {
    if !anthropic::is_path(path) {
        return;
    }
    if let Some(id) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
        response.headers_mut().insert("request-id", id);
    }
    if let Some(ErrorLabel { error, .. }) = response.extensions().get() {
        let body = error_json(error, response.status().as_u16(), id);
        *response.body_mut() = Body::from(body);
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status();
        response.extensions_mut().insert(ErrorLabel {
            code: self.label(),
            param: self.param().map(str::to_owned),
            error: self.clone(),
        });
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry) = self.should_retry() {
            headers.insert("x-should-retry", HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            headers.insert("retry-after-ms", HeaderValue::from(seconds * 1000));
        }
        if self == Self::BadKey {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if closes_connection(&self) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Returns true if the connection must end with the response, so that the unread rest of a body is not taken
/// for the next request.
fn closes_connection(error: &ApiError) -> bool {
    matches!(
        error,
        ApiError::TooSlow(_)
            | ApiError::TooLarge(_)
            | ApiError::TooManyBodies(_)
            | ApiError::TooManyBytes(_)
            | ApiError::HeadersTooLarge(..)
            | ApiError::StorageFull(_)
            | ApiError::NotReady
            | ApiError::Draining
    )
}
