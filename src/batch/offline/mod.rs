//! A batch file that is run without a server: `octant batch`.
//!
//! [`Batch::open`] reads the input file once: it computes the file's SHA-256, keeps 16 bytes for each
//! `custom_id`, and finds out which lines the output and the error file have already. [`Batch::run`] reads
//! the input again, line by line, and runs the lines that have no record. So memory does not depend on the
//! sizes of lines and grows by 16 bytes a line.
//!
//! # What survives a crash
//! A line's record is appended to one of two files and is on disk before the next ones are written. After a
//! crash the same command cuts off a record without a line end, and runs the lines that have no record. A
//! line that was running is run again.
//!
//! # The same bytes in each run
//! The ids of records and answers, and the seeds of requests without one, are computed from the input file's
//! SHA-256 and the line's `custom_id`. So a record also says which input file it belongs to: a run that
//! finds a record of another input stops before it writes anything. Records stand in the order in which
//! lines end, which may differ.

mod error;
mod identity;
mod index;
mod line_reader;
mod records;
mod run;

pub(crate) use run::{Batch, BatchFiles, Ended, Progress, StopSignals, Summary};
