//! An operation of the document: method, request body and answers.

use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

use super::errors::Errors;

/// Media type of most bodies.
pub(super) const JSON: &str = "application/json";

/// One method of a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// The path as the router writes it.
    pub(super) path: &'static str,
    /// Group of operations on the page.
    pub(super) tag: &'static str,
    pub(super) summary: String,
    /// Parameters in the query of the URL.
    pub(super) query: Vec<QueryParameter>,
    pub(super) body: Option<RequestBody>,
    pub(super) answer: Answer,
    /// `None` for probes, which answer with their own body always.
    pub(super) errors: Option<Errors>,
}

/// A parameter in the query of the URL.
pub(super) struct QueryParameter {
    pub(super) name: &'static str,
    pub(super) schema: Value,
    pub(super) about: &'static str,
}

/// The body of a request.
pub(super) struct RequestBody {
    pub(super) media_type: &'static str,
    /// Name of the schema.
    pub(super) name: &'static str,
    pub(super) schema: Value,
    pub(super) example: Value,
}

/// The successful answer.
pub(super) enum Answer {
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// A reply, or events with chunks if the request asks for a stream.
    JsonOrEvents(fn(&mut SchemaGenerator) -> Schema, fn(&mut SchemaGenerator) -> Schema),
    /// A reply, or events with names and without `[DONE]` if the request asks for a stream.
    JsonOrNamedEvents(fn(&mut SchemaGenerator) -> Schema, fn(&mut SchemaGenerator) -> Schema),
    /// Text of this type.
    Text(&'static str),
}

/// An operation without a body.
pub(super) fn get(path: &'static str, tag: &'static str, summary: &str, answer: Answer) -> Operation {
    let (summary, errors) = (summary.to_owned(), Some(Errors::Head));
    Operation { method: "get", path, tag, summary, query: Vec::new(), body: None, answer, errors }
}

/// An operation with a body.
pub(super) fn post(path: &'static str, summary: &str, body: RequestBody, answer: Answer) -> Operation {
    let tag = if path.starts_with("/v1/") { "generation" } else { "tokens" };
    let (summary, errors) = (summary.to_owned(), Some(Errors::Body));
    Operation { method: "post", path, tag, summary, query: Vec::new(), body: Some(body), answer, errors }
}
