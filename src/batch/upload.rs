//! A file that is arriving: its bytes go to disk as they come.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::disk;
use super::records::{FileRecord, Purpose};
use super::store::{Store, new_id};
use super::store_error::StoreError;

/// Bytes that an upload holds for the record of the file, which is longer if the file's name is.
const RECORD_ROOM: u64 = 1024;
/// The most bytes of a file.
pub(crate) const MAX_FILE_BYTES: u64 = 200 << 20;

/// A file that is arriving. Dropping it discards what has arrived.
pub(crate) struct Upload {
    store: Arc<Store>,
    id: String,
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Line ends so far, and whether the last byte is one.
    lines: u64,
    line_ended: bool,
    /// Room taken in the store; 0 once the file is complete.
    room: u64,
}

/// The facts about a file that is complete.
pub(crate) struct NewFile {
    pub(crate) owner: String,
    pub(crate) filename: String,
    pub(crate) created_at: u64,
}

impl Upload {
    /// Begins an upload.
    pub(crate) fn begin(store: &Arc<Store>) -> Result<Self, StoreError> {
        let id = new_id("file-")?;
        let path = store.upload_path(&id);
        store.take_room(RECORD_ROOM)?;
        let file = match disk::create(&path) {
            Ok(file) => file,
            Err(error) => {
                store.give_room_back(RECORD_ROOM);
                return Err(error.into());
            }
        };
        let store = Arc::clone(store);
        Ok(Self { store, id, path, file, bytes: 0, lines: 0, line_ended: true, room: RECORD_ROOM })
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let count = bytes.len() as u64;
        self.store.take_room(count)?;
        self.room += count;
        self.file.write_all(bytes)?;
        self.bytes += count;
        self.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.line_ended = bytes.last().map_or(self.line_ended, |byte| *byte == b'\n');
        Ok(())
    }

    /// Makes the content a file.
    pub(crate) fn finish(mut self, new: NewFile) -> Result<FileRecord, StoreError> {
        self.file.sync_all()?;
        let record = FileRecord {
            id: self.id.clone(),
            owner: new.owner,
            filename: new.filename,
            purpose: Purpose::UPLOADED,
            bytes: self.bytes,
            lines: self.lines + u64::from(!self.line_ended),
            created_at: new.created_at,
            order: 0,
        };
        let record = self.store.add_file(&self.path, record, self.room)?;
        self.room = 0;
        Ok(record)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.room > 0 {
            let _gone = std::fs::remove_file(&self.path);
            self.store.give_room_back(self.room);
        }
    }
}
