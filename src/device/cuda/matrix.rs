//! Weights in the layout of `kernels/pack.cuh`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{Buffer, Driver, locked};
pub(super) use crate::device::product_tiles::{CHUNK, TILE};
use crate::device::{DeviceError, HostRows, MatrixData, MatrixShape};

/// Bytes of the pieces of a chunk that the layout exchanges.
const PIECE: usize = 16;

/// A weight matrix \[out, in\], packed.
#[derive(Debug)]
pub struct Matrix {
    pub(super) out: usize,
    pub(super) input: usize,
    pub(super) data: Buffer<u8>,
    /// One scale per output; `None` for BF16.
    pub(super) scales: Option<Buffer<f32>>,
}

impl Matrix {
    /// Allocates a matrix of zeros.
    ///
    /// # Errors
    /// If `input` is not a multiple of 16, which products need, or memory runs out.
    pub(super) fn zeros(driver: &Driver, shape: MatrixShape) -> Result<Self, DeviceError> {
        let MatrixShape { out, input, bf16 } = shape;
        if !input.is_multiple_of(16) {
            let message = format!("expected a multiple of 16 input features, got a [{out}, {input}] matrix");
            return Err(DeviceError { op: "matrix", message });
        }
        let row_bytes = if bf16 { 2 * input } else { input };
        let data = driver.buffer(out.div_ceil(TILE) * tile_bytes(row_bytes))?;
        let scales = if bf16 { None } else { Some(driver.buffer(out)?) };
        Ok(Self { out, input, data, scales })
    }

    /// Whether elements are BF16 rather than E4M3.
    pub(super) fn bf16(&self) -> bool {
        self.scales.is_none()
    }

    /// The number of chunks of a row.
    pub(super) fn chunks(&self) -> usize {
        (self.input * if self.bf16() { 2 } else { 1 }).div_ceil(CHUNK)
    }

    /// The number of tiles of [`TILE`] outputs.
    pub(super) fn tiles(&self) -> usize {
        self.out.div_ceil(TILE)
    }
}

/// A matrix while its rows are written. Packed rows are copied to the device in whole tiles; rows of a tile
/// that is not complete wait in `partial`.
#[derive(Debug)]
pub struct MatrixBuilder {
    matrix: Matrix,
    /// Incomplete tiles by index. Each has a lock of its own, so that threads pack rows of several at once.
    partial: Mutex<BTreeMap<usize, Arc<Mutex<PartialTile>>>>,
    /// The scales of E4M3, one per output; empty for BF16.
    scales: Mutex<Vec<f32>>,
}

/// A tile of which some rows have been packed.
#[derive(Debug)]
struct PartialTile {
    packed: Vec<u8>,
    /// The number of packed rows.
    rows: usize,
}

impl MatrixBuilder {
    /// Allocates a matrix of zeros.
    ///
    /// # Errors
    /// Those of [`Matrix::zeros`].
    pub(super) fn new(driver: &Driver, shape: MatrixShape) -> Result<Self, DeviceError> {
        let matrix = Matrix::zeros(driver, shape)?;
        let scales = vec![0.0; if shape.bf16 { 0 } else { shape.out }];
        Ok(Self { matrix, partial: Mutex::default(), scales: Mutex::new(scales) })
    }

    /// Packs rows from `first` on and copies them to the device.
    ///
    /// # Errors
    /// If a copy fails.
    pub(super) fn write(&self, first: usize, rows: HostRows<'_>) -> Result<(), DeviceError> {
        rows.check();
        let matrix = &self.matrix;
        assert_eq!(rows.input, matrix.input, "elements of a row");
        assert!(first + rows.rows <= matrix.out, "{} rows from {first} on of {}", rows.rows, matrix.out);
        let (bytes, width): (&[u8], usize) = match rows.data {
            MatrixData::Bf16(values) => (bytemuck::cast_slice(values), 2),
            MatrixData::Fp8 { codes, .. } => (codes, 1),
        };
        assert_eq!(matrix.bf16(), width == 2, "the element type of rows and matrix");
        if let MatrixData::Fp8 { scales, .. } = rows.data {
            locked(&self.scales)[first..first + rows.rows].copy_from_slice(scales);
        }
        let (row_bytes, stride) = (rows.input * width, rows.stride * width);
        let row = |row: usize| &bytes[(row - first) * stride..][..row_bytes];
        let end = first + rows.rows;
        // Rows from `begin` to `rest` are whole tiles; those before and after are parts of tiles.
        let begin = first.next_multiple_of(TILE).min(end);
        let rest = if end == matrix.out { end } else { (end / TILE * TILE).max(begin) };
        let size = tile_bytes(row_bytes);
        let mut packed = vec![0; (rest - begin).div_ceil(TILE) * size];
        for (tile, start) in packed.chunks_exact_mut(size).zip((begin..rest).step_by(TILE)) {
            (start..rest.min(start + TILE)).for_each(|r| pack_row(row(r), r % TILE, TILE, tile));
        }
        if !packed.is_empty() {
            matrix.data.write(begin / TILE * size, &packed)?;
        }
        self.write_partial(first..begin, &row)?;
        self.write_partial(rest..end, &row)
    }

    /// Packs some rows of one tile, and copies the tile to the device when it is complete.
    fn write_partial<'a>(
        &self,
        rows: std::ops::Range<usize>,
        row: &impl Fn(usize) -> &'a [u8],
    ) -> Result<(), DeviceError> {
        let (tile, count) = (rows.start / TILE, rows.len());
        if count == 0 {
            return Ok(());
        }
        let size = tile_bytes(row(rows.start).len());
        let new = || Arc::new(Mutex::new(PartialTile { packed: vec![0; size], rows: 0 }));
        let entry = locked(&self.partial).entry(tile).or_insert_with(new).clone();
        let mut entry = locked(&entry);
        rows.for_each(|r| pack_row(row(r), r % TILE, TILE, &mut entry.packed));
        entry.rows += count;
        if entry.rows == TILE.min(self.matrix.out - tile * TILE) {
            self.matrix.data.write(tile * size, &entry.packed)?;
            locked(&self.partial).remove(&tile);
        }
        Ok(())
    }

    /// Copies the incomplete tiles and the scales, and returns the matrix. Rows that were not written are
    /// zeros.
    ///
    /// # Errors
    /// If a copy fails.
    pub(super) fn finish(self) -> Result<Matrix, DeviceError> {
        for (tile, entry) in locked(&self.partial).iter() {
            let packed = &locked(entry).packed;
            self.matrix.data.write(tile * packed.len(), packed)?;
        }
        if let Some(scales) = &self.matrix.scales {
            scales.write(0, &locked(&self.scales))?;
        }
        Ok(self.matrix)
    }
}

/// Bytes of a tile of rows of `row_bytes` bytes.
fn tile_bytes(row_bytes: usize) -> usize {
    row_bytes.div_ceil(CHUNK) * CHUNK * TILE
}

/// Copies row number `index` to its tile of `rows` rows.
pub(super) fn pack_row(row: &[u8], index: usize, rows: usize, tile: &mut [u8]) {
    for (chunk, part) in row.chunks(CHUNK).enumerate() {
        let to = &mut tile[(chunk * rows + index) * CHUNK..][..CHUNK];
        for (i, piece) in part.chunks(PIECE).enumerate() {
            to[(i ^ (index % 8)) * PIECE..][..piece.len()].copy_from_slice(piece);
        }
    }
}
