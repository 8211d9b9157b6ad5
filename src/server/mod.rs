//! HTTP front end: the only module that knows axum and OpenAI's JSON.
//!
//! A request passes `listen` (connection), `middleware` with `access` (head, origin, API key, shutdown),
//! `routes`, `body` (bytes), `json` (JSON object), `types` (wire struct), `validate` (validated request),
//! `generate` (admission and generation) and `reply_builder` (JSON of the reply), which `routes` and `sse`
//! write to the client. A request that fails gets an [`error::ApiError`]. Everything from `json` to
//! `reply_builder` knows no transport, and `batch_lines` runs the lines of batches through it. `files` and
//! `batches` are the routes of these.

mod access;
mod access_log;
mod anthropic;
pub mod api_keys;
mod batch_lines;
mod batch_reply;
mod batches;
mod body;
mod byte_budget;
mod constraint;
mod constraint_names;
mod cors;
mod docs;
mod drain;
mod endpoint_requests;
pub mod error;
mod error_response;
mod evicting_permits;
mod field_kinds;
mod field_table;
pub mod fields;
mod files;
mod generate;
pub mod health;
mod host;
mod hyper_errors;
mod ignored_header;
mod info_reply;
pub mod json;
mod listen;
mod listener;
mod log_values;
pub mod management;
pub mod metrics;
mod middleware;
mod open_responses;
mod page;
mod reply;
mod reply_builder;
mod reply_writer;
mod responses;
mod reward;
pub mod routes;
mod settings;
mod sse;
mod state;
pub mod status;
mod system;
mod timeout_stream;
mod tokenize;
mod tool_types;
mod types;
mod unsupported;
pub mod validate;

pub(crate) use batch_lines::line_runner;
pub use drain::{DrainTimes, Ended, Signal, Signals, unless_shutdown};
pub use listen::{serve, signals, while_starting};
pub use listener::{Listener, bind};
pub use management::{ManagementPorts, ManagementThread};
pub use reward::scoring::{Scoring, WeightError};
pub(crate) use settings::BodyLimits;
pub use settings::{BatchSettings, HttpLimits, Settings};
pub use state::ServerState;
pub use status::{ServerStatus, Stage};
