//! The load client: due times, parsing, figures, and whole runs against a server whose bytes and delays are
//! scripted.
//!
//! Latencies on a busy machine have no upper bound, so tests assert only that they are at least the server's
//! delays. Counts are exact.

mod arrivals;
mod figures;
mod runs;
mod server;
mod stream;
