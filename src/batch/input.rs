//! The lines of a batch's input file: checks all of them, then reads one at a time.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::records::{Endpoint, LineError};

/// The most requests of a batch.
pub(crate) const MAX_LINES: usize = 50_000;
/// The most bytes of a line.
pub(super) const MAX_LINE_BYTES: u64 = 16 << 20;
/// The most bytes of a `custom_id`.
const MAX_CUSTOM_ID: usize = 512;
/// The most faults that are reported. The check ends at the last of them.
const MAX_ERRORS: usize = 100;

/// A checked input file, open for reading.
pub(super) struct Input {
    file: File,
    /// Number of requests.
    pub(super) total: usize,
    /// The requests that have no result, in order.
    pub(super) pending: Vec<LinePlace>,
}

/// Where a line stands in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinePlace {
    offset: u64,
    bytes: usize,
}

/// A request of the input file.
pub(super) struct InputLine {
    pub(super) custom_id: String,
    /// The route that it is a request to.
    pub(super) endpoint: Endpoint,
    /// JSON of the request's body.
    pub(super) body: String,
}

/// A line as it is written. Every field is checked here, so that an error can name it.
#[derive(Deserialize)]
struct Written {
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
    body: Option<Box<RawValue>>,
}

impl Input {
    /// Checks a file. Lines whose `custom_id` is in `done` have a result.
    ///
    /// # Errors
    /// The file cannot be read, or its faults.
    pub(super) fn check(
        file: File,
        endpoint: Endpoint,
        done: &HashSet<String>,
    ) -> io::Result<Result<Self, Vec<LineError>>> {
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut lines_of = HashMap::new();
        let (mut errors, mut pending) = (Vec::new(), Vec::new());
        let (mut offset, mut number, mut line) = (0, 0, Vec::new());
        while errors.len() < MAX_ERRORS {
            line.clear();
            let bytes = reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line)?;
            if bytes == 0 {
                break;
            }
            number += 1;
            if bytes as u64 > MAX_LINE_BYTES {
                let message = format!("Expected lines of at most {MAX_LINE_BYTES} bytes.");
                errors.push(error("line_too_long", message, Some(number), None));
                break;
            }
            let place = LinePlace { offset, bytes };
            offset += bytes as u64;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match parse(&line, number, Some(endpoint)) {
                Err(error) => errors.push(error),
                Ok(InputLine { custom_id, .. }) => {
                    if let Some(first) = lines_of.get(&custom_id) {
                        errors.push(duplicate(&custom_id, number, *first));
                    } else {
                        if !done.contains(&custom_id) {
                            pending.push(place);
                        }
                        lines_of.insert(custom_id, number);
                    }
                }
            }
            if lines_of.len() > MAX_LINES {
                let message = format!("Expected at most {MAX_LINES} requests in a batch.");
                errors.push(error("too_many_requests", message, Some(number), None));
                break;
            }
        }
        if errors.is_empty() && lines_of.is_empty() {
            let message = "The input file is empty. Expected at least one request.".to_owned();
            errors.push(error("empty_file", message, None, None));
        }
        if errors.is_empty() {
            Ok(Ok(Self { file, total: lines_of.len(), pending }))
        } else {
            Ok(Err(errors))
        }
    }

    /// Reads a line that was checked.
    ///
    /// # Errors
    /// The file cannot be read, or has changed since.
    pub(super) fn read(&self, place: LinePlace, endpoint: Endpoint) -> io::Result<InputLine> {
        let mut line = vec![0; place.bytes];
        self.file.read_exact_at(&mut line, place.offset)?;
        parse(&line, 0, Some(endpoint)).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the input file has changed: {}", error.message),
            )
        })
    }
}

/// Reads a line as a request to `endpoint`, or to any endpoint if it is `None`.
///
/// # Errors
/// The line's fault, with its number.
pub(super) fn parse(line: &[u8], number: u64, endpoint: Option<Endpoint>) -> Result<InputLine, LineError> {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let fault = |code, message, param| error(code, message, Some(number), param);
    let written: Written = serde_json::from_slice(line).map_err(|problem| {
        let column = problem.column();
        let message = match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
            Err(_) => format!("This line is not valid JSON (at column {column})."),
            Ok(_) => "Expected a JSON object with each of its fields once.".to_owned(),
        };
        fault("invalid_json_line", message, None)
    })?;
    let text = |value: Option<Value>, name: &'static str| match value {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => {
            let message = format!("{name}: expected a string, got nothing");
            Err(fault("missing_required_parameter", message, Some(name)))
        }
        Some(_) => {
            let message = format!("{name}: expected a string, got another type");
            Err(fault("invalid_type", message, Some(name)))
        }
    };
    let custom_id = text(written.custom_id, "custom_id")?;
    if custom_id.is_empty() || custom_id.len() > MAX_CUSTOM_ID {
        let message = format!("custom_id: expected 1 to {MAX_CUSTOM_ID} bytes, got {}", custom_id.len());
        return Err(fault("invalid_value", message, Some("custom_id")));
    }
    let method = text(written.method, "method")?;
    if method != "POST" {
        let message = format!("method: expected POST, got {}", shortened(&method));
        return Err(fault("invalid_method", message, Some("method")));
    }
    let url = text(written.url, "url")?;
    let found = Endpoint::ALL.into_iter().find(|known| known.as_str() == url);
    let Some(endpoint) = found.filter(|found| endpoint.is_none_or(|endpoint| endpoint == *found)) else {
        let expected = match endpoint {
            Some(endpoint) => format!("the batch's endpoint {}", endpoint.as_str()),
            None => Endpoint::ALL.map(Endpoint::as_str).join(" or "),
        };
        let message = format!("url: expected {expected}, got {}", shortened(&url));
        return Err(fault("invalid_url", message, Some("url")));
    };
    let body = written.body.filter(|body| body.get() != "null").ok_or_else(|| {
        let message = "body: expected an object, got nothing".to_owned();
        fault("missing_required_parameter", message, Some("body"))
    })?;
    if !body.get().starts_with('{') {
        let message = "body: expected an object, got another type".to_owned();
        return Err(fault("invalid_type", message, Some("body")));
    }
    Ok(InputLine { custom_id, endpoint, body: Box::<str>::from(body).into_string() })
}

/// The fault of a line whose `custom_id` an earlier one has.
pub(super) fn duplicate(custom_id: &str, number: u64, first: u64) -> LineError {
    let custom_id = shortened(custom_id);
    let message = format!(
        "The custom_id '{custom_id}' of this request is that of line {first} too. Expected a custom_id that \
         is unique in the batch."
    );
    error("duplicate_custom_id", message, Some(number), Some("custom_id"))
}

/// The first characters of a client's text.
fn shortened(text: &str) -> String {
    const MOST: usize = 100;
    let start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() { start + "…" } else { start }
}

/// A fault of a line.
pub(super) fn error(code: &str, message: String, line: Option<u64>, param: Option<&str>) -> LineError {
    LineError { code: code.to_owned(), message, line, param: param.map(str::to_owned) }
}
