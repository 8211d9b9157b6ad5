//! Anthropic's Messages API: the fields of its requests (`types`), the JSON of its replies, events and errors
//! (`reply`), and what builds a reply from an answer (`builder`). `validate` turns a request into the same
//! `ValidRequest` as that of a chat completion.

pub(super) mod builder;
pub(super) mod reply;
pub(super) mod types;

/// Returns true for a path whose errors have Anthropic's form.
pub(super) fn is_path(path: &str) -> bool {
    path == "/v1/messages" || path.starts_with("/v1/messages/")
}
