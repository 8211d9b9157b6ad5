//! Standard output, for commands that print a result. A closed or full standard output is an error and not a
//! panic.

use std::fmt;
use std::io::{self, IsTerminal};

use super::write::write_all;

/// Prints a line of a result, formatted as by `println!`. Evaluates to `Result<(), OutputError>`.
macro_rules! print_line {
    ($($text:tt)*) => {
        $crate::stdio::results::line(format_args!($($text)*))
    };
}
pub(crate) use print_line;

/// A result that could not be printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The reader has seen enough, as `head` has after ten lines.
    #[error("standard output: the reader has closed it")]
    Closed,
    /// The system's error, such as a full disk.
    #[error("standard output: {0}")]
    Failed(io::Error),
}

/// Prints the whole result of a command. A reader that has closed standard output is no error: the command's
/// exit status and the files that it writes do not depend on how much of the result is read.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn print(text: &str) -> Result<(), OutputError> {
    match write(text) {
        Err(OutputError::Closed) => Ok(()),
        outcome => outcome,
    }
}

/// Prints a line. Closed standard output is an error, so that a benchmark whose output is not read ends.
///
/// # Errors
/// Standard output is closed or cannot be written.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    write(&format!("{text}\n"))
}

/// Writes a part of a result. Waits for the reader.
///
/// # Errors
/// Standard output is closed or cannot be written.
pub(crate) fn write(text: &str) -> Result<(), OutputError> {
    write_all(io::stdout(), text.as_bytes(), |_| {}).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputError::Closed,
        _ => OutputError::Failed(error),
    })
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether a command failed only because the reader of its result has closed standard output.
pub fn closed_by_reader(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(OutputError::Closed)))
}
