//! One weight to be written: what it is called, where it is read, and what becomes of it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Dtype;

use super::Granularity;
use super::zarr::Array;
use crate::model::LoadError;

/// One weight of the output, and its scales if it is quantised.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// As the output calls it.
    pub(super) name: String,
    /// Of the output.
    pub(super) shape: Vec<usize>,
    /// As stored in the input: BF16, F16 or F32.
    pub(super) dtype: Dtype,
    /// `None`: as stored.
    pub(super) granularity: Option<Granularity>,
    pub(super) source: Source,
    pub(super) rows: RowMap,
}

/// Where a matrix is stored; a vector is a matrix of one row.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// From a byte of a file on, row after row.
    File { path: PathBuf, offset: u64 },
    /// One layer of an array.
    Zarr { array: Arc<Array>, layer: usize },
}

/// Which rows of the source are the item's: from `first` on, `block` of every `stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowMap {
    pub(super) first: usize,
    pub(super) block: usize,
    pub(super) stride: usize,
}

impl RowMap {
    /// All of them.
    pub(super) const ALL: Self = Self { first: 0, block: usize::MAX, stride: 0 };

    /// Runs of the source's rows that make up a range of the item's.
    fn runs(self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let within = next % self.block;
            let len = (self.block - within).min(rows.end - next);
            let start = self.first + next / self.block * self.stride + within;
            next += len;
            (len > 0).then_some(start..start + len)
        })
    }
}

/// An item's source, opened.
pub(super) struct Reader<'a> {
    item: &'a Item,
    /// Where the source is one file.
    file: Option<File>,
}

impl Item {
    /// Rows and columns; a vector is one row.
    pub(super) fn matrix(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        let outer = self.shape.len().saturating_sub(1);
        (self.shape[..outer].iter().product(), cols)
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of an element of the input.
    pub(super) fn width(&self) -> usize {
        if self.dtype == Dtype::F32 { 4 } else { 2 }
    }

    /// Bytes that are read.
    pub(super) fn bytes(&self) -> u64 {
        (self.elements() * self.width()) as u64
    }

    pub(super) fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::tensor(self.source.path(), &self.name, message)
    }

    pub(super) fn open(&self) -> Result<Reader<'_>, LoadError> {
        let file = match &self.source {
            Source::File { path, .. } => Some(File::open(path).map_err(|e| LoadError::io(path, e))?),
            Source::Zarr { .. } => None,
        };
        Ok(Reader { item: self, file })
    }
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } => path,
            Self::Zarr { array, .. } => array.dir(),
        }
    }
}

impl Reader<'_> {
    /// Reads a range of the item's rows into `out`, which has their size. `scratch` is for the reader alone.
    pub(super) fn read(
        &self,
        rows: Range<usize>,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let row_bytes = self.item.matrix().1 * self.item.width();
        let mut out = out;
        for run in self.item.rows.runs(rows) {
            let (part, rest) = out.split_at_mut(run.len() * row_bytes);
            match (&self.item.source, &self.file) {
                (Source::Zarr { array, layer }, _) => array.read(*layer, run, part, scratch)?,
                (Source::File { path, offset }, Some(file)) => {
                    let at = offset + (run.start * row_bytes) as u64;
                    file.read_exact_at(part, at).map_err(|e| LoadError::io(path, e))?;
                }
                (Source::File { .. }, None) => unreachable!("`Item::open` opens files"),
            }
            out = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::RowMap;

    #[test]
    fn rows_of_groups_are_found() {
        // Keys of two groups of 3 query heads, a key and a value of 2 rows each.
        let keys = RowMap { first: 6, block: 2, stride: 10 };
        assert_eq!(keys.runs(0..4).collect::<Vec<_>>(), [6..8, 16..18]);
        assert_eq!(keys.runs(1..3).collect::<Vec<_>>(), [7..8, 16..17]);
        assert_eq!(RowMap::ALL.runs(5..9).next(), Some(5..9));
        assert_eq!(RowMap::ALL.runs(5..9).count(), 1);
        assert_eq!(keys.runs(2..2).count(), 0);
    }
}
