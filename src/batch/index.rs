//! All files and batches in memory, and the bytes that they take on disk.
//!
//! Contents and records count their real size. An unfinished batch also holds room for what it still writes:
//! [`batch_room`] for records, and [`LINE_ROOM`] for each line without a result.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::records::{BatchRecord, FileRecord, Purpose};
use super::results::{LINE_ROOM, Results};
use super::store_error::StoreError;

/// Bytes by which the record of a batch may grow until it ends: counts, times and flags. Faults of lines take
/// the room of these lines.
const GROWTH: u64 = 512;

/// Everything but the contents.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) files: HashMap<String, FileRecord>,
    pub(super) batches: HashMap<String, BatchRecord>,
    /// Bytes of uploads that have not ended.
    pub(super) uploads: u64,
    /// Bytes of each file and its record, and of each batch's record, by id.
    held: HashMap<String, u64>,
    /// The sum of `held`.
    used: u64,
    /// Unfinished batches, by id.
    open: HashMap<String, OpenResults>,
    last_order: u64,
}

/// The results of a batch that has not ended.
#[derive(Debug, Default)]
struct OpenResults {
    /// Lines without a result.
    lines_left: u64,
    /// Bytes of the results that are no file yet.
    bytes: u64,
}

impl Index {
    /// Bytes used and reserved.
    fn taken(&self) -> u64 {
        let open = self.open.values().map(|open| open.lines_left * LINE_ROOM + open.bytes);
        self.used + self.uploads + open.sum::<u64>()
    }

    /// Checks that there is room for more bytes.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub(super) fn check(&self, needed: u64, limit: u64) -> Result<(), StoreError> {
        let used = self.taken();
        if used.saturating_add(needed) > limit {
            return Err(StoreError::Full { needed, used, limit });
        }
        Ok(())
    }

    /// The place of a new record in the order of all.
    pub(super) fn order(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        self.last_order = now.max(self.last_order + 1);
        self.last_order
    }

    pub(super) fn batch_of(&self, owner: &str, id: &str) -> Result<&BatchRecord, StoreError> {
        self.batches.get(id).filter(|batch| batch.owner == owner).ok_or(StoreError::NotFound)
    }

    pub(super) fn add_file(&mut self, record: FileRecord) {
        self.last_order = self.last_order.max(record.order);
        self.hold(&record.id, record.bytes + record_bytes(&record));
        self.files.insert(record.id.clone(), record);
    }

    pub(super) fn add_batch(&mut self, record: BatchRecord) {
        self.last_order = self.last_order.max(record.order);
        self.hold(&record.id, batch_room(&record));
        if !record.status.is_final() {
            let open = OpenResults { lines_left: record.lines, bytes: 0 };
            self.open.insert(record.id.clone(), open);
        }
        self.batches.insert(record.id.clone(), record);
    }

    /// Replaces a batch's record. Once the batch has ended, it holds no more than its record.
    pub(super) fn replace_batch(&mut self, record: BatchRecord) {
        if record.status.is_final() {
            self.open.remove(&record.id);
            self.hold(&record.id, batch_room(&record));
        }
        self.batches.insert(record.id.clone(), record);
    }

    pub(super) fn remove_batch(&mut self, id: &str) {
        self.open.remove(id);
        self.batches.remove(id);
        self.release(id);
    }

    /// The batch of each result file of an unfinished batch, by the id of the file.
    pub(super) fn open_results(&self) -> HashMap<String, String> {
        let open = self.batches.values().filter(|batch| !batch.status.is_final());
        let ids = |batch: &BatchRecord| {
            let files = [&batch.output_file_id, &batch.error_file_id];
            files.map(|file| (file.clone(), batch.id.clone()))
        };
        open.flat_map(ids).collect()
    }

    /// Counts bytes of results that are no file yet.
    pub(super) fn add_result_bytes(&mut self, batch: &str, bytes: u64) {
        if let Some(open) = self.open.get_mut(batch) {
            open.bytes += bytes;
        }
    }

    /// Exchanges the room of a line for that of a result of `bytes`. Returns whether it fits.
    pub(super) fn exchange_line(&mut self, batch: &str, bytes: u64, limit: u64) -> bool {
        let fits = self.taken().saturating_sub(LINE_ROOM).saturating_add(bytes) <= limit;
        if let (true, Some(open)) = (fits, self.open.get_mut(batch)) {
            open.lines_left = open.lines_left.saturating_sub(1);
            open.bytes += bytes;
        }
        fits
    }

    /// Counts the results of a batch that are on disk.
    pub(super) fn count(&mut self, id: &str, results: &Results) {
        let Some(batch) = self.batches.get_mut(id) else { return };
        (batch.completed, batch.failed) = (results.completed(), results.failed());
        if let Some(open) = self.open.get_mut(id) {
            open.lines_left = batch.lines.saturating_sub(batch.completed + batch.failed);
            let ids = [&batch.output_file_id, &batch.error_file_id];
            let no_files =
                ids.into_iter().zip(results.bytes()).filter(|(id, _)| !self.files.contains_key(*id));
            open.bytes = no_files.map(|(_, bytes)| bytes).sum();
        }
    }

    /// Sets the bytes of a file or of a batch's record.
    fn hold(&mut self, id: &str, bytes: u64) {
        let before = self.held.insert(id.to_owned(), bytes).unwrap_or_default();
        self.used = self.used - before + bytes;
    }

    /// Gives back the bytes of a file or of a batch's record.
    pub(super) fn release(&mut self, id: &str) {
        self.used -= self.held.remove(id).unwrap_or_default();
    }
}

/// Bytes that a batch takes beside its results. Until it ends, both copies of a record that is replaced, and
/// the records of its results, must find room.
pub(super) fn batch_room(batch: &BatchRecord) -> u64 {
    let bytes = record_bytes(batch);
    if batch.status.is_final() {
        return bytes;
    }
    let result = |id, name| record_bytes(&result_record(batch, id, name));
    2 * (bytes + GROWTH) + result(&batch.output_file_id, "output") + result(&batch.error_file_id, "error")
}

/// The record of a file of results. Its numbers are the largest there are.
pub(super) fn result_record(batch: &BatchRecord, id: &str, name: &str) -> FileRecord {
    FileRecord {
        id: id.to_owned(),
        owner: batch.owner.clone(),
        filename: format!("{}_{name}.jsonl", batch.id),
        purpose: Purpose::BatchOutput,
        bytes: u64::MAX,
        lines: u64::MAX,
        created_at: u64::MAX,
        order: u64::MAX,
    }
}

/// Size of a record on disk.
pub(super) fn record_bytes(record: &impl Serialize) -> u64 {
    json(record).len() as u64
}

/// A record as it is on disk.
pub(super) fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record can be written as JSON")
}
