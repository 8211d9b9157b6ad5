//! The directory of files and batches, and an index of it in memory.
//!
//! | path | content |
//! |---|---|
//! | `lock` | held by the process that uses the directory |
//! | `files/ID.jsonl` | a file's content, or the results of a batch that has not ended |
//! | `files/ID.json` | a file's record; a content without one is no file yet |
//! | `batches/ID.json` | a batch's record |
//! | `uploads/` | contents that are still arriving; emptied at start |
//!
//! All calls block on the disk. `index` counts the bytes of contents and records, and reserves room for
//! what unfinished batches still write, so that the directory stays below its limit.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;

use super::disk;
use super::index::{Index, batch_room, json, record_bytes, result_record};
use super::input::MAX_LINES;
use super::page::PageQuery;
use super::records::{BatchRecord, Endpoint, FileRecord, Purpose, Status};
use super::results::{LINE_ROOM, Results};
use super::retention;
use super::store_error::StoreError;

/// Length of the completion window in seconds.
const WINDOW: u64 = 24 * 3600;

/// The files and batches of one directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    limit: u64,
    index: Mutex<Index>,
    _lock: File,
}

/// A batch to create.
pub(crate) struct NewBatch {
    pub(crate) owner: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) input_file_id: String,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
}

impl Store {
    /// Opens the directory, or creates it, for at most `limit` bytes.
    ///
    /// # Errors
    /// The directory cannot be read or written, another process uses it, or a record in it is damaged.
    pub fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        let about = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        for name in ["files", "batches", "uploads"] {
            let path = directory.join(name);
            disk::create_directory(&path).map_err(|error| about(&path, error))?;
        }
        let path = directory.join("lock");
        let lock = disk::create(&path).map_err(|error| about(&path, error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| about(&path, io::Error::other(format!("another process uses it ({error})"))))?;
        let store =
            Self { directory: directory.to_owned(), limit, index: Mutex::new(Index::default()), _lock: lock };
        store.load().map_err(|error| about(directory, error))?;
        Ok(store)
    }

    /// Reads all records, and removes what a crash left behind.
    fn load(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.directory.join("uploads"))? {
            std::fs::remove_file(entry?.path())?;
        }
        let mut index = self.index();
        for record in read_all::<FileRecord>(&self.directory.join("files"))? {
            index.add_file(record);
        }
        for record in read_all::<BatchRecord>(&self.directory.join("batches"))? {
            index.add_batch(record);
        }
        let results = index.open_results();
        for entry in std::fs::read_dir(self.directory.join("files"))? {
            let path = entry?.path();
            let id = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let ending = path.extension().and_then(|ending| ending.to_str());
            match (ending, results.get(&id)) {
                (Some("json"), _) => {}
                (Some("jsonl"), _) if index.files.contains_key(&id) => {}
                (Some("jsonl"), Some(batch)) => index.add_result_bytes(batch, path.metadata()?.len()),
                _ => std::fs::remove_file(&path)?,
            }
        }
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content_path(&self, id: &str) -> PathBuf {
        self.directory.join("files").join(format!("{id}.jsonl"))
    }

    fn record_path(&self, folder: &str, id: &str) -> PathBuf {
        self.directory.join(folder).join(format!("{id}.json"))
    }

    pub(super) fn upload_path(&self, id: &str) -> PathBuf {
        self.directory.join("uploads").join(id)
    }

    /// Takes room for `bytes` of an upload.
    pub(super) fn take_room(&self, bytes: u64) -> Result<(), StoreError> {
        let mut index = self.index();
        index.check(bytes, self.limit)?;
        index.uploads += bytes;
        Ok(())
    }

    pub(super) fn give_room_back(&self, bytes: u64) {
        self.index().uploads -= bytes;
    }

    /// Makes an arrived content a file. The upload has taken `room`, which becomes that of the file.
    pub(super) fn add_file(
        &self,
        arrived: &Path,
        mut record: FileRecord,
        room: u64,
    ) -> Result<FileRecord, StoreError> {
        record.order = self.index().order();
        let more = (record.bytes + record_bytes(&record)).saturating_sub(room);
        self.take_room(more)?;
        let content = self.content_path(&record.id);
        let written = disk::rename(arrived, &content).and_then(|()| self.write_file_record(&record));
        if written.is_err() {
            // The record may be on disk although its name could not be synced. If so, the content stays
            // until it is gone.
            let record = self.record_path("files", &record.id);
            let _gone = disk::remove(&record).and_then(|()| disk::remove(&content));
        }
        let mut index = self.index();
        index.uploads -= more;
        written?;
        index.uploads -= room;
        index.add_file(record.clone());
        Ok(record)
    }

    fn write_file_record(&self, record: &FileRecord) -> io::Result<()> {
        disk::replace(&self.record_path("files", &record.id), &json(record))
    }

    fn write_batch_record(&self, record: &BatchRecord) -> io::Result<()> {
        disk::replace(&self.record_path("batches", &record.id), &json(record))
    }

    /// The owner's files, of one purpose if it is given. Returns whether there are more.
    pub(crate) fn files(
        &self,
        owner: &str,
        purpose: Option<Purpose>,
        page: &PageQuery,
    ) -> Result<(Vec<FileRecord>, bool), StoreError> {
        let index = self.index();
        let own = index.files.values().filter(|file| file.owner == owner);
        let wanted = own.filter(|file| purpose.is_none_or(|purpose| file.purpose == purpose));
        page.take(wanted.map(|file| (file.order, &file.id, file)).collect()).ok_or(StoreError::NotFound)
    }

    /// The owner's batches. Returns whether there are more.
    pub(crate) fn batches(
        &self,
        owner: &str,
        page: &PageQuery,
    ) -> Result<(Vec<BatchRecord>, bool), StoreError> {
        let index = self.index();
        let own = index.batches.values().filter(|batch| batch.owner == owner);
        page.take(own.map(|batch| (batch.order, &batch.id, batch)).collect()).ok_or(StoreError::NotFound)
    }

    /// One of the owner's files.
    pub(crate) fn file(&self, owner: &str, id: &str) -> Result<FileRecord, StoreError> {
        let index = self.index();
        index.files.get(id).filter(|file| file.owner == owner).cloned().ok_or(StoreError::NotFound)
    }

    /// The content of one of the owner's files.
    pub(crate) fn content(&self, owner: &str, id: &str) -> Result<(FileRecord, File), StoreError> {
        let record = self.file(owner, id)?;
        Ok((record, File::open(self.content_path(id))?))
    }

    /// Deletes one of the owner's files.
    pub(crate) fn delete_file(&self, owner: &str, id: &str) -> Result<(), StoreError> {
        {
            let mut index = self.index();
            let open = index.batches.values().filter(|batch| !batch.status.is_final());
            let uses = |batch: &&BatchRecord| {
                let own = [&batch.input_file_id, &batch.output_file_id, &batch.error_file_id];
                own.into_iter().any(|own| own == id)
            };
            let user = open.filter(|batch| batch.owner == owner).find(uses);
            if let Some(batch) = user {
                return Err(StoreError::InUse(batch.id.clone()));
            }
            index.files.get(id).filter(|file| file.owner == owner).ok_or(StoreError::NotFound)?;
            index.files.remove(id);
        }
        disk::remove(&self.record_path("files", id))?;
        disk::remove(&self.content_path(id))?;
        self.index().release(id);
        Ok(())
    }

    /// Removes records of batches whose time is over (`retention`).
    fn forget_batches(&self, now: u64) -> io::Result<()> {
        let forgotten = {
            let mut index = self.index();
            let exists = |id: &String| index.files.contains_key(id);
            let forgotten = retention::over(index.batches.values(), exists, now);
            forgotten.iter().for_each(|id| _ = index.batches.remove(id));
            forgotten
        };
        for id in forgotten {
            disk::remove(&self.record_path("batches", &id))?;
            self.index().release(&id);
        }
        Ok(())
    }

    /// Creates a batch, and reserves room for the results of its lines.
    pub(crate) fn create_batch(&self, new: NewBatch, now: u64) -> Result<BatchRecord, StoreError> {
        self.forget_batches(now)?;
        let record = {
            let mut index = self.index();
            let file = index.files.get(&new.input_file_id).filter(|file| file.owner == new.owner);
            let lines = file.ok_or(StoreError::NotFound)?.lines.min(MAX_LINES as u64);
            let record = BatchRecord {
                id: new_id("batch_")?,
                owner: new.owner,
                endpoint: new.endpoint,
                input_file_id: new.input_file_id,
                lines,
                metadata: new.metadata,
                status: Status::Validating,
                errors: Vec::new(),
                output_file_id: new_id("file-")?,
                error_file_id: new_id("file-")?,
                has_output: false,
                has_errors: false,
                created_at: now,
                expires_at: now + WINDOW,
                since: BTreeMap::new(),
                total: 0,
                completed: 0,
                failed: 0,
                order: index.order(),
                stalled_starts: 0,
                results_at_start: 0,
            };
            index.check(batch_room(&record) + lines * LINE_ROOM, self.limit)?;
            index.add_batch(record.clone());
            record
        };
        if let Err(error) = self.write_batch_record(&record) {
            // It may be on disk although its name could not be synced.
            let _gone = disk::remove(&self.record_path("batches", &record.id));
            self.index().remove_batch(&record.id);
            return Err(error.into());
        }
        Ok(record)
    }

    /// One of the owner's batches.
    pub(crate) fn batch(&self, owner: &str, id: &str) -> Result<BatchRecord, StoreError> {
        self.index().batch_of(owner, id).cloned()
    }

    /// Marks one of the owner's batches as to be cancelled.
    pub(crate) fn cancel(&self, owner: &str, id: &str, now: u64) -> Result<BatchRecord, StoreError> {
        let status = self.index().batch_of(owner, id)?.status;
        match status {
            Status::Cancelling => self.batch(owner, id),
            Status::Validating | Status::InProgress => {
                Ok(self.update(id, |batch| batch.enter(Status::Cancelling, now))?)
            }
            ended => Err(StoreError::Ended(ended.as_str())),
        }
    }

    /// Changes a batch's record, on disk and in memory.
    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut BatchRecord)) -> io::Result<BatchRecord> {
        let mut index = self.index();
        let batch = index.batches.get(id).ok_or_else(|| io::Error::other("the batch is gone"))?;
        let mut changed = batch.clone();
        change(&mut changed);
        // Held during the write, so that two changes of one batch reach the disk in order.
        self.write_batch_record(&changed)?;
        index.replace_batch(changed.clone());
        Ok(changed)
    }

    /// The record of any owner's batch.
    pub(super) fn any_batch(&self, id: &str) -> Option<BatchRecord> {
        self.index().batches.get(id).cloned()
    }

    /// Ids of the batches that have not ended, oldest first.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let index = self.index();
        let mut open: Vec<&BatchRecord> =
            index.batches.values().filter(|batch| !batch.status.is_final()).collect();
        open.sort_by_key(|batch| batch.order);
        open.into_iter().map(|batch| batch.id.clone()).collect()
    }

    /// The content of a batch's input.
    pub(super) fn input(&self, batch: &BatchRecord) -> io::Result<File> {
        File::open(self.content_path(&batch.input_file_id))
    }

    /// Opens the results of a batch that has not ended. `done` gets the `custom_id` of each.
    pub(super) fn results(&self, batch: &BatchRecord, done: &mut HashSet<String>) -> io::Result<Results> {
        let paths = [&batch.output_file_id, &batch.error_file_id].map(|id| self.content_path(id));
        let results = Results::open(&paths[0], &paths[1], done)?;
        self.count(&batch.id, &results);
        Ok(results)
    }

    /// Counts the results of a batch, which its record in memory shows.
    pub(super) fn count(&self, id: &str, results: &Results) {
        self.index().count(id, results);
    }

    /// Takes room for a record of `bytes`, in exchange for that of its line.
    pub(super) fn take_result_room(&self, id: &str, bytes: u64) -> bool {
        self.index().exchange_line(id, bytes, self.limit)
    }

    /// Makes the results of a batch files, as far as there are any. Returns which exist.
    pub(super) fn publish_results(
        &self,
        batch: &BatchRecord,
        results: &Results,
        now: u64,
    ) -> io::Result<[bool; 2]> {
        let files = [
            (&batch.output_file_id, "output", results.completed()),
            (&batch.error_file_id, "error", results.failed()),
        ];
        let mut exist = [false; 2];
        for ((exists, bytes), (id, name, lines)) in exist.iter_mut().zip(results.bytes()).zip(files) {
            *exists = lines > 0;
            if lines == 0 {
                disk::remove(&self.content_path(id))?;
                continue;
            }
            let order = self.index().order();
            let record =
                FileRecord { bytes, lines, created_at: now, order, ..result_record(batch, id, name) };
            self.write_file_record(&record)?;
            let mut index = self.index();
            index.add_file(record);
            index.count(&batch.id, results);
        }
        Ok(exist)
    }
}

/// An id with 128 random bits.
pub(super) fn new_id(prefix: &str) -> io::Result<String> {
    let random = || getrandom::u64().map_err(|error| io::Error::other(error.to_string()));
    Ok(format!("{prefix}{:016x}{:016x}", random()?, random()?))
}

/// Reads the records of a folder, and removes what a crash left of one that was written.
fn read_all<T: DeserializeOwned>(folder: &Path) -> io::Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "tmp") {
            std::fs::remove_file(&path)?;
        } else if path.extension().is_some_and(|ending| ending == "json") {
            let record = serde_json::from_slice(&std::fs::read(&path)?).map_err(|error| {
                let text = format!("{} is damaged: {error}", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            records.push(record);
        }
    }
    Ok(records)
}
