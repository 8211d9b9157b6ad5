//! Files that appear whole or not at all: written under another name, synced and renamed.

use std::ffi::OsString;
use std::fs::{File, rename};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file that does not have its name yet.
pub(super) struct WholeFile {
    out: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl WholeFile {
    /// Opens `PATH.partial`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(".partial");
        let temporary = PathBuf::from(name);
        let out = BufWriter::new(File::create(&temporary)?);
        Ok(Self { out, temporary, path: path.to_owned() })
    }

    /// Appends a row of JSONL.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn line(&mut self, row: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, row)?;
        self.out.write_all(b"\n")
    }

    /// Gives the file its name once it is on the disk.
    ///
    /// # Errors
    /// The file cannot be written or renamed.
    pub(super) fn finish(self) -> io::Result<()> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        rename(&self.temporary, &self.path)?;
        // The rename is durable once the folder is.
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    }
}

/// Writes a file that is replaced as a whole.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut file = WholeFile::create(path)?;
    file.out.write_all(text.as_bytes())?;
    file.finish()
}
