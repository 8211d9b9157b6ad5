//! A weight of the output: its name and shape, the place it is read from, and how it is stored.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Dtype;

use super::granularity::Granularity;
use super::row_map::RowMap;
use super::zarr::ZarrArray;
use crate::model::LoadError;

/// A weight of the output, with its scales if it is quantised.
#[derive(Debug, Clone)]
pub(super) struct OutputWeight {
    /// Name in the output.
    pub(super) name: String,
    /// Shape in the output.
    pub(super) shape: Vec<usize>,
    /// Type of the input: BF16, F16 or F32.
    pub(super) dtype: Dtype,
    /// Granularity of the scales; `None` copies the weight as it is stored.
    pub(super) granularity: Option<Granularity>,
    pub(super) source: WeightSource,
    /// Rows of the source that belong to this weight.
    pub(super) rows: RowMap,
}

/// The place where a matrix is stored; a vector is a matrix of one row.
#[derive(Debug, Clone)]
pub(super) enum WeightSource {
    /// Consecutive rows in a file, from the byte `offset` on.
    File { path: PathBuf, offset: u64 },
    /// One layer of a zarr array.
    Zarr { array: Arc<ZarrArray>, layer: usize },
}

/// Reads the rows of a weight from its opened source.
pub(super) struct WeightReader<'a> {
    weight: &'a OutputWeight,
    /// The open file of a [`WeightSource::File`].
    file: Option<File>,
}

impl OutputWeight {
    /// Returns the numbers of rows and columns; a vector is one row.
    pub(super) fn matrix(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        let outer = self.shape.len().saturating_sub(1);
        (self.shape[..outer].iter().product(), cols)
    }

    /// Returns the number of elements.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the bytes of an input element.
    pub(super) fn width(&self) -> usize {
        if self.dtype == Dtype::F32 { 4 } else { 2 }
    }

    /// Returns the bytes of the weight in the input.
    pub(super) fn bytes(&self) -> u64 {
        (self.elements() * self.width()) as u64
    }

    /// Returns an error that names the source and the weight.
    pub(super) fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::tensor(self.source.path(), &self.name, message)
    }

    /// Opens the source.
    pub(super) fn open(&self) -> Result<WeightReader<'_>, LoadError> {
        let file = match &self.source {
            WeightSource::File { path, .. } => Some(File::open(path).map_err(|e| LoadError::io(path, e))?),
            WeightSource::Zarr { .. } => None,
        };
        Ok(WeightReader { weight: self, file })
    }
}

impl WeightSource {
    fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } => path,
            Self::Zarr { array, .. } => array.dir(),
        }
    }
}

impl WeightReader<'_> {
    /// Reads a range of the weight's rows into `out`, which has exactly their size. `scratch` is a buffer to
    /// reuse.
    pub(super) fn read(
        &self,
        rows: Range<usize>,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let row_bytes = self.weight.matrix().1 * self.weight.width();
        let mut out = out;
        for run in self.weight.rows.runs(rows) {
            let (part, rest) = out.split_at_mut(run.len() * row_bytes);
            match (&self.weight.source, &self.file) {
                (WeightSource::Zarr { array, layer }, _) => array.read(*layer, run, part, scratch)?,
                (WeightSource::File { path, offset }, Some(file)) => {
                    let at = offset + (run.start * row_bytes) as u64;
                    file.read_exact_at(part, at).map_err(|e| LoadError::io(path, e))?;
                }
                (WeightSource::File { .. }, None) => unreachable!("`OutputWeight::open` opens files"),
            }
            out = rest;
        }
        Ok(())
    }
}
