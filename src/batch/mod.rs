//! Files and batches of one node: what OpenAI's Batch API keeps and runs.
//!
//! `store` keeps files, batches and results in a directory. `input` reads the lines of a batch's file,
//! `results` appends a record for each finished line, and `runner` runs the lines. The runner does not know a
//! line's meaning: it calls a function that turns a request's body into a status and a reply. `offline` runs
//! a file with such a function too, without a store. `index` counts the bytes on disk. `retention` says how
//! long the record of a batch is kept.
//!
//! # What survives a crash
//! Input files never change. A batch's record is replaced as a whole. A finished line is one record at the
//! end of the output file or of the error file, on disk before it counts. After a crash the runner reads both
//! files, cuts off a record that is not whole, and runs the lines that have none. So each line ends with one
//! record, however often the process is killed. A line that was running is run again.

mod disk;
mod index;
mod input;
mod lines;
pub(crate) mod offline;
mod page;
mod records;
mod results;
mod retention;
mod runner;
mod store;
mod store_error;
mod upload;

pub(crate) use lines::{Line, OfflineLine, RunLine, RunOutcome};
pub(crate) use page::PageQuery;
pub(crate) use records::{BatchRecord, Endpoint, FileRecord, LineError, Purpose, Status};
pub(crate) use runner::Runner;
pub(crate) use store::NewBatch;
pub use store::Store;
pub(crate) use store_error::StoreError;
pub(crate) use upload::{MAX_FILE_BYTES, NewFile, Upload};
