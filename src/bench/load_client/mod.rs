//! Load client for servers with OpenAI's API: sends requests by a plan, records the arrival time of every
//! chunk, and reports latencies, throughput and goodput.
//!
//! | file | content |
//! |---|---|
//! | [`arrivals`] | due times of requests |
//! | [`prompts`], [`body`] | prompts and request bodies |
//! | [`client`], [`chunk`] | HTTP, chunks |
//! | [`drive`] | the run |
//! | [`measure`] | latencies and other figures |
//! | [`load_report`], [`load_plot`] | the figures as text, JSON and SVG |
//!
//! # Open and closed loops
//! In a closed loop a slow server slows its clients down: they do not send the requests that would have
//! arrived while it was slow, and measured latencies are too low ("coordinated omission"). An open loop sends
//! at times that are decided before the run. Latencies are reported both from the time of *sending*, as
//! aiperf and vLLM's client do, and from *due time*. The two differ if a limit on concurrency, or the client
//! itself, delayed requests.
//!
//! # Names
//! | here | meaning | vLLM's client | aiperf |
//! |---|---|---|---|
//! | TTFT | from sending to the first chunk with content | TTFT, to the first chunk of any kind | TTFT |
//! | ITL | between chunks with content, whatever their number of tokens | ITL | inter-chunk latency |
//! | TPOT | per request, (E2E - TTFT) / (tokens - 1) | TPOT | inter-token latency |
//! | E2E | from sending to the last chunk with content | E2EL, to the last chunk | request latency |
//!
//! Tokens are counted by the usage that the server reports, otherwise as chunks with content; the report says
//! which. The client runs on one thread, since it often shares a machine with the server. Its CPU time is in
//! the report, which shows when the client itself is the limit.

/// Due times of requests.
pub mod arrivals;
/// Request bodies.
pub mod body;
/// Streamed chunks.
pub mod chunk;
/// HTTP client.
pub mod client;
/// The run.
pub mod drive;
/// Latencies as SVG.
pub mod load_plot;
/// Report as text and JSON.
pub mod load_report;
/// Latencies and other figures.
pub mod measure;
/// Prompts.
pub mod prompts;

use std::path::PathBuf;

/// A run cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The server did not list a model.
    #[error("/v1/models: {why}; --model names a model without this request")]
    Models {
        /// Reason.
        why: String,
    },
    /// A prompt file cannot be used.
    #[error("{}: {why}", path.display())]
    Prompts {
        /// Path of the file.
        path: PathBuf,
        /// Reason.
        why: String,
    },
}
