//! What of a conversion is on disk: a file beside the shards, of one JSON value a line, that is only ever added to.
//!
//! The first line says what is converted and how; each other line names a weight whose bytes have reached the disk, with
//! the sums that its report is made of. A process that is killed leaves at most one line without its end, which counts
//! as not written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::report::Errors;
use crate::model::LoadError;

/// The journal's name in the output's directory.
const FILE: &str = "conversion.journal";

/// What is converted and how: everything that the output's bytes depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// This program's version.
    octant: String,
    /// The command and its settings.
    pub(super) settings: Map<String, Value>,
    /// The input's files or arrays.
    pub(super) inputs: BTreeMap<String, Input>,
}

/// What tells whether a file or an array has changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Input {
    /// Sizes, names and shapes, or a hash of them.
    pub(super) layout: String,
    /// When the file, or the newest of an array's files, was written, in nanoseconds since 1970.
    pub(super) newest: u64,
    /// The sum of all its files' times.
    pub(super) times: u64,
}

/// A weight that is on disk.
#[derive(Serialize, Deserialize)]
struct Line {
    item: usize,
    errors: Option<[u64; 5]>,
}

/// The open journal, which no other process has.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Items on disk, and the errors of those that were quantised.
    pub(super) done: BTreeMap<usize, Option<Errors>>,
}

impl Identity {
    pub(super) fn new(settings: Map<String, Value>, inputs: BTreeMap<String, Input>) -> Self {
        Self { octant: env!("CARGO_PKG_VERSION").to_owned(), settings, inputs }
    }

    /// All of it but the times, so that a copy of the input gives the same.
    pub(super) fn hash(&self) -> String {
        let layouts: Vec<_> = self.inputs.iter().map(|(name, input)| (name, &input.layout)).collect();
        hex(&Sha256::digest(json!([self.octant, self.settings, layouts]).to_string()))
    }

    /// When the newest part of the input was written, in nanoseconds since 1970.
    pub(super) fn newest(&self) -> u64 {
        self.inputs.values().map(|input| input.newest).max().unwrap_or(0)
    }

    /// What of this is not as in `other`.
    fn difference(&self, other: &Self) -> Option<String> {
        if self.octant != other.octant {
            return Some(format!("octant was {} then and is {}", other.octant, self.octant));
        }
        for (key, value) in &self.settings {
            let before = other.settings.get(key).unwrap_or(&Value::Null);
            if before != value {
                return Some(format!("`{key}` was {before} then and is {value}"));
            }
        }
        let changed = |(name, state): &(&String, &Input)| other.inputs.get(*name) != Some(*state);
        if let Some((name, _)) = self.inputs.iter().find(changed) {
            return Some(format!("`{name}` has changed since, or is new"));
        }
        let gone = other.inputs.keys().find(|name| !self.inputs.contains_key(*name));
        gone.map(|name| format!("`{name}` is gone"))
    }
}

impl Input {
    /// Adds one of its files.
    pub(super) fn add(&mut self, time: SystemTime) {
        let time = nanoseconds(time);
        self.newest = self.newest.max(time);
        self.times = self.times.wrapping_add(time);
    }
}

/// Since 1970.
pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

impl Journal {
    /// Whether a directory has one.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Begins a journal, or goes on with the one that is there if it is of the same conversion.
    pub(super) fn open(dir: &Path, identity: &Identity) -> Result<Self, LoadError> {
        let path = dir.join(FILE);
        let io = |e| LoadError::io(&path, e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LoadError::file(&path, "another process is at work on this directory"));
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].split_inclusive(|byte| *byte == b'\n');
        let broken =
            |e: serde_json::Error| LoadError::file(&path, format!("not a journal of this program: {e}"));
        let mut done = BTreeMap::new();
        let first = lines.next();
        if let Some(first) = first {
            let before: Identity = serde_json::from_slice(first).map_err(broken)?;
            if let Some(difference) = identity.difference(&before) {
                let message = format!(
                    "begun with other input or settings: {difference}. Give them as before, or remove this directory \
                     or name another"
                );
                return Err(LoadError::file(dir, message));
            }
            for line in lines {
                let line: Line = serde_json::from_slice(line).map_err(broken)?;
                done.insert(line.item, line.errors.map(Errors::from_bits));
            }
        }
        file.set_len(whole as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let is_new = first.is_none();
        let mut journal = Self { path, file, done };
        if is_new {
            journal.write(&json!(identity))?;
        }
        Ok(journal)
    }

    /// An item's bytes are on disk.
    pub(super) fn add(&mut self, item: usize, errors: Option<Errors>) -> Result<(), LoadError> {
        self.write(&json!(Line { item, errors: errors.map(|errors| errors.bits()) }))?;
        self.done.insert(item, errors);
        Ok(())
    }

    /// The conversion is whole.
    pub(super) fn remove(self) -> Result<(), LoadError> {
        std::fs::remove_file(&self.path).map_err(|e| LoadError::io(&self.path, e))
    }

    fn write(&mut self, line: &Value) -> Result<(), LoadError> {
        let written =
            self.file.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| LoadError::io(&self.path, e))
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
