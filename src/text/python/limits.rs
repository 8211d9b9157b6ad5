//! Limit on the work of one rendering. minijinja counts instructions; one instruction can work on a long
//! string or list.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::Object;
use minijinja::{Error, ErrorKind, State};

use super::objects::error;

/// Most bytes that the operations of one rendering may read and write together.
const WORK: u64 = 1 << 30;
/// Most bytes that one operation may read and write.
const MAX_OPERATION: u64 = 128 << 20;
/// Most bytes of one padded or repeated string.
const MAX_TEXT: usize = 64 << 20;

/// Bytes that one rendering has read and written.
#[derive(Default)]
struct Work(AtomicU64);

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

impl Object for Work {}

/// Counts the cost of an operation.
pub(in crate::text) fn charge(state: &State, bytes: u64) -> Result<(), Error> {
    let work: Arc<Work> = state.get_or_set_temp_object("work", Work::default);
    // Every operation costs something, and no sum overflows.
    let before = work.0.fetch_add(bytes.min(WORK).saturating_add(16), Ordering::Relaxed);
    if bytes > MAX_OPERATION || before.saturating_add(bytes) > WORK {
        Err(Error::from(ErrorKind::OutOfFuel))
    } else {
        Ok(())
    }
}

/// A string, repeated.
pub(super) fn repeated(text: &str, times: usize) -> Result<String, Error> {
    match text.len().checked_mul(times) {
        Some(length) if length <= MAX_TEXT => Ok(text.repeat(times)),
        _ => Err(error(format!("a string of more than {MAX_TEXT} bytes"))),
    }
}
