//! Files that a command writes when it has its results.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A file for a command's results. It is opened before the command begins, so that a path that cannot be
/// written ends the command before it has run for minutes. A file that is there keeps its contents until
/// [`OutputFile::write`]. A named pipe is waited for until it has a reader.
#[derive(Debug)]
pub(crate) struct OutputFile {
    /// The option that names the file, and its path.
    name: String,
    path: PathBuf,
    file: File,
    /// The file is new and has no results.
    is_new: bool,
}

impl OutputFile {
    /// Opens the file that an option names, if it does.
    ///
    /// # Errors
    /// The file cannot be written. The error names the option and the path.
    pub(crate) fn open(option: &str, path: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        let name = format!("{option}: {}", path.display());
        let mut options = OpenOptions::new();
        options.write(true);
        let opened = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                options.create(true).truncate(false).open(path).map(|file| (file, false))
            }
            opened => opened.map(|file| (file, true)),
        };
        let (file, is_new) = opened.with_context(|| name.clone())?;
        Ok(Some(Self { name, path: path.to_owned(), file, is_new }))
    }

    /// Replaces the contents.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(mut self, text: &str) -> anyhow::Result<()> {
        self.replace(text).with_context(|| self.name.clone())?;
        self.is_new = false;
        tracing::info!("wrote {}", self.path.display());
        Ok(())
    }

    fn replace(&mut self, text: &str) -> std::io::Result<()> {
        // Pipes and devices have no length.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(text.as_bytes())
    }
}

/// A command that fails leaves no new file. One that a signal ends may leave an empty one.
impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.is_new {
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}
