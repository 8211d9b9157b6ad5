//! The results of a batch: two files to which each finished line appends one record.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::disk;
use super::records::LineError;

/// Room on disk that every line without a result holds, in bytes. A record of a line that was not run is
/// shorter, so each line can get one.
pub(super) const LINE_ROOM: u64 = 4096;

/// The result of a line.
pub(super) struct LineResult {
    /// Id of the result.
    pub(super) id: String,
    pub(super) custom_id: String,
    pub(super) outcome: LineOutcome,
}

/// How a line ended.
pub(super) enum LineOutcome {
    /// It was run.
    Answered {
        /// Status of the reply.
        status: u16,
        /// JSON of the reply.
        body: Box<RawValue>,
    },
    /// It was not run, or its result is lost.
    NotRun {
        /// A code for programs.
        code: &'static str,
        /// Why.
        message: String,
    },
}

impl LineOutcome {
    /// Whether the record belongs to the output file.
    fn is_success(&self) -> bool {
        matches!(self, Self::Answered { status: 200..=299, .. })
    }
}

/// A record as it is written.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    custom_id: Option<&'a str>,
    response: Option<Response<'a>>,
    error: Option<NotRun<'a>>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: &'a str,
    body: &'a RawValue,
}

#[derive(Serialize)]
struct NotRun<'a> {
    code: &'a str,
    message: &'a str,
    /// The line, counted from 1, if it is no valid request.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    /// The line's field that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'a str>,
}

/// The part of a record that says which line it belongs to.
#[derive(Deserialize)]
struct RecordKey {
    custom_id: String,
}

/// Both files of results of a batch that has not ended.
pub(super) struct Results {
    pub(super) output: ResultFile,
    pub(super) errors: ResultFile,
}

/// One of the files.
pub(super) struct ResultFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Bytes of all records.
    pub(super) bytes: u64,
    pub(super) records: u64,
}

/// Records of lines that ended together, to be appended at once.
#[derive(Default)]
pub(super) struct NewRecords {
    output: Vec<u8>,
    errors: Vec<u8>,
    pub(super) completed: u64,
    pub(super) failed: u64,
}

impl NewRecords {
    /// Adds a line's record. Returns its size in bytes.
    pub(super) fn add(&mut self, result: &LineResult) -> u64 {
        let record = match &result.outcome {
            LineOutcome::Answered { status, body } => Record {
                id: &result.id,
                custom_id: Some(&result.custom_id),
                response: Some(Response { status_code: *status, request_id: &result.id, body }),
                error: None,
            },
            LineOutcome::NotRun { code, message } => Record {
                id: &result.id,
                custom_id: Some(&result.custom_id),
                response: None,
                error: Some(NotRun { code, message, line: None, param: None }),
            },
        };
        self.write(&record, result.outcome.is_success())
    }

    /// Adds the record of a line that is no valid request.
    pub(super) fn add_refused(&mut self, id: &str, custom_id: Option<&str>, fault: &LineError) {
        let LineError { code, message, line, param } = fault;
        let error = NotRun { code, message, line: *line, param: param.as_deref() };
        self.write(&Record { id, custom_id, response: None, error: Some(error) }, false);
    }

    fn write(&mut self, record: &Record<'_>, success: bool) -> u64 {
        *(if success { &mut self.completed } else { &mut self.failed }) += 1;
        let bytes = if success { &mut self.output } else { &mut self.errors };
        let before = bytes.len();
        serde_json::to_writer(&mut *bytes, record).expect("a record can be written as JSON");
        bytes.push(b'\n');
        (bytes.len() - before) as u64
    }
}

impl Results {
    /// Opens or creates both files. Cuts off records that are not whole, and adds the `custom_id` of each
    /// whole one to `done`.
    pub(super) fn open(output: &Path, errors: &Path, done: &mut HashSet<String>) -> io::Result<Self> {
        let results =
            Self { output: ResultFile::open(output, done)?, errors: ResultFile::open(errors, done)? };
        disk::sync_directory_of(output)?;
        Ok(results)
    }

    /// Appends records, and returns when they are on disk.
    pub(super) fn append(&mut self, records: &NewRecords) -> io::Result<()> {
        self.output.append(&records.output, records.completed)?;
        self.errors.append(&records.errors, records.failed)
    }

    /// Records in the output file.
    pub(super) fn completed(&self) -> u64 {
        self.output.records
    }

    /// Records in the error file.
    pub(super) fn failed(&self) -> u64 {
        self.errors.records
    }

    /// Sizes of both files in bytes.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.output.bytes, self.errors.bytes]
    }
}

impl ResultFile {
    fn open(path: &Path, done: &mut HashSet<String>) -> io::Result<Self> {
        let file = disk::open_to_append(path)?;
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let (mut bytes, mut records, mut line) = (0, 0, Vec::new());
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            let whole = line.last() == Some(&b'\n');
            match serde_json::from_slice::<RecordKey>(&line) {
                Ok(RecordKey { custom_id }) if whole => _ = done.insert(custom_id),
                _ => break,
            }
            bytes += read as u64;
            records += 1;
        }
        if file.metadata()?.len() > bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        Ok(Self { path: path.to_owned(), file, bytes, records })
    }

    fn append(&mut self, bytes: &[u8], records: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot append to {}: {error}", self.path.display()))
        })?;
        self.bytes += bytes.len() as u64;
        self.records += records;
        Ok(())
    }
}
