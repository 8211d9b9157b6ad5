//! The journal of a conversion: a file beside the shards that lists the weights on disk, one JSON value a
//! line.
//!
//! The first line holds the identity of the conversion. Each further line names a weight whose bytes are on
//! disk, with the sums that its report is made of. Lines are only appended. A killed process leaves at most
//! one line without a line end; that line counts as not written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::identity::ConversionIdentity;
use super::quantization_report::ErrorSums;
use crate::model::LoadError;

/// Name of the journal in the output directory.
const FILE: &str = "conversion.journal";

/// A weight that is on disk.
#[derive(Serialize, Deserialize)]
struct JournalEntry {
    /// Index of the weight.
    item: usize,
    /// [`ErrorSums::bits`] if the weight was quantised.
    errors: Option<[u64; 5]>,
}

/// The open journal, locked against other processes.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Indices of the weights on disk, with the error sums of those that were quantised.
    pub(super) done: BTreeMap<usize, Option<ErrorSums>>,
}

impl Journal {
    /// Returns whether a directory has a journal.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Opens the journal of an output directory and locks it; creates it if there is none.
    ///
    /// # Errors
    /// If another process has locked it, or if it belongs to a conversion with another identity.
    pub(super) fn open(dir: &Path, identity: &ConversionIdentity) -> Result<Self, LoadError> {
        let path = dir.join(FILE);
        let io = |e| LoadError::io(&path, e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LoadError::file(&path, "another process is converting into this directory"));
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
            let earlier: ConversionIdentity = serde_json::from_slice(first).map_err(broken)?;
            if let Some(difference) = identity.difference(&earlier) {
                let message = format!(
                    "begun with other input or settings: {difference}. Repeat the earlier command, \
                     remove this directory, or choose another"
                );
                return Err(LoadError::file(dir, message));
            }
            for line in lines {
                let entry: JournalEntry = serde_json::from_slice(line).map_err(broken)?;
                done.insert(entry.item, entry.errors.map(ErrorSums::from_bits));
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

    /// Records that the bytes of a weight are on disk.
    pub(super) fn add(&mut self, item: usize, errors: Option<ErrorSums>) -> Result<(), LoadError> {
        self.write(&json!(JournalEntry { item, errors: errors.map(|errors| errors.bits()) }))?;
        self.done.insert(item, errors);
        Ok(())
    }

    /// Removes the journal, after the conversion is complete.
    pub(super) fn remove(self) -> Result<(), LoadError> {
        std::fs::remove_file(&self.path).map_err(|e| LoadError::io(&self.path, e))
    }

    fn write(&mut self, line: &Value) -> Result<(), LoadError> {
        let written =
            self.file.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| LoadError::io(&self.path, e))
    }
}
