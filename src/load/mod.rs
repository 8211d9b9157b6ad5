//! A load client for servers that speak OpenAI's API: it sends requests when a plan says so, notes when each piece of
//! an answer came, and says what that amounts to.
//!
//! | question | file |
//! |---|---|
//! | when is a request due | [`arrivals`] |
//! | what does it ask | [`prompts`], [`body`] |
//! | how is it sent and its answer read | [`client`], [`sse`], [`chunk`] |
//! | who is sent when, and who is waited for | [`drive`] |
//! | what do the times amount to | [`measure`] |
//! | how is that shown | [`report`], [`plot`] |
//!
//! # Open and closed loops
//! In a closed loop a slow server slows its clients down, and the requests that would have met it slow are never sent:
//! the measured times are too good ("coordinated omission"). An open loop sends at times that were decided before, and
//! counts from them. Times are given both from when a request was *sent*, as aiperf and vLLM's client count, and from when
//! it was *due*; the two differ where a cap on concurrency, or this client itself, held requests back.
//!
//! # Names
//! | here | what | vLLM's client | aiperf |
//! |---|---|---|---|
//! | TTFT | from sending to the first chunk with content | TTFT; it also counts chunks without content | TTFT |
//! | ITL | between one chunk with content and the next, once per chunk however many tokens it has | ITL | inter-chunk latency |
//! | TPOT | per request, (E2E - TTFT) / (tokens - 1) | TPOT | inter-token latency |
//! | E2E | from sending to the last chunk with content | E2EL, to the last chunk of any kind | request latency |
//!
//! Tokens are the server's usage where it tells, else chunks with content are counted, and the report says which.
//! Everything runs on one thread: the client shares a machine with the server often enough, and its CPU time is in the
//! report, so that one can see when it is the client that is slow.

/// When requests are due.
pub mod arrivals;
/// The body of a request.
pub mod body;
/// What of a chunk matters.
pub mod chunk;
/// HTTP.
pub mod client;
/// The run.
pub mod drive;
/// Times to figures.
pub mod measure;
/// The figures as SVG.
pub mod plot;
/// Prompts.
pub mod prompts;
/// The figures as text and JSON.
pub mod report;
/// Server-sent events.
pub mod sse;

use std::path::PathBuf;

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The URL is none.
    #[error("{url}: {why}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The URL is one of TLS.
    #[error(
        "https is not supported, only plain http: measure the server itself, or put a TLS proxy on this machine before it"
    )]
    Https,
    /// The API key cannot be sent.
    #[error("the API key has characters that a header cannot have")]
    Key,
    /// The server did not name a model.
    #[error("/v1/models: {why}; --model names one without asking")]
    Models {
        /// What happened.
        why: String,
    },
    /// A file of prompts cannot be used.
    #[error("{}: {why}", path.display())]
    Prompts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
