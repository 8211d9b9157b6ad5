//! The cache that Hugging Face's Python libraries share: `models--ORG--NAME` with `blobs` named after their
//! hashes, `snapshots` of links to them, and `refs` from a branch or tag to its snapshot.
//!
//! Partial files and locks have the names that `huggingface_hub` gives them, and the locks are the same
//! system call, so that programs of both kinds may download at once.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use super::error::HubError;
use super::files::{CONFIG, INDEX, Part, SINGLE, shards};
use super::name::{ModelName, is_commit};

/// One model's part of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

/// Result of asking for a lock.
pub(super) enum Locked {
    /// Held until the file is closed, also by the end of the process. `None` where the file system has no
    /// locks.
    Held { _lock: Option<File> },
    /// Another process holds it.
    Busy,
}

impl Cache {
    pub(super) fn new(cache: &Path, name: &ModelName) -> Self {
        let folder = format!("models--{}", name.id.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// A blob of which only a first part may be there.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision was at when it was last downloaded.
    pub(super) fn commit(&self, name: &ModelName) -> Option<String> {
        if name.is_commit() {
            return Some(name.revision.clone());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(&name.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit of a branch or tag. The file is replaced in one step: a reader sees the old or the
    /// new commit.
    pub(super) fn set_commit(&self, name: &ModelName, commit: &str) -> Result<(), HubError> {
        if self.commit(name).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&name.revision);
        let new = self.folder.join("refs").join(format!(".{}.new", std::process::id()));
        let parent = path.parent().unwrap_or(&self.folder);
        let write = || {
            fs::create_dir_all(parent)?;
            File::create(&new)?.write_all(commit.as_bytes())?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| HubError::io(&path, &error))
    }

    /// Whether a snapshot has a file of this size.
    pub(super) fn has(&self, commit: &str, file: &str, size: u64) -> bool {
        fs::metadata(self.snapshot(commit).join(file)).is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// Links a file of a snapshot to its blob, and replaces a link that leads elsewhere.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        let target = format!("../../{}blobs/{etag}", "../".repeat(file.matches('/').count()));
        if fs::read_link(&path).is_ok_and(|found| found == Path::new(&target)) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.folder);
        let new = parent.join(format!(".{etag}.{}.new", std::process::id()));
        let link = || {
            fs::create_dir_all(parent)?;
            let _left_by_a_process_of_this_number = fs::remove_file(&new);
            symlink(&target, &new)?;
            fs::rename(&new, &path)
        };
        link().map_err(|error| HubError::io(&path, &error))
    }

    /// Takes the lock of a blob, without waiting.
    pub(super) fn lock(&self, etag: &str) -> Result<Locked, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        let wrong = |error: &std::io::Error| HubError::io(&path, error);
        fs::create_dir_all(&self.locks).map_err(|error| wrong(&error))?;
        // Writable for the group, as `huggingface_hub` makes it, so that users can share a cache.
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o664).open(&path);
        let file = open.map_err(|error| wrong(&error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // A file that was removed meanwhile is not the one that others lock.
            Ok(()) if file.metadata().is_ok_and(|meta| meta.nlink() > 0) => {
                Ok(Locked::Held { _lock: Some(file) })
            }
            Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Locked::Busy),
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(Locked::Held { _lock: None }),
            Err(error) => Err(wrong(&error.into())),
        }
    }

    /// Makes the directory of blobs, and returns the bytes that are free for it.
    pub(super) fn free_bytes(&self) -> Result<u64, HubError> {
        let blobs = self.folder.join("blobs");
        let free = fs::create_dir_all(&blobs).and_then(|()| Ok(statvfs(&blobs)?));
        let free = free.map_err(|error| HubError::io(&blobs, &error))?;
        Ok(free.f_bavail.saturating_mul(free.f_frsize))
    }

    /// The directory of a snapshot that has everything of a part, as far as the cache itself can tell.
    ///
    /// # Errors
    /// Says what is missing.
    pub(super) fn complete(&self, name: &ModelName, part: Part) -> Result<PathBuf, HubError> {
        let folder = self.folder.display();
        let Some(commit) = self.commit(name) else {
            let message = format!("the cache has no revision `{}` in {folder}", name.revision);
            return Err(HubError::fatal(message));
        };
        let snapshot = self.snapshot(&commit);
        let mut needed = vec![CONFIG.to_owned()];
        if part == Part::Model {
            let index = snapshot.join(INDEX);
            match fs::read(&index) {
                Ok(bytes) => needed.extend(shards(&bytes)?),
                Err(error) if error.kind() == ErrorKind::NotFound => needed.push(SINGLE.to_owned()),
                Err(error) => return Err(HubError::io(&index, &error)),
            }
        }
        let count = needed.len();
        needed.retain(|file| !snapshot.join(file).is_file());
        match needed.first() {
            None => Ok(snapshot),
            Some(first) => Err(HubError::fatal(format!(
                "the cache lacks {} of the {count} files that are needed, such as {first}, in {}",
                needed.len(),
                snapshot.display()
            ))),
        }
    }
}
