//! Reads the arrays of Megatron's distributed checkpoints: zarr format 2, uncompressed.
//!
//! An array is a directory with the JSON file `.zarray` and one file for each chunk of a regular grid, named
//! by its grid indices, as in `layer.row.col`. A chunk has its full size even if it extends beyond the array.
//! In zarr a missing chunk means the fill value; in a checkpoint it is an error.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::identity::{InputState, hex};
use crate::model::{LoadError, Object};

/// An array of one to three axes whose chunks all exist.
#[derive(Debug)]
pub(super) struct ZarrArray {
    dir: PathBuf,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Shape of a chunk.
    chunks: Vec<usize>,
    /// Separator of the indices in the name of a chunk file.
    separator: &'static str,
    /// Whether the first axis is the layer.
    stacked: bool,
    state: InputState,
}

/// Sizes or indices by layer, row and column.
type Axes = [usize; 3];

impl ZarrArray {
    /// Opens an array of the directory `root`; its first axis is the layer if it is `stacked`.
    ///
    /// # Errors
    /// If the array is missing, its format is not supported, or a chunk is missing or truncated.
    pub(super) fn open(root: &Path, name: &str, stacked: bool) -> Result<Self, LoadError> {
        let dir = root.join(name);
        let meta = Object::read_if_exists(&dir.join(".zarray"))?
            .ok_or_else(|| LoadError::tensor(root, name, "missing from the checkpoint"))?;
        let counts = |key: &str| counts(&meta, key);
        let (shape, chunks) = (counts("shape")?, counts("chunks")?);
        if chunks.len() != shape.len() {
            let message = format!("expected {} sizes like `shape`, got {chunks:?}", shape.len());
            return Err(meta.error("chunks", message));
        }
        if shape.is_empty() || shape.len() > 2 + usize::from(stacked) {
            return Err(meta.error("shape", format!("expected a vector or a matrix, got {shape:?}")));
        }
        let size =
            |sizes: &[usize]| sizes.iter().try_fold(4usize, |product, size| product.checked_mul(*size));
        if size(&shape).is_none() || size(&chunks).is_none() {
            return Err(meta.error(
                "shape",
                format!("expected a size below 2^64 bytes, got {shape:?} in chunks of {chunks:?}"),
            ));
        }
        require(&meta, "zarr_format", &json!(2))?;
        require(&meta, "order", &json!("C"))?;
        for key in ["compressor", "filters"] {
            if let Some(value) = meta.get(key) {
                let value = value.get("id").unwrap_or(value);
                return Err(meta.error(key, format!("expected null, got {value}")));
            }
        }
        let separator = match meta.text("dimension_separator")? {
            None | Some(".") => ".",
            Some("/") => "/",
            Some(other) => {
                return Err(meta.error("dimension_separator", format!("expected `.` or `/`, got `{other}`")));
            }
        };
        let dtype = dtype(&meta)?;
        let name = name.to_owned();
        let mut array =
            Self { dir, name, dtype, shape, chunks, separator, stacked, state: InputState::default() };
        array.state = array.check_chunks()?;
        Ok(array)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the state that the chunk files had when the array was opened.
    pub(super) fn state(&self) -> &InputState {
        &self.state
    }

    /// Fails unless the array has this shape.
    pub(super) fn expect(&self, shape: &[usize]) -> Result<(), LoadError> {
        if self.shape == shape {
            return Ok(());
        }
        Err(self.error(format!("expected shape {shape:?}, got {:?}", self.shape)))
    }

    /// Reads whole rows of a layer into `out`, which is as large as the rows. `scratch` is a buffer to reuse.
    pub(super) fn read(
        &self,
        layer: usize,
        rows: Range<usize>,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let [_, _, cols] = self.axes(&self.shape);
        let chunk = self.axes(&self.chunks);
        let width = if self.dtype == Dtype::F32 { 4 } else { 2 };
        let (mut row, mut out) = (rows.start, out);
        while row < rows.end {
            let end = rows.end.min((row / chunk[1] + 1) * chunk[1]);
            let (part, rest) = out.split_at_mut((end - row) * cols * width);
            for col in (0..cols).step_by(chunk[2]) {
                let index = [layer / chunk[0], row / chunk[1], col / chunk[2]];
                let at = ((layer % chunk[0] * chunk[1] + row % chunk[1]) * chunk[2] * width) as u64;
                let len = (end - row) * chunk[2] * width;
                if chunk[2] == cols {
                    self.read_chunk(index, at, part)?;
                    continue;
                }
                scratch.resize(len, 0);
                self.read_chunk(index, at, scratch)?;
                let own = chunk[2].min(cols - col) * width;
                for (to, from) in
                    part.chunks_exact_mut(cols * width).zip(scratch.chunks_exact(chunk[2] * width))
                {
                    to[col * width..col * width + own].copy_from_slice(&from[..own]);
                }
            }
            (row, out) = (end, rest);
        }
        Ok(())
    }

    /// Fills `out` with the bytes of a chunk that begin at the offset `at`.
    fn read_chunk(&self, index: Axes, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        let path = self.chunk_path(index);
        let file = File::open(&path).map_err(|e| LoadError::io(&path, e))?;
        file.read_exact_at(out, at).map_err(|e| LoadError::io(&path, e))
    }

    /// Returns sizes by layer, row and column; 1 for an axis that the array lacks.
    fn axes(&self, sizes: &[usize]) -> Axes {
        match (sizes, self.stacked) {
            ([cols], _) => [1, 1, *cols],
            ([layers, cols], true) => [*layers, 1, *cols],
            ([rows, cols], false) => [1, *rows, *cols],
            (sizes, _) => [sizes[0], sizes[1], sizes[2]],
        }
    }

    /// Returns the file of the chunk at a grid index.
    fn chunk_path(&self, [layer, row, col]: Axes) -> PathBuf {
        let indices = match (self.shape.len(), self.stacked) {
            (1, _) => vec![col],
            (2, true) => vec![layer, col],
            (2, false) => vec![row, col],
            _ => vec![layer, row, col],
        };
        let indices: Vec<String> = indices.iter().map(usize::to_string).collect();
        self.dir.join(indices.join(self.separator))
    }

    /// Checks that every chunk's file exists and has its full size. Returns the state of all these files.
    fn check_chunks(&self) -> Result<InputState, LoadError> {
        let width = if self.dtype == Dtype::F32 { 4 } else { 2 };
        let expected = (self.chunks.iter().product::<usize>() * width) as u64;
        let (shape, chunk) = (self.axes(&self.shape), self.axes(&self.chunks));
        let counts = [0, 1, 2].map(|axis| shape[axis].div_ceil(chunk[axis]));
        let layout = format!("{:?} {:?} {:?}", self.dtype, self.shape, self.chunks);
        let mut state = InputState { layout: hex(&Sha256::digest(layout)), ..InputState::default() };
        for number in 0..counts.iter().product::<usize>() {
            let index = [number / counts[2] / counts[1], number / counts[2] % counts[1], number % counts[2]];
            let path = self.chunk_path(index);
            let meta = match std::fs::metadata(&path) {
                Ok(meta) => meta,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let file = path.strip_prefix(&self.dir).unwrap_or(&path).display();
                    return Err(self.error(format!("chunk `{file}` is missing")));
                }
                Err(e) => return Err(LoadError::io(&path, e)),
            };
            if meta.len() != expected {
                let file = path.strip_prefix(&self.dir).unwrap_or(&path).display();
                let message =
                    format!("chunk `{file}`: expected {expected} bytes, got {}: truncated?", meta.len());
                return Err(self.error(message));
            }
            state.add(meta.modified().map_err(|e| LoadError::io(&path, e))?);
        }
        Ok(state)
    }

    fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::tensor(&self.dir, &self.name, message)
    }
}

/// Returns a list of positive integers from `.zarray`.
fn counts(meta: &Object, key: &str) -> Result<Vec<usize>, LoadError> {
    let value = meta.get(key).ok_or_else(|| meta.error(key, "missing"))?;
    let count = |n: &Value| n.as_u64().filter(|n| (1..=1 << 40).contains(n)).map(|n| n as usize);
    let counts = value.as_array().and_then(|sizes| sizes.iter().map(count).collect::<Option<Vec<_>>>());
    counts.ok_or_else(|| meta.error(key, format!("expected a list of positive integers, got {value}")))
}

/// Fails unless a key of `.zarray` has the expected value.
fn require(meta: &Object, key: &str, expected: &Value) -> Result<(), LoadError> {
    match meta.get(key) {
        Some(value) if value == expected => Ok(()),
        Some(value) => Err(meta.error(key, format!("expected {expected}, got {value}"))),
        None => Err(meta.error(key, "missing")),
    }
}

/// Returns the element type. Megatron writes `bfloat16`, which is not a type of zarr; a library without that
/// type writes two untyped bytes (`V2`).
fn dtype(meta: &Object) -> Result<Dtype, LoadError> {
    match meta.text("dtype")? {
        Some("bfloat16" | "<V2" | "|V2") => Ok(Dtype::BF16),
        Some("<f2") => Ok(Dtype::F16),
        Some("<f4") => Ok(Dtype::F32),
        other => {
            let message = format!("expected `bfloat16`, `<f2` or `<f4`, got {other:?}");
            Err(meta.error("dtype", message))
        }
    }
}
