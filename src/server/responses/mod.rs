//! OpenAI's Responses API, without stored responses: the fields of its requests (`types`), the JSON of its
//! replies and events (`reply`), and what builds them from an answer (`builder`). `validate` turns a request
//! into the same `ValidRequest` as that of a chat completion.

pub(super) mod builder;
pub(super) mod reply;
pub(super) mod types;
