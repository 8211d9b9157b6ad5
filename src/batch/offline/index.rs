//! The index of an input file: which lines have a record.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use super::error::OfflineError;
use super::identity::{FileHash, key};
use super::line_reader::LineReader;

/// The index of an input file, of 16 bytes and a bit for each request.
pub(super) struct Index {
    /// SHA-256 of the file.
    pub(super) hash: FileHash,
    /// Lines that are not blank.
    pub(super) lines: u64,
    /// Keys of all `custom_id`s, sorted, each once.
    keys: Vec<u128>,
    /// For each of the keys, whether its line has a record.
    done: Vec<u64>,
    /// Keys that several lines have, with the number of the first of these lines once it is known.
    repeated: HashMap<u128, Option<u64>>,
    /// Numbers of lines that are no valid requests and have a record, sorted.
    refused: Vec<u64>,
}

/// The state of a line when another record of it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marked {
    /// The line has a record now.
    First,
    /// The line had a record already.
    Again,
    /// There is no such line.
    Unknown,
}

/// The work that a line needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Todo {
    /// It has a record.
    Nothing,
    /// It has to be run.
    Run,
    /// An earlier line, of this number, has the same `custom_id`.
    Repeats(u64),
    /// The first read of the file did not find this line.
    Changed,
}

impl Index {
    /// Reads a file from its beginning.
    pub(super) fn read(path: &Path, file: File) -> Result<Self, OfflineError> {
        let mut reader = LineReader::new(file);
        let (mut keys, mut lines) = (Vec::new(), 0);
        while let Some((_, line)) = reader.next().map_err(OfflineError::io(path))? {
            lines += 1;
            keys.extend(line.ok().map(|line| key(&line.custom_id)));
        }
        if lines == 0 {
            return Err(OfflineError::Empty(path.to_owned()));
        }
        keys.sort_unstable();
        let twins = keys.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| (pair[0], None));
        let repeated = twins.collect();
        keys.dedup();
        keys.shrink_to_fit();
        let done = vec![0; keys.len().div_ceil(64)];
        Ok(Self { hash: reader.hash(), lines, keys, done, repeated, refused: Vec::new() })
    }

    /// Notes that the line with this `custom_id` has a record.
    pub(super) fn mark(&mut self, custom_id: &str) -> Marked {
        let Ok(at) = self.keys.binary_search(&key(custom_id)) else { return Marked::Unknown };
        let (word, bit) = (&mut self.done[at / 64], 1 << (at % 64));
        let before = *word & bit != 0;
        *word |= bit;
        if before { Marked::Again } else { Marked::First }
    }

    /// Notes the lines of these numbers, each of which has a record as no valid request. Returns a number
    /// that occurs twice.
    pub(super) fn mark_refused(&mut self, mut numbers: Vec<u64>) -> Option<u64> {
        numbers.sort_unstable();
        let twice = numbers.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        self.refused = numbers;
        twice
    }

    /// Whether the line of this number has a record as no valid request.
    pub(super) fn is_refused(&self, number: u64) -> bool {
        self.refused.binary_search(&number).is_ok()
    }

    /// The work that a line needs. It must be called for all lines with a valid request, in their order.
    pub(super) fn todo(&mut self, number: u64, custom_id: &str) -> Todo {
        let key = key(custom_id);
        let Ok(at) = self.keys.binary_search(&key) else { return Todo::Changed };
        let is_refused = self.is_refused(number);
        match self.repeated.get_mut(&key) {
            Some(Some(_)) if is_refused => return Todo::Nothing,
            Some(Some(first)) => return Todo::Repeats(*first),
            Some(first) => *first = Some(number),
            None => {}
        }
        if self.done[at / 64] & (1 << (at % 64)) != 0 { Todo::Nothing } else { Todo::Run }
    }
}
