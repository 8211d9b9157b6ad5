//! The standard streams of the process: the log on standard error, results of commands on standard output.
//!
//! Only the thread of the [`Log`] writes to standard error. All other threads put lines into a bounded queue,
//! which drops lines while it is full: a pipe without a reader, a stopped terminal or a full disk delays
//! neither a request nor a probe nor the end of the process. Rust's runtime and C libraries write to
//! descriptor 2 by themselves; this text too is dropped if it is not read (`descriptor`). A command that
//! prints a result waits for the reader of standard output ([`results`]).

mod descriptor;
mod filter;
mod log;
mod output_file;
mod progress_bar;
mod progress_display;
mod queue;
pub(crate) mod results;
mod write;

pub use filter::LogFilter;
pub(crate) use log::LogHandle;
pub use log::{Log, LogFormat};
pub(crate) use output_file::OutputFile;
pub(crate) use progress_bar::ProgressBars;
pub(crate) use progress_display::ProgressDisplay;
pub use results::closed_by_reader;
