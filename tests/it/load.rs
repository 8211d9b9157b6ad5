//! The load client: when it sends, what it makes of bytes, what it makes of times, and whole runs against a server of
//! which it is known what it sends and when.
//!
//! Times on a busy machine have no upper bounds, and so what is asserted of them is at least what the server waited;
//! counts are exact.

mod arrivals;
mod figures;
mod runs;
mod server;
mod stream;
