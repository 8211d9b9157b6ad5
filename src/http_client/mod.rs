//! HTTP/1.1 client for servers with OpenAI's API, also by https: the parts that commands share.

mod back_off;
mod certificates;
mod connection;
mod refusal;
mod sse;
mod target;
mod tls;

pub use back_off::retry_after;
pub(crate) use back_off::{Window, doubled, pause_asked};
pub use certificates::CertificateError;
pub(crate) use certificates::{CertificateFile, path_of, with_hint};
pub(crate) use connection::connect;
pub(crate) use refusal::Refusal;
pub use refusal::message;
pub use sse::{SseEvent, SseParser};
pub use target::{Target, TargetError};
pub use tls::TlsError;
