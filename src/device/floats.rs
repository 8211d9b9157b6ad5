//! Buffers of rows of floats on a device.

use super::{Device, DeviceError, HostMatrix, HostRows, MatrixData, MatrixShape, fp8};
use crate::machine;

/// Element type of [`Floats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// Single precision.
    F32,
    /// BF16: the upper half of an F32, rounded to nearest even.
    Bf16,
}

impl FloatType {
    /// The value of an element in which `x` was stored.
    #[inline(always)]
    pub(crate) fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => fp8::bf16_value(fp8::bf16_bits(x)),
        }
    }
}

/// \[rows, cols\] on a device, row-major: the residual stream, outputs of products, weights of norms. F32
/// unless it was allocated as BF16.
///
/// The buffer is allocated for a maximum of rows; how many are valid changes from step to step.
pub struct Floats<D: Device> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows that the buffer has memory for.
    pub(super) max_rows: usize,
    pub(super) float_type: FloatType,
    pub(super) data: D::FloatBuffer,
}

impl<D: Device> std::fmt::Debug for Floats<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, cols, max_rows, float_type, .. } = self;
        write!(f, "Floats {float_type:?} [{rows} of {max_rows}, {cols}]")
    }
}

impl<D: Device> Floats<D> {
    /// A buffer without valid rows.
    pub(super) fn empty(float_type: FloatType, max_rows: usize, cols: usize, data: D::FloatBuffer) -> Self {
        Self { rows: 0, cols, max_rows, float_type, data }
    }

    /// The element type.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// The number of valid rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of elements per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Sets the number of valid rows. Operations do this themselves; a replayed graph does not.
    ///
    /// # Panics
    /// If the buffer has no memory for that many rows.
    pub(crate) fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "{rows} rows of {} exceed the buffer's {}", self.cols, self.max_rows);
        self.rows = rows;
    }
}

/// Copies rows of `cols` elements to a new buffer of a device.
///
/// # Errors
/// If the device has no memory for them.
pub fn upload_floats<D: Device>(device: &D, cols: usize, host: &[f32]) -> Result<Floats<D>, DeviceError> {
    let mut floats = device.floats(host.len() / cols, cols)?;
    device.write(host, &mut floats)?;
    Ok(floats)
}

/// Copies a matrix to a device. All CPU cores pack it.
///
/// # Errors
/// If the device has no memory for it or does not support its shape.
///
/// # Panics
/// If `host.data` has another number of elements than the shape.
pub fn upload_matrix<D: Device>(device: &D, host: HostMatrix<'_>) -> Result<D::Matrix, DeviceError> {
    /// Rows of a part are a multiple of this, so that no two threads pack one tile.
    const TILE: usize = 128;
    let HostMatrix { out, input, data } = host;
    let (elements, bf16) = match data {
        MatrixData::Bf16(values) => (values.len(), true),
        MatrixData::Fp8 { codes, .. } => (codes.len(), false),
    };
    assert_eq!(elements, out * input, "elements of a [{out}, {input}] matrix");
    let builder = device.begin_matrix(MatrixShape { out, input, bf16 })?;
    let part_rows = out.div_ceil(machine::cores()).next_multiple_of(TILE);
    let all = HostRows { rows: out, input, stride: input, data };
    let write_part =
        |first: usize| device.write_rows(&builder, first, all.slice(first..out.min(first + part_rows)));
    std::thread::scope(|scope| {
        let write_part = &write_part;
        let parts = (part_rows..out).step_by(part_rows);
        let workers: Vec<_> = parts.map(|first| scope.spawn(move || write_part(first))).collect();
        let own = if out > 0 { write_part(0) } else { Ok(()) };
        let joined = workers.into_iter().map(|worker| worker.join().expect("packing does not panic"));
        joined.fold(own, Result::and)
    })?;
    device.finish_matrix(builder)
}

/// Shape and element type of what a rank sends to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Element type.
    pub float_type: FloatType,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}
