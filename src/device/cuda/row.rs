//! Inputs of products, in the form that `kernels/row.cuh` writes.

use super::matrix::CHUNK;
use super::{Buffer, Driver};
use crate::device::{ActQuant, DeviceError};

/// Threads of a block that computes one row: one per eight elements, within 32 to 512. The number decides the
/// order of sums, so it depends on the columns only.
pub(super) fn threads(cols: usize) -> u32 {
    (cols as u32 / 8).next_multiple_of(32).clamp(32, 512)
}

/// Rows are padded to a multiple of this, with any contents.
pub(super) const ROWS: usize = 8;
/// Elements of a row are padded with zeros to a multiple of this.
pub(super) const COLS: usize = 128;

/// Columns of the longest row that fits a block's shared memory.
pub(super) const MAX_COLS: usize = 56_000;

/// Inputs of products \[rows, cols\]: BF16, or E4M3 with a scale per row, in the layout of
/// `kernels/pack.cuh`.
#[derive(Debug)]
pub struct Acts {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Two bytes per element are allocated; E4M3 uses one.
    pub(super) values: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
    /// Whether the last operation wrote BF16, rather than E4M3.
    pub(super) bf16: bool,
}

/// Address and type of a kernel's quantised output: `Quantised` of `kernels/row.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Quantised {
    values: u64,
    scales: u64,
    kind: u32,
    static_scale: f32,
    rows: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Quantised>() == 32);

impl Quantised {
    /// Returns the same storage format with its values and scales at other addresses.
    pub(super) fn at(self, values: u64, scales: u64) -> Self {
        Self { values, scales, ..self }
    }
}

impl Acts {
    pub(super) fn new(driver: &Driver, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let bytes = rows.next_multiple_of(ROWS) * cols.next_multiple_of(COLS) * 2;
        let (values, scales) = (driver.buffer(bytes)?, driver.buffer(rows)?);
        Ok(Self { rows: 0, cols, values, scales, bf16: false })
    }

    /// Sets the number of rows and their type, for a kernel that is about to write them.
    pub(super) fn target(&mut self, rows: usize, quant: ActQuant) -> Quantised {
        assert!(rows <= self.scales.len(), "{rows} rows of {} do not fit the buffer", self.cols);
        assert!(self.cols.is_multiple_of(8) && self.cols <= MAX_COLS, "rows of {} elements", self.cols);
        self.rows = rows;
        self.bf16 = quant == ActQuant::Bf16;
        let (kind, static_scale) = match quant {
            ActQuant::Bf16 => (0, 1.0),
            ActQuant::Fp8PerToken => (1, 1.0),
            ActQuant::Fp8Static(scale) => (2, scale),
        };
        Quantised {
            values: self.values.address(),
            scales: self.scales.address(),
            kind,
            static_scale,
            rows: self.chunk_rows() as u32,
            unused: 0,
        }
    }

    /// Memory for the maxima of `rows` rows of a product, one F32 per 64 elements: the upper half of
    /// `values`, which E4M3 does not use.
    pub(super) fn maxima(&self, rows: usize) -> u64 {
        assert!(rows <= self.scales.len(), "{rows} rows of {} do not fit the buffer", self.cols);
        self.values.at(self.values.len() / 2)
    }

    /// The number of valid rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of a chunk in memory.
    pub(super) fn chunk_rows(&self) -> usize {
        self.rows.next_multiple_of(ROWS)
    }

    /// The number of chunks of a row.
    pub(super) fn chunks(&self) -> usize {
        self.cols.next_multiple_of(COLS) * if self.bf16 { 2 } else { 1 } / CHUNK
    }
}
