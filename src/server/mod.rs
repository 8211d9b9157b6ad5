//! HTTP: the only place that knows axum and OpenAI's JSON.

pub mod body;
pub mod error;
pub mod fields;
pub mod types;
