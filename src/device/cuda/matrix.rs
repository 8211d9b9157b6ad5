//! Weights as `kernels/pack.cuh` lays them out.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Buffer, Driver};
use crate::device::{DeviceError, HostMatrix, HostRows, MatrixData};

/// Outputs are padded with zeros to whole tiles of this many, what a block of `gemm_stream` does at a time.
pub(super) const TILE: usize = 128;

/// Outputs of a tile as `kernels/pack.cuh` has it.
const ROWS: usize = 16;

/// A weight matrix \[out, in\], packed.
#[derive(Debug)]
pub struct Matrix {
    pub(super) out: usize,
    pub(super) input: usize,
    pub(super) data: Buffer<u8>,
    /// One per output, of E4M3.
    pub(super) scales: Option<Buffer<f32>>,
}

impl Matrix {
    /// A matrix of zeros, to be written.
    ///
    /// # Errors
    /// If the inputs are no multiple of 16, which products need, or memory runs out.
    pub(super) fn zeros(
        driver: &Driver,
        (out, input): (usize, usize),
        bf16: bool,
    ) -> Result<Self, DeviceError> {
        if !input.is_multiple_of(16) {
            let message = format!("expected a multiple of 16 input features, got a [{out}, {input}] matrix");
            return Err(DeviceError { op: "matrix", message });
        }
        let row_bytes = if bf16 { 2 * input } else { input };
        let data = driver.buffer(packed_bytes(out, row_bytes))?;
        let scales = if bf16 { None } else { Some(driver.buffer(out)?) };
        Ok(Self { out, input, data, scales })
    }

    /// Packs a matrix and copies it to the device; each thread packs some tiles.
    ///
    /// # Errors
    /// As of `zeros`.
    pub(super) fn pack(driver: &Driver, host: HostMatrix<'_>) -> Result<Self, DeviceError> {
        let (out, input) = (host.out, host.input);
        let filling = Filling::new(driver, (out, input), matches!(host.data, MatrixData::Bf16(_)))?;
        let threads = crate::machine::cores();
        let each = out.div_ceil(threads).next_multiple_of(ROWS);
        std::thread::scope(|scope| {
            let part = |first: usize| {
                let rows = each.min(out - first);
                let range = first * input..(first + rows) * input;
                let data = match host.data {
                    MatrixData::Bf16(values) => MatrixData::Bf16(&values[range]),
                    MatrixData::Fp8 { codes, scales } => {
                        MatrixData::Fp8 { codes: &codes[range], scales: &scales[first..first + rows] }
                    }
                };
                let filling = &filling;
                scope.spawn(move || filling.put(first, HostRows { rows, input, stride: input, data }))
            };
            let workers: Vec<_> = (0..out).step_by(each.max(1)).map(part).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("packing does not panic"))
        })?;
        filling.done()
    }

    /// Whether elements are BF16, rather than E4M3.
    pub(super) fn bf16(&self) -> bool {
        self.scales.is_none()
    }

    /// Blocks of 32 bytes' worth of inputs.
    pub(super) fn k_blocks(&self) -> usize {
        (self.input * if self.bf16() { 2 } else { 1 }).div_ceil(32)
    }

    /// Tiles of [`TILE`] outputs.
    pub(super) fn tiles(&self) -> usize {
        self.out.div_ceil(TILE)
    }
}

/// A matrix of which some rows may be there. What is packed is written a tile of 16 rows at a time, so that of pieces
/// that do not end with a tile the last rows wait for the next.
#[derive(Debug)]
pub struct Filling {
    matrix: Matrix,
    /// By tile: packed rows, and how many.
    partial: Mutex<BTreeMap<usize, (Vec<u8>, usize)>>,
}

impl Filling {
    /// Zeros.
    ///
    /// # Errors
    /// As of `Matrix::zeros`.
    pub(super) fn new(driver: &Driver, shape: (usize, usize), bf16: bool) -> Result<Self, DeviceError> {
        Ok(Self { matrix: Matrix::zeros(driver, shape, bf16)?, partial: Mutex::default() })
    }

    /// Packs rows from `first` on and copies them to the device.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn put(&self, first: usize, rows: HostRows<'_>) -> Result<(), DeviceError> {
        rows.check();
        let matrix = &self.matrix;
        assert_eq!(rows.input, matrix.input, "elements of a row");
        assert!(first + rows.rows <= matrix.out, "{} rows from {first} on of {}", rows.rows, matrix.out);
        let (bytes, width): (&[u8], usize) = match rows.data {
            MatrixData::Bf16(values) => (bytemuck::cast_slice(values), 2),
            MatrixData::Fp8 { codes, .. } => (codes, 1),
        };
        assert_eq!(matrix.bf16(), width == 2, "rows of another type than their matrix");
        if let (MatrixData::Fp8 { scales, .. }, Some(buffer)) = (rows.data, &matrix.scales) {
            buffer.write(first, scales)?;
        }
        let (row_bytes, stride) = (rows.input * width, rows.stride * width);
        let row = |row: usize| &bytes[(row - first) * stride..][..row_bytes];
        let end = first + rows.rows;
        // Whole tiles from `begin` to `rest`, and some rows before and after.
        let begin = first.next_multiple_of(ROWS).min(end);
        let rest = if end == matrix.out { end } else { (end / ROWS * ROWS).max(begin) };
        let size = tile_bytes(row_bytes);
        let mut packed = vec![0; (rest - begin).div_ceil(ROWS) * size];
        for (tile, start) in packed.chunks_exact_mut(size).zip((begin..rest).step_by(ROWS)) {
            (start..rest.min(start + ROWS)).for_each(|r| pack_row(row(r), r % ROWS, tile));
        }
        matrix.data.write(begin / ROWS * size, &packed)?;
        self.put_partial(first..begin, &row)?;
        self.put_partial(rest..end, &row)
    }

    /// Rows of one tile that are not all of it.
    fn put_partial<'a>(
        &self,
        rows: std::ops::Range<usize>,
        row: &impl Fn(usize) -> &'a [u8],
    ) -> Result<(), DeviceError> {
        let (tile, count) = (rows.start / ROWS, rows.len());
        if count == 0 {
            return Ok(());
        }
        let size = tile_bytes(row(rows.start).len());
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let (packed, there) = partial.entry(tile).or_insert_with(|| (vec![0; size], 0));
        rows.for_each(|r| pack_row(row(r), r % ROWS, packed));
        *there += count;
        if *there == ROWS.min(self.matrix.out - tile * ROWS) {
            self.matrix.data.write(tile * size, packed)?;
            partial.remove(&tile);
        }
        Ok(())
    }

    /// The matrix.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn done(self) -> Result<Matrix, DeviceError> {
        // Rows that never came are zeros.
        let partial = self.partial.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (tile, (packed, _)) in partial {
            self.matrix.data.write(tile * packed.len(), &packed)?;
        }
        Ok(self.matrix)
    }
}

/// Bytes of so many rows of `row_bytes`, packed.
fn packed_bytes(out: usize, row_bytes: usize) -> usize {
    out.next_multiple_of(TILE) / 16 * tile_bytes(row_bytes)
}

/// Bytes of 16 packed rows.
fn tile_bytes(row_bytes: usize) -> usize {
    row_bytes.div_ceil(32) * 512
}

/// A row, in pieces of 8 bytes, each to its place in the tile.
fn pack_row(row: &[u8], index: usize, tile: &mut [u8]) {
    let start = index % 8 * 64 + index / 8 * 8;
    for (block, part) in row.chunks(32).enumerate() {
        for (t, piece) in part.chunks(8).enumerate() {
            let at = start + block * 512 + t * 16;
            tile[at..at + piece.len()].copy_from_slice(piece);
        }
    }
}
