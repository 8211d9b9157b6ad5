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
//! All calls block on the disk. Sizes are counted, so that the directory stays below its limit: each record
//! counts [`RECORD_ROOM`] bytes, and each line of an unfinished batch that has no result [`LINE_ROOM`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::disk;
use super::input::MAX_LINES;
use super::page::PageQuery;
use super::records::{BatchRecord, Endpoint, FileRecord, Purpose, Status};
use super::results::{LINE_ROOM, Results};
use super::retention;

/// Bytes that a record counts.
pub(super) const RECORD_ROOM: u64 = 4096;
/// Length of the completion window in seconds.
const WINDOW: u64 = 24 * 3600;

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The owner has no such file or batch.
    #[error("there is no such file or batch")]
    NotFound,
    /// The directory has no room.
    #[error("{needed} more bytes are needed; {used} of at most {limit} bytes are used or reserved")]
    Full {
        /// Bytes needed.
        needed: u64,
        /// Bytes used and reserved.
        used: u64,
        /// The most bytes.
        limit: u64,
    },
    /// A batch that has not ended uses the file.
    #[error("The batch {0} uses this file and has not ended.")]
    InUse(String),
    /// The batch has ended, with this status.
    #[error("The batch has ended: its status is {0}.")]
    Ended(&'static str),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The files and batches of one directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    limit: u64,
    index: Mutex<Index>,
    _lock: File,
}

/// Everything but the contents.
#[derive(Debug, Default)]
struct Index {
    files: HashMap<String, FileRecord>,
    batches: HashMap<String, BatchRecord>,
    /// Bytes on disk, records included.
    used: u64,
    /// Lines without a result, by unfinished batch.
    lines_left: HashMap<String, u64>,
    last_order: u64,
}

/// A batch to create.
pub(crate) struct NewBatch {
    pub(crate) owner: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) input_file_id: String,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
}

impl Index {
    fn taken(&self) -> u64 {
        self.used + self.lines_left.values().sum::<u64>() * LINE_ROOM
    }

    fn order(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        self.last_order = now.max(self.last_order + 1);
        self.last_order
    }

    fn batch_of(&self, owner: &str, id: &str) -> Result<&BatchRecord, StoreError> {
        self.batches.get(id).filter(|batch| batch.owner == owner).ok_or(StoreError::NotFound)
    }
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
            index.last_order = index.last_order.max(record.order);
            index.files.insert(record.id.clone(), record);
        }
        for record in read_all::<BatchRecord>(&self.directory.join("batches"))? {
            index.last_order = index.last_order.max(record.order);
            if !record.status.is_final() {
                index.lines_left.insert(record.id.clone(), record.lines);
            }
            index.batches.insert(record.id.clone(), record);
        }
        let open = index.batches.values().filter(|batch| !batch.status.is_final());
        let unfinished = open.flat_map(|batch| [&batch.output_file_id, &batch.error_file_id]);
        let known: HashSet<String> = index.files.keys().chain(unfinished).cloned().collect();
        let mut used = (index.files.len() + index.batches.len()) as u64 * RECORD_ROOM;
        for entry in std::fs::read_dir(self.directory.join("files"))? {
            let path = entry?.path();
            let id = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("json") => {}
                Some("jsonl") if known.contains(&id) => used += path.metadata()?.len(),
                _ => std::fs::remove_file(&path)?,
            }
        }
        index.used = used;
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

    /// Takes room for `bytes`.
    pub(super) fn take_room(&self, bytes: u64) -> Result<(), StoreError> {
        let mut index = self.index();
        let used = index.taken();
        if used.saturating_add(bytes) > self.limit {
            return Err(StoreError::Full { needed: bytes, used, limit: self.limit });
        }
        index.used += bytes;
        Ok(())
    }

    pub(super) fn give_room_back(&self, bytes: u64) {
        self.index().used -= bytes;
    }

    /// Makes an arrived content a file. Its room has been taken, that of its record too.
    pub(super) fn add_file(&self, arrived: &Path, mut record: FileRecord) -> io::Result<FileRecord> {
        record.order = self.index().order();
        disk::rename(arrived, &self.content_path(&record.id))?;
        self.write_file_record(&record)?;
        self.index().files.insert(record.id.clone(), record.clone());
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
        let record = {
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
            index.files.remove(id).ok_or(StoreError::NotFound)?
        };
        disk::remove(&self.record_path("files", id))?;
        disk::remove(&self.content_path(id))?;
        self.give_room_back(record.bytes + RECORD_ROOM);
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
            self.give_room_back(RECORD_ROOM);
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
            let (needed, used) = (RECORD_ROOM + lines * LINE_ROOM, index.taken());
            if used.saturating_add(needed) > self.limit {
                return Err(StoreError::Full { needed, used, limit: self.limit });
            }
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
            index.used += RECORD_ROOM;
            index.lines_left.insert(record.id.clone(), lines);
            index.batches.insert(record.id.clone(), record.clone());
            record
        };
        if let Err(error) = self.write_batch_record(&record) {
            let mut index = self.index();
            index.used -= RECORD_ROOM;
            index.lines_left.remove(&record.id);
            index.batches.remove(&record.id);
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
        let batch = index.batches.get_mut(id).ok_or_else(|| io::Error::other("the batch is gone"))?;
        let mut changed = batch.clone();
        change(&mut changed);
        // Held during the write, so that two changes of one batch reach the disk in order.
        self.write_batch_record(&changed)?;
        *batch = changed.clone();
        if changed.status.is_final() {
            index.lines_left.remove(id);
        }
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
        let size = |path: &PathBuf| path.metadata().map_or(0, |file| file.len());
        let before: u64 = paths.iter().map(size).sum();
        let results = Results::open(&paths[0], &paths[1], done)?;
        let cut = before - paths.iter().map(size).sum::<u64>();
        self.index().used -= cut.min(before);
        self.count(&batch.id, &results);
        Ok(results)
    }

    /// Counts the results of a batch, which its record in memory shows.
    pub(super) fn count(&self, id: &str, results: &Results) {
        let mut index = self.index();
        let done = results.completed() + results.failed();
        if let Some(batch) = index.batches.get_mut(id) {
            (batch.completed, batch.failed) = (results.completed(), results.failed());
            let left = batch.lines.saturating_sub(done);
            if !batch.status.is_final() {
                index.lines_left.insert(id.to_owned(), left);
            }
        }
    }

    /// Takes room for a record of `bytes`, in exchange for that of its line.
    pub(super) fn take_result_room(&self, id: &str, bytes: u64) -> bool {
        let mut index = self.index();
        if index.taken().saturating_sub(LINE_ROOM).saturating_add(bytes) > self.limit {
            return false;
        }
        index.used += bytes;
        if let Some(left) = index.lines_left.get_mut(id) {
            *left = left.saturating_sub(1);
        }
        true
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
            let record = FileRecord {
                id: id.clone(),
                owner: batch.owner.clone(),
                filename: format!("{}_{name}.jsonl", batch.id),
                purpose: Purpose::BatchOutput,
                bytes,
                lines,
                created_at: now,
                order: self.index().order(),
            };
            self.write_file_record(&record)?;
            let mut index = self.index();
            if index.files.insert(id.clone(), record).is_none() {
                index.used += RECORD_ROOM;
            }
        }
        Ok(exist)
    }
}

/// An id with 128 random bits.
pub(super) fn new_id(prefix: &str) -> io::Result<String> {
    let random = || getrandom::u64().map_err(|error| io::Error::other(error.to_string()));
    Ok(format!("{prefix}{:016x}{:016x}", random()?, random()?))
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record can be written as JSON")
}

/// Reads the records of a folder.
fn read_all<T: DeserializeOwned>(folder: &Path) -> io::Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            let record = serde_json::from_slice(&std::fs::read(&path)?).map_err(|error| {
                let text = format!("{} is damaged: {error}", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            records.push(record);
        }
    }
    Ok(records)
}
