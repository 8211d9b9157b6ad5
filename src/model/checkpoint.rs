//! A checkpoint: a directory of safetensors files. Every tensor is looked up by name and checked against its
//! expected shape, and no tensor may be left over.
//!
//! Opening a checkpoint reads only the headers, so errors that the headers show are reported before any
//! weight is read. Files are read at positions and not mapped: if a file is truncated meanwhile, the result
//! is an error, not a SIGBUS.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata};

use super::direct_file::{DirectFile, ReadBuffer, SMALL_FILE, is_eof};
use super::error::LoadError;
use super::json::Object;
use crate::device::cpu::zeros;

/// Limit on the header's length in bytes, equal to the safetensors library's.
const MAX_HEADER: u64 = 100_000_000;

/// The location of one tensor in its file. Its elements are row-major and little-endian.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    file: Arc<DirectFile>,
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Byte offset in the file.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Tensor {
    pub(super) fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::tensor(self.path(), &self.name, message)
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Reads bytes of the tensor from offset `from` on, through the page cache.
    pub(super) fn read(&self, from: u64, to: &mut [u8]) -> Result<(), LoadError> {
        self.check(from, to.len());
        self.file
            .read_exact_at(to, self.start + from)
            .map_err(|e| self.read_error(from + to.len() as u64, &e))
    }

    /// Reads a large part of the tensor that is needed once, bypassing the page cache if possible.
    pub(super) fn read_once(
        &self,
        from: u64,
        bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> Result<(), LoadError> {
        self.check(from, bytes);
        self.file
            .read_once(self.start + from, bytes, buffer)
            .map_err(|e| self.read_error(from + bytes as u64, &e))
    }

    fn check(&self, from: u64, bytes: usize) {
        assert!(from + bytes as u64 <= self.bytes, "{bytes} bytes from {from} on of {}", self.bytes);
    }

    fn read_error(&self, end: u64, error: &std::io::Error) -> LoadError {
        if is_eof(error) {
            let end = self.start + end;
            return self
                .error(format!("the file ends before byte {end}: was it truncated while being read?"));
        }
        self.error(format!("cannot be read: {error}"))
    }

    /// Asks the system to start reading, without waiting.
    pub(super) fn prefetch(&self, from: u64, bytes: u64) {
        self.file.prefetch(self.start + from, bytes);
    }
}

/// The location of one tensor, for conversions on disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Byte offset in the file.
    pub(crate) offset: u64,
}

/// A tensor of the checkpoint, and whether the model has asked for it.
struct CheckpointEntry {
    tensor: Tensor,
    taken: bool,
}

/// All tensors of a model directory.
pub(crate) struct Checkpoint {
    dir: PathBuf,
    entries: BTreeMap<String, CheckpointEntry>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A file is missing, truncated or malformed, a tensor is in two files, or the index names the wrong file
    /// for a tensor.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let mut checkpoint = Self { dir: dir.to_owned(), entries: BTreeMap::new() };
        let index = dir.join("model.safetensors.index.json");
        if !index.exists() {
            checkpoint.add(dir.join("model.safetensors"))?;
            return Ok(checkpoint);
        }
        let weight_map = weight_map(&index)?;
        let mut files = BTreeMap::new();
        for (tensor, file) in &weight_map {
            files.entry(file).or_insert(tensor);
        }
        for (file, tensor) in files {
            let path = dir.join(file);
            if !path.exists() {
                let message = format!("no such file, but {} says that it holds the tensor", index.display());
                return Err(LoadError::tensor(&path, tensor, message));
            }
            checkpoint.add(path)?;
        }
        for (tensor, file) in &weight_map {
            let path = dir.join(file);
            let message = match checkpoint.entries.get(tensor).map(|entry| entry.tensor.path()) {
                Some(found) if found == path => continue,
                Some(found) => {
                    format!(
                        "{} says that this file holds the tensor, but it is in {}",
                        index.display(),
                        found.display()
                    )
                }
                None => format!("not in this file, although {} says so", index.display()),
            };
            return Err(LoadError::tensor(&path, tensor, message));
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let file = DirectFile::open(path.clone(), SMALL_FILE).map_err(|e| LoadError::io(&path, e))?;
        let bytes = file.len().map_err(|e| LoadError::io(&path, e))?;
        let (metadata, data) = header(&file, bytes)?;
        let file = Arc::new(file);
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0 as u64, data + info.data_offsets.1 as u64);
            let tensor = Tensor {
                file: Arc::clone(&file),
                name: name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start,
                bytes: end - start,
            };
            if end > bytes {
                return Err(tensor.error(format!("ends at byte {end}, but the file has {bytes}: truncated?")));
            }
            if let Some(other) = self.entries.get(&name) {
                return Err(tensor.error(format!("also in {}", other.tensor.path().display())));
            }
            self.entries.insert(name, CheckpointEntry { tensor, taken: false });
        }
        let end = data + metadata.data_len() as u64;
        if end != bytes {
            let message = format!("expected {end} bytes according to the header, got {bytes}");
            return Err(LoadError::file(&file.path, message));
        }
        Ok(())
    }

    /// The locations of all tensors, in the order of files and offsets.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        let mut tensors: Vec<&Tensor> = self.entries.values().map(|entry| &entry.tensor).collect();
        tensors.sort_by_key(|tensor| (tensor.path(), tensor.start));
        let stored = |tensor: &Tensor| Stored {
            name: tensor.name.clone(),
            path: tensor.path().to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            offset: tensor.start,
        };
        tensors.into_iter().map(stored).collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The type of a tensor, if there is one of this name.
    pub(super) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|entry| entry.tensor.dtype)
    }

    /// Takes a tensor of any shape.
    ///
    /// # Errors
    /// The tensor is missing.
    pub(super) fn take(&mut self, name: &str) -> Result<Tensor, LoadError> {
        let Some(entry) = self.entries.get_mut(name) else {
            return Err(LoadError::tensor(&self.dir, name, "missing from the checkpoint"));
        };
        entry.taken = true;
        Ok(entry.tensor.clone())
    }

    /// Takes a tensor of a given shape.
    ///
    /// # Errors
    /// The tensor is missing, or has another shape.
    pub(super) fn take_shaped(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let tensor = self.take(name)?;
        if tensor.shape != shape {
            return Err(tensor.error(format!("expected shape {shape:?}, got {:?}", tensor.shape)));
        }
        Ok(tensor)
    }

    /// Marks a tensor as known although nothing needs it. It may be missing.
    pub(super) fn skip(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.taken = true;
        }
    }

    /// Checks that every tensor has been taken. A tensor that no part of the model asked for means that the
    /// checkpoint is of another model.
    pub(super) fn finish(&self) -> Result<(), LoadError> {
        // Old exports store the rotary frequencies, which the configuration determines.
        let unused =
            self.entries.values().find(|e| !e.taken && !e.tensor.name.ends_with("rotary_emb.inv_freq"));
        match unused {
            None => Ok(()),
            Some(CheckpointEntry { tensor, .. }) => {
                Err(tensor.error(format!("not part of this model, shape {:?}", tensor.shape)))
            }
        }
    }
}

/// Reads the index: the file name of each tensor. A name with a directory in it is an error.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    let object = Object::read(index)?;
    let map = object.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| object.error("weight_map", "expected an object of file names"))?;
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let name = file.as_str().unwrap_or_default();
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain {
            return Err(object.error("weight_map", format!("`{tensor}`: expected a file name, got {file}")));
        }
        files.insert(tensor.clone(), name.to_owned());
    }
    Ok(files)
}

/// Reads a file's header. Returns the metadata and the offset of the data. The safetensors format starts with
/// 8 bytes of header length and a JSON header of that length.
fn header(file: &DirectFile, bytes: u64) -> Result<(Metadata, u64), LoadError> {
    let path = &file.path;
    let read = |to: &mut [u8], at| file.read_exact_at(to, at).map_err(|e| LoadError::io(path, e));
    let truncated = |least: u64| {
        LoadError::file(path, format!("expected a header of at least {least} bytes, got {bytes}: truncated?"))
    };
    if bytes < 8 {
        return Err(truncated(8));
    }
    let mut length = [0; 8];
    read(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        let message =
            format!("not a safetensors file: expected a header of at most {MAX_HEADER} bytes, got {length}");
        return Err(LoadError::file(path, message));
    }
    if bytes < 8 + length {
        return Err(truncated(8 + length));
    }
    let mut text =
        zeros(length as usize).map_err(|e| LoadError::file(path, format!("header: {}", e.message)))?;
    read(&mut text, 8)?;
    let metadata = serde_json::from_slice(&text);
    let metadata = metadata.map_err(|e| LoadError::file(path, format!("not a safetensors file: {e}")))?;
    Ok((metadata, 8 + length))
}
