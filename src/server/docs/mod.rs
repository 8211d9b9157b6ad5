//! The API's description: the OpenAPI 3.1 document at `/openapi.json`, and the page at `/docs` that shows it.
//!
//! The document is made of the tables that requests are read by, of the types that replies are written by and
//! of the table of errors. Only `operations` is written by hand; a test compares it with the routes.

mod document;
mod errors;
mod operations;

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;

use super::state::ServerState;

/// The paths of [`routes`], which need no API key.
pub(super) const PATHS: [&str; 4] = ["/openapi.json", "/docs", "/docs/docs.js", "/docs/docs.css"];

/// The things that the page may load and do: its own script and style, and requests to this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the description.
pub(super) fn routes() -> [(&'static str, MethodRouter<Arc<ServerState>>); 4] {
    let document = Bytes::from(document::document().to_string());
    let [document_path, page, script, style] = PATHS;
    [
        (document_path, file("application/json", document)),
        (page, file("text/html; charset=utf-8", Bytes::from_static(include_bytes!("docs.html")))),
        (script, file("text/javascript; charset=utf-8", Bytes::from_static(include_bytes!("docs.js")))),
        (style, file("text/css; charset=utf-8", Bytes::from_static(include_bytes!("docs.css")))),
    ]
}

/// A route that returns the same bytes always.
fn file(kind: &'static str, content: Bytes) -> MethodRouter<Arc<ServerState>> {
    get(move || async move {
        let mut response = Response::new(Body::from(content));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // A newer version of the server has another document.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    })
}
