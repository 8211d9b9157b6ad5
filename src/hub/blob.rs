//! The download of one file into the cache: what is there already is kept, the rest is read, and size and
//! SHA-256 are checked before the file gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::{Cache, Locked};
use super::client::{Client, FileInfo};
use super::error::{HubError, text_of};
use super::retry::{self, Attempts};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Interval of attempts to take a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// State that the threads of a download share.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes that are in the cache.
    pub(super) done: AtomicU64,
    /// Bytes that came over the network.
    pub(super) received: AtomicU64,
    /// Set when the download has failed.
    pub(super) stop: AtomicBool,
}

/// The download of one file.
pub(super) struct BlobDownload<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a Cache,
    pub(super) counters: &'a Counters,
    pub(super) commit: &'a str,
    pub(super) info: &'a FileInfo,
}

/// A partial file, and the hash of its first `length` bytes.
struct Partial {
    file: File,
    length: u64,
    hash: Sha256,
}

impl BlobDownload<'_> {
    /// Downloads the file, unless its blob is there, and links it into the snapshot.
    pub(super) fn run(&self) -> Result<(), HubError> {
        let _lock = self.lock()?;
        let FileInfo { path, etag, bytes } = self.info;
        let blob = self.cache.blob(etag);
        let present = fs::metadata(&blob).is_ok_and(|meta| meta.is_file() && meta.len() == *bytes);
        if present {
            self.counters.done.fetch_add(*bytes, Ordering::Relaxed);
        } else {
            self.download(&blob).map_err(|error| error.worded(|text| format!("{path}: {text}")))?;
        }
        self.cache.link(self.commit, path, etag)
    }

    /// Waits for the lock of the blob.
    fn lock(&self) -> Result<Locked, HubError> {
        let mut waits = false;
        loop {
            match self.cache.lock(&self.info.etag)? {
                held @ Locked::Held { .. } => return Ok(held),
                Locked::Busy if !waits => {
                    waits = true;
                    tracing::info!("waiting for another process that downloads {}", self.info.path);
                }
                Locked::Busy => {}
            }
            retry::sleep(LOCK_POLL, &self.counters.stop)?;
        }
    }

    /// Completes the partial file and gives it its name. If the hash of a file that an earlier process began
    /// is wrong, the file is downloaded once more from its beginning.
    fn download(&self, blob: &Path) -> Result<(), HubError> {
        let path = self.cache.partial(&self.info.etag);
        let io = |error: std::io::Error| HubError::io(&path, &error);
        let mut partial = self.open(&path)?;
        let resumed = partial.length;
        self.complete(&mut partial, &path)?;
        if let Err(error) = self.check(&partial) {
            if resumed == 0 {
                let _removed = fs::remove_file(&path);
                return Err(error);
            }
            tracing::warn!("{}: {error}; it is downloaded again", self.info.path);
            self.restart(&mut partial, &path)?;
            self.complete(&mut partial, &path)?;
            self.check(&partial).inspect_err(|_| drop(fs::remove_file(&path)))?;
        }
        // After a loss of power, no blob may have its name without its contents.
        partial.file.sync_data().map_err(io)?;
        match fs::rename(&path, blob) {
            // Without locks, another process may have been first.
            Err(error) if error.kind() == ErrorKind::NotFound && blob.is_file() => Ok(()),
            renamed => renamed.map_err(io),
        }
    }

    /// Opens what an earlier process left, and hashes it. A file without a hash begins anew, since nothing
    /// would find a wrong beginning; such files are small.
    fn open(&self, path: &Path) -> Result<Partial, HubError> {
        let io = |error: std::io::Error| HubError::io(path, &error);
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
        let mut partial = Partial { file, length: 0, hash: Sha256::new() };
        let stored = partial.file.metadata().map_err(io)?.len();
        if self.info.sha256().is_none() || stored > self.info.bytes {
            partial.file.set_len(0).map_err(io)?;
            return Ok(partial);
        }
        let mut buffer = vec![0; PIECE];
        while partial.length < stored {
            retry::check(&self.counters.stop)?;
            let read = partial.file.read_at(&mut buffer, partial.length).map_err(io)?;
            if read == 0 {
                break;
            }
            partial.hash.update(&buffer[..read]);
            partial.length += read as u64;
            self.counters.done.fetch_add(read as u64, Ordering::Relaxed);
        }
        Ok(partial)
    }

    fn restart(&self, partial: &mut Partial, path: &Path) -> Result<(), HubError> {
        self.counters.done.fetch_sub(partial.length, Ordering::Relaxed);
        partial.length = 0;
        partial.hash = Sha256::new();
        partial.file.set_len(0).map_err(|error| HubError::io(path, &error))
    }

    /// Reads until the file has its size. A connection that breaks is replaced; the attempts are counted from
    /// the last byte that arrived.
    fn complete(&self, partial: &mut Partial, path: &Path) -> Result<(), HubError> {
        let mut attempts = Attempts::of_file(&self.info.path);
        while partial.length < self.info.bytes {
            let before = partial.length;
            let Err(error) = self.read(partial, path) else { continue };
            if partial.length > before {
                attempts = Attempts::of_file(&self.info.path);
            }
            attempts.wait(error, &self.counters.stop)?;
        }
        Ok(())
    }

    /// Reads from one connection.
    fn read(&self, partial: &mut Partial, path: &Path) -> Result<(), HubError> {
        let (start, mut body) = self.client.read(self.commit, self.info, partial.length)?;
        if start != partial.length {
            self.restart(partial, path)?;
        }
        let mut buffer = vec![0; PIECE];
        loop {
            retry::check(&self.counters.stop)?;
            let read = match body.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(HubError::temporary(format!("the connection broke: {}", text_of(&error))));
                }
            };
            let FileInfo { bytes, .. } = self.info;
            if read == 0 && partial.length == *bytes {
                return Ok(());
            }
            if read == 0 {
                let message = format!("the connection ended after {} of {bytes} bytes", partial.length);
                return Err(HubError::temporary(message));
            }
            if read as u64 > bytes - partial.length {
                return Err(HubError::fatal(format!("expected {bytes} bytes, got more")));
            }
            // Two processes on a file system without locks write the same bytes to the same places.
            let written = partial.file.write_all_at(&buffer[..read], partial.length);
            written.map_err(|error| HubError::io(path, &error))?;
            partial.hash.update(&buffer[..read]);
            partial.length += read as u64;
            self.counters.done.fetch_add(read as u64, Ordering::Relaxed);
            self.counters.received.fetch_add(read as u64, Ordering::Relaxed);
        }
    }

    /// Compares the hash, if the hub has given one.
    fn check(&self, partial: &Partial) -> Result<(), HubError> {
        let Some(expected) = self.info.sha256() else { return Ok(()) };
        let got: String = partial.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if got == expected {
            return Ok(());
        }
        Err(HubError::fatal(format!("expected the SHA-256 {expected}, got {got}")))
    }
}
