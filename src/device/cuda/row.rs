//! Rows that a product reads, as `kernels/row.cuh` writes them.

use super::{Buffer, Driver};
use crate::device::{ActQuant, DeviceError};

/// Threads of a block that does one row: a pair of elements each, as far as that goes. They decide the order of sums,
/// and so depend on the columns alone.
pub(super) fn threads(cols: usize) -> u32 {
    (cols as u32 / 2).next_multiple_of(32).clamp(32, 512)
}

/// Columns of a row that fits the shared memory of a block.
const MOST_COLS: usize = 56_000;

/// Inputs of products \[rows, cols\]: BF16, or E4M3 with a scale per row.
#[derive(Debug)]
pub struct Acts {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Room for two bytes an element.
    pub(super) values: Buffer<u8>,
    pub(super) scales: Buffer<f32>,
    /// What the values are, since the last operation that wrote them.
    pub(super) bf16: bool,
}

/// Where a kernel's quantised rows go.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Quantised {
    values: u64,
    scales: u64,
    kind: u32,
    static_scale: f32,
}
const _: () = assert!(size_of::<Quantised>() == 24);

impl Quantised {
    /// The same form in another place.
    pub(super) fn at(self, values: u64, scales: u64) -> Self {
        Self { values, scales, ..self }
    }
}

impl Acts {
    pub(super) fn new(driver: &Driver, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let (values, scales) = (driver.buffer(rows * cols * 2)?, driver.buffer(rows)?);
        Ok(Self { rows: 0, cols, values, scales, bf16: false })
    }

    /// Sets the row count and what is about to be written.
    pub(super) fn target(&mut self, rows: usize, quant: ActQuant) -> Quantised {
        assert!(rows <= self.scales.len(), "{rows} rows of {} do not fit the buffer", self.cols);
        assert!(self.cols.is_multiple_of(2) && self.cols <= MOST_COLS, "rows of {} elements", self.cols);
        self.rows = rows;
        self.bf16 = quant == ActQuant::Bf16;
        let (kind, static_scale) = match quant {
            ActQuant::Bf16 => (0, 1.0),
            ActQuant::Fp8PerToken => (1, 1.0),
            ActQuant::Fp8Static(scale) => (2, scale),
        };
        Quantised { values: self.values.address(), scales: self.scales.address(), kind, static_scale }
    }
}
