//! The files of one stage.
//!
//! While a stage runs, each finished item is one line of its journal, in the order in which items finish.
//! A line is synced before the next begins, so a kill loses only items in flight; a line that was cut is
//! dropped. When all items are finished, the records are written in the items' order, the journal is removed,
//! and the summary is written last: a stage with a summary is complete.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, read, remove_file};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::endpoint::Usage;
use super::error::SynthError;
use super::export::write_whole;
use super::records::{Reject, ShortList, Stage};

/// Hashes of what a stage depends on, by key of the recipe.
pub(super) type Depends = BTreeMap<String, String>;

/// The outcome of one item of a stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Finished<R> {
    /// The item's id.
    pub(super) item: String,
    pub(super) records: Vec<R>,
    pub(super) rejects: Vec<Reject>,
    /// Lists with fewer items than were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) short: Vec<ShortList>,
    pub(super) requests: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// Time since the line before, or since the stage began.
    pub(super) seconds: f64,
}

impl<R> Finished<R> {
    pub(super) fn new(item: &str) -> Self {
        Self {
            item: item.to_owned(),
            records: Vec::new(),
            rejects: Vec::new(),
            short: Vec::new(),
            requests: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            seconds: 0.0,
        }
    }

    pub(super) fn used(&mut self, usage: Usage) {
        self.requests = usage.requests;
        self.prompt_tokens = usage.prompt_tokens;
        self.completion_tokens = usage.completion_tokens;
    }
}

/// Counts of a complete stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StageSummary {
    /// The stage.
    pub(super) stage: Stage,
    /// Hashes of what it depends on, by key of the recipe.
    pub(super) depends: BTreeMap<String, String>,
    /// Records that the recipe asks for, where it states a number.
    pub(super) wanted: Option<u64>,
    /// Items it started from.
    pub(super) taken: u64,
    /// Records it made.
    pub(super) made: u64,
    /// Number of rejects by reason.
    pub(super) rejects: BTreeMap<String, u64>,
    /// Items that lists lack.
    pub(super) missing: u64,
    /// Requests it sent.
    pub(super) requests: u64,
    /// Prompt tokens.
    pub(super) prompt_tokens: u64,
    /// Completion tokens.
    pub(super) completion_tokens: u64,
    /// Running time in seconds, with that of earlier, interrupted runs.
    pub(super) seconds: f64,
}

/// The first line of a journal.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    stage: Stage,
    depends: Depends,
}

/// The paths of a stage's files.
#[derive(Debug, Clone)]
pub(super) struct StageFiles {
    folder: PathBuf,
    pub(super) stage: Stage,
}

impl StageFiles {
    pub(super) fn new(folder: &Path, stage: Stage) -> Self {
        Self { folder: folder.to_owned(), stage }
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}{ending}", self.stage.stem()))
    }

    pub(super) fn records(&self) -> PathBuf {
        self.path(".jsonl")
    }

    pub(super) fn rejects(&self) -> PathBuf {
        self.path(".rejects.jsonl")
    }

    /// Lists with fewer items than were asked for; absent if all are full.
    pub(super) fn short(&self) -> PathBuf {
        self.path(".short.jsonl")
    }

    fn journal(&self) -> PathBuf {
        self.path(".journal.jsonl")
    }

    fn summary(&self) -> PathBuf {
        self.path(".summary.json")
    }

    /// The summary, if the stage is complete.
    pub(super) fn complete(&self) -> Result<Option<StageSummary>, SynthError> {
        let path = self.summary();
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SynthError::File { path, source }),
        };
        let summary = serde_json::from_slice(&text);
        summary.map(Some).map_err(|error| SynthError::Line { path, line: 1, message: error.to_string() })
    }

    /// Removes what the stage has written.
    pub(super) fn remove(&self) -> Result<(), SynthError> {
        let paths = [self.summary(), self.journal(), self.records(), self.rejects(), self.short()];
        paths.into_iter().try_for_each(remove)
    }

    /// Writes records, rejects, short lists and summary, and removes the journal.
    pub(super) fn finish<R: Serialize>(
        &self,
        output: &StageOutput<R>,
        summary: &StageSummary,
    ) -> Result<(), SynthError> {
        write_lines(&self.records(), &output.records)?;
        self.write_faults(output)?;
        let text = to_text(summary, true) + "\n";
        write_whole(&self.summary(), &text).map_err(SynthError::file(self.summary()))?;
        remove(self.journal())
    }

    /// Writes the rejects and short lists of a stage that made nothing. The next run begins it again.
    pub(super) fn fail<R: Serialize>(&self, output: &StageOutput<R>) -> Result<(), SynthError> {
        self.remove()?;
        self.write_faults(output)
    }

    fn write_faults<R>(&self, output: &StageOutput<R>) -> Result<(), SynthError> {
        write_lines(&self.rejects(), &output.rejects)?;
        match output.short.is_empty() {
            true => remove(self.short()),
            false => write_lines(&self.short(), &output.short),
        }
    }
}

/// Everything that a stage made.
#[derive(Debug)]
pub(super) struct StageOutput<R> {
    pub(super) records: Vec<R>,
    pub(super) rejects: Vec<Reject>,
    pub(super) short: Vec<ShortList>,
}

/// Removes a file if it exists.
fn remove(path: PathBuf) -> Result<(), SynthError> {
    match remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(SynthError::File { path, source }),
        _ => Ok(()),
    }
}

/// A journal that is open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

/// A journal with what it held.
pub(super) struct Opened<R> {
    pub(super) journal: Journal,
    /// The finished items by their ids.
    pub(super) finished: HashMap<String, Finished<R>>,
}

impl Journal {
    /// Opens or begins a stage's journal, and cuts a line that is not complete. A journal of other settings
    /// is refused.
    pub(super) fn open<R: DeserializeOwned>(
        files: &StageFiles,
        depends: &Depends,
    ) -> Result<Opened<R>, SynthError> {
        let path = files.journal();
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(SynthError::file(&path))?;
        let bytes = read(&path).map_err(SynthError::file(&path))?;
        let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if complete < bytes.len() {
            file.set_len(complete as u64).map_err(SynthError::file(&path))?;
        }
        let mut journal = Self { file, path };
        let mut finished = HashMap::new();
        let mut lines = (1..).zip(bytes[..complete].split(|byte| *byte == b'\n'));
        let header = lines.next().filter(|(_, line)| !line.is_empty());
        match header {
            None => journal.line(&Header { stage: files.stage, depends: depends.clone() })?,
            Some((line, text)) => {
                let header: Header = journal.parsed(line, text)?;
                check_depends(&header.depends, depends, &journal.path)?;
            }
        }
        for (line, text) in lines.filter(|(_, text)| !text.is_empty()) {
            let item: Finished<R> = journal.parsed(line, text)?;
            finished.insert(item.item.clone(), item);
        }
        Ok(Opened { journal, finished })
    }

    fn parsed<T: DeserializeOwned>(&self, line: usize, text: &[u8]) -> Result<T, SynthError> {
        serde_json::from_slice(text).map_err(|error| SynthError::Line {
            path: self.path.clone(),
            line,
            message: error.to_string(),
        })
    }

    /// Appends a line and waits until it is on the disk.
    pub(super) fn line<T: Serialize>(&mut self, value: &T) -> Result<(), SynthError> {
        let text = to_text(value, false) + "\n";
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(SynthError::file(&self.path))
    }
}

/// Refuses files that were made with other settings, and names what changed.
pub(super) fn check_depends(before: &Depends, now: &Depends, path: &Path) -> Result<(), SynthError> {
    let keys = before.keys().chain(now.keys().filter(|key| !before.contains_key(*key)));
    let changed: Vec<&str> =
        keys.filter(|key| before.get(*key) != now.get(*key)).map(String::as_str).collect();
    match changed.is_empty() {
        true => Ok(()),
        false => Err(SynthError::Changed { path: path.to_owned(), changed: changed.join(", ") }),
    }
}

/// Reads a file of records.
pub(super) fn read_lines<R: DeserializeOwned>(path: &Path) -> Result<Vec<R>, SynthError> {
    let text = read(path).map_err(SynthError::file(path))?;
    let lines = (1..).zip(text.split(|byte| *byte == b'\n')).filter(|(_, text)| !text.is_empty());
    let parsed = lines.map(|(line, text)| {
        serde_json::from_slice(text).map_err(|error| SynthError::Line {
            path: path.to_owned(),
            line,
            message: error.to_string(),
        })
    });
    parsed.collect()
}

fn write_lines<R: Serialize>(path: &Path, records: &[R]) -> Result<(), SynthError> {
    let mut text = String::new();
    for record in records {
        text.push_str(&to_text(record, false));
        text.push('\n');
    }
    write_whole(path, &text).map_err(SynthError::file(path))
}

/// JSON of a value whose keys are strings, which always has one.
fn to_text<T: Serialize>(value: &T, is_pretty: bool) -> String {
    let text = if is_pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.expect("the keys of records are strings")
}

/// The hash of a value's JSON.
pub(super) fn hash<T: Serialize>(value: &T) -> String {
    // Through a value with sorted keys, so that the order of a table's keys does not matter.
    let value = sorted(serde_json::to_value(value).expect("the keys of recipes are strings"));
    hex(&Sha256::digest(value.to_string().as_bytes()))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let keys: BTreeMap<String, Value> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(keys.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    })
}
