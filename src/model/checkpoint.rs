//! A directory of safetensors files, mapped into memory: every tensor by name, checked against what is expected of it,
//! and none left over.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::{Dtype, SafeTensors};

use super::error::LoadError;
use super::json::Object;

/// One mapped file.
struct Shard {
    path: PathBuf,
    map: Mmap,
}

/// Where a tensor is.
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
    taken: bool,
}

/// Where a tensor is stored, for those who read files rather than map them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// The file's byte at which it begins.
    pub(crate) offset: u64,
}

/// All tensors of a model directory.
pub(crate) struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

/// One tensor's bytes, row-major and little-endian.
#[derive(Clone, Copy)]
pub(super) struct Tensor<'a> {
    pub(super) path: &'a Path,
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl Tensor<'_> {
    pub(super) fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::tensor(self.path, self.name, message)
    }
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let index = dir.join("model.safetensors.index.json");
        let files =
            if index.exists() { shard_files(dir, &index)? } else { vec![dir.join("model.safetensors")] };
        let mut checkpoint = Self { dir: dir.to_owned(), shards: Vec::new(), entries: BTreeMap::new() };
        for path in files {
            checkpoint.add(path)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let file = File::open(&path).map_err(|e| LoadError::io(&path, e))?;
        let map = map_file(&file).map_err(|e| LoadError::io(&path, e))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| header_error(&path, &map, &e))?;
        let data = header + 8;
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data + info.data_offsets.0,
                end: data + info.data_offsets.1,
                taken: false,
            };
            if entry.end > map.len() {
                let message =
                    format!("ends at byte {}, but the file has {}: truncated?", entry.end, map.len());
                return Err(LoadError::tensor(&path, &name, message));
            }
            if let Some(other) = self.entries.insert(name.clone(), entry) {
                let message = format!("also in {}", self.shards[other.shard].path.display());
                return Err(LoadError::tensor(&path, &name, message));
            }
        }
        self.shards.push(Shard { path, map });
        Ok(())
    }

    /// Where all tensors are, in the files' order.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| (entry.shard, entry.start));
        let stored = |(name, entry): (&String, &Entry)| Stored {
            name: name.clone(),
            path: self.shards[entry.shard].path.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            offset: entry.start as u64,
        };
        entries.into_iter().map(stored).collect()
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| (entry.end - entry.start) as u64).sum()
    }

    /// The directory, for errors about what is not in it.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of a tensor; 0 if there is none of the name.
    pub(super) fn size(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| (entry.end - entry.start) as u64)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A tensor that must be there, whatever its shape.
    pub(super) fn take<'a>(&'a mut self, name: &'a str) -> Result<Tensor<'a>, LoadError> {
        let Some(entry) = self.entries.get_mut(name) else {
            return Err(LoadError::tensor(&self.dir, name, "missing from the checkpoint"));
        };
        entry.taken = true;
        let shard = &self.shards[entry.shard];
        Ok(Tensor {
            path: &shard.path,
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &shard.map[entry.start..entry.end],
        })
    }

    /// A tensor that must be there with this shape.
    pub(super) fn take_shaped<'a>(
        &'a mut self,
        name: &'a str,
        shape: &[usize],
    ) -> Result<Tensor<'a>, LoadError> {
        let tensor = self.take(name)?;
        if tensor.shape != shape {
            return Err(tensor.error(format!("expected shape {shape:?}, got {:?}", tensor.shape)));
        }
        Ok(tensor)
    }

    /// Lets the system drop the tensor's pages: it has been copied, and a model need not be in memory twice.
    pub(super) fn release(&self, name: &str) {
        const PAGE: usize = 4096;
        let Some(entry) = self.entries.get(name) else { return };
        let (start, end) = (entry.start.next_multiple_of(PAGE), entry.end / PAGE * PAGE);
        if start < end {
            release_pages(&self.shards[entry.shard].map, start, end - start);
        }
    }

    /// Marks a tensor as known although nothing needs it.
    pub(super) fn skip(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.taken = true;
        }
    }

    /// Fails if a tensor was never taken: a checkpoint with more in it than the model is not this model.
    pub(super) fn finish(&self) -> Result<(), LoadError> {
        // Old exports carry the rotary frequencies, which follow from the configuration.
        let unused = self.entries.iter().find(|(name, e)| !e.taken && !name.ends_with("rotary_emb.inv_freq"));
        match unused {
            None => Ok(()),
            Some((name, entry)) => {
                let path = &self.shards[entry.shard].path;
                Err(LoadError::tensor(path, name, format!("not part of this model, shape {:?}", entry.shape)))
            }
        }
    }
}

/// The files of an index, each once, none outside the directory.
fn shard_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let object = Object::read(index)?;
    let map = object.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| object.error("weight_map", "expected an object of file names"))?;
    let mut files = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().unwrap_or_default();
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain {
            return Err(object.error("weight_map", format!("`{tensor}`: expected a file name, got {file}")));
        }
        files.insert(dir.join(name));
    }
    Ok(files.into_iter().collect())
}

fn header_error(path: &Path, map: &[u8], error: &safetensors::SafeTensorError) -> LoadError {
    use safetensors::SafeTensorError as E;
    let message = match error {
        E::MetadataIncompleteBuffer | E::InvalidHeaderLength | E::HeaderTooSmall => {
            format!(
                "the header and its tensors do not fit the file's {} bytes ({error}): truncated?",
                map.len()
            )
        }
        other => format!("not a safetensors file: {other}"),
    };
    LoadError::file(path, message)
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read. A file that is changed while it is mapped would change under us, as it would for
    // any program that maps its model; operators are told not to write to a model directory in use.
    unsafe { Mmap::map(file) }
}

#[allow(unsafe_code)]
fn release_pages(map: &Mmap, start: usize, len: usize) {
    // SAFETY: the mapping is of a file and read-only, so that dropped pages come back from the file when read again.
    // A failure only means that they stay in memory.
    let _kept = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
}
