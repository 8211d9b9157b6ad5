//! HTTP/1.1 client for servers with OpenAI's API, without TLS: the parts that the load client and
//! `octant chat` share.

mod connection;
mod refusal;
mod sse;
mod target;

pub(crate) use connection::connect;
pub(crate) use refusal::Refusal;
pub use refusal::message;
pub use sse::{SseEvent, SseParser};
pub use target::{Target, TargetError};
