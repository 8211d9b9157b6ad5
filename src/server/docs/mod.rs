//! The API's description: the OpenAPI 3.1 document at `/openapi.json`. The page at `/docs` shows it.
//!
//! The document is made of the tables that requests are read by, of the types that replies are written by and
//! of the table of errors. Only `operations` is written by hand; a test compares it with the routes.

mod document;
mod errors;
mod operation;
mod operations;
mod reward_operations;

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::routing::{MethodRouter, get};

use super::state::ServerState;

/// Path of the document, which needs no API key.
pub(super) const PATH: &str = "/openapi.json";

/// The route of the document.
pub(super) fn route() -> (&'static str, MethodRouter<Arc<ServerState>>) {
    let document = Bytes::from(document::document().to_string());
    // A newer version of the server has another document.
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")];
    (PATH, get(move || async move { (headers, document) }))
}
