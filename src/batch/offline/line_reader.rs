//! Reads the lines of the input file in order, in bounded memory, and computes the file's SHA-256 meanwhile.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::identity::FileHash;
use crate::batch::input::{self, InputLine, MAX_LINE_BYTES};
use crate::batch::records::LineError;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

/// A line that is no valid request.
pub(super) struct BadLine {
    pub(super) fault: LineError,
    /// Its `custom_id`, if it has one.
    pub(super) custom_id: Option<String>,
}

/// Reads lines.
pub(super) struct LineReader {
    reader: BufReader<File>,
    hash: Sha256,
    /// Number of the last line, counted from 1.
    number: u64,
    line: Vec<u8>,
}

impl LineReader {
    pub(super) fn new(file: File) -> Self {
        let reader = BufReader::with_capacity(BUFFER, file);
        Self { reader, hash: Sha256::new(), number: 0, line: Vec::new() }
    }

    /// The next line that is not blank, with its number: a request or its fault. `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Result<InputLine, BadLine>)>> {
        loop {
            let bytes = self.read_line()?;
            if bytes == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes > MAX_LINE_BYTES {
                let message = format!("Expected lines of at most {MAX_LINE_BYTES} bytes, got {bytes}.");
                let fault = input::error("line_too_long", message, Some(self.number), None);
                return Ok(Some((self.number, Err(BadLine { fault, custom_id: None }))));
            }
            if !self.line.trim_ascii().is_empty() {
                let line = input::parse(&self.line, self.number, None);
                let bad = |fault| BadLine { fault, custom_id: custom_id(&self.line) };
                return Ok(Some((self.number, line.map_err(bad))));
            }
        }
    }

    /// The SHA-256 of what has been read.
    pub(super) fn hash(&self) -> FileHash {
        FileHash::new(self.hash.clone())
    }

    /// Reads a line into `line`, at most [`MAX_LINE_BYTES`] of it. Returns its length with the line end; 0 at
    /// the end of the file.
    fn read_line(&mut self) -> io::Result<u64> {
        self.line.clear();
        // A long line does not keep its memory.
        self.line.shrink_to(BUFFER);
        let mut bytes = 0;
        loop {
            let chunk = self.reader.fill_buf()?;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            self.hash.update(&chunk[..taken]);
            let room = MAX_LINE_BYTES as usize - self.line.len();
            self.line.extend_from_slice(&chunk[..taken.min(room)]);
            bytes += taken as u64;
            self.reader.consume(taken);
            if end.is_some() || taken == 0 {
                return Ok(bytes);
            }
        }
    }
}

/// The `custom_id` of a line that is no valid request, if it can be found.
fn custom_id(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        custom_id: String,
    }
    serde_json::from_slice::<Named>(line).ok().map(|line| line.custom_id)
}
