//! Weights as `kernels/pack.cuh` lays them out.

use super::{Buffer, Driver};
use crate::device::{DeviceError, HostMatrix, MatrixData};

/// Outputs are padded with zeros to whole tiles of this many, what a block of `gemm_stream` does at a time.
pub(super) const TILE: usize = 128;

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

    /// Packs a matrix and copies it to the device.
    ///
    /// # Errors
    /// As of `zeros`.
    pub(super) fn pack(driver: &Driver, host: HostMatrix<'_>) -> Result<Self, DeviceError> {
        let (out, input) = (host.out, host.input);
        let bf16 = matches!(host.data, MatrixData::Bf16(_));
        let matrix = Self::zeros(driver, (out, input), bf16)?;
        let packed = match host.data {
            MatrixData::Bf16(values) => pack(bytemuck::cast_slice(values), out, input * 2),
            MatrixData::Fp8 { codes, .. } => pack(codes, out, input),
        };
        matrix.data.write(0, &packed)?;
        if let (MatrixData::Fp8 { scales, .. }, Some(buffer)) = (host.data, &matrix.scales) {
            assert_eq!(scales.len(), out, "scales of a [{out}, {input}] matrix");
            buffer.write(0, scales)?;
        }
        Ok(matrix)
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

/// Bytes of so many rows of `row_bytes`, packed.
fn packed_bytes(out: usize, row_bytes: usize) -> usize {
    out.next_multiple_of(TILE) / 16 * tile_bytes(row_bytes)
}

/// Bytes of 16 packed rows.
fn tile_bytes(row_bytes: usize) -> usize {
    row_bytes.div_ceil(32) * 512
}

/// Rows of `row_bytes`, in pieces of 8 bytes, each to its place; each thread packs some tiles.
fn pack(rows: &[u8], out: usize, row_bytes: usize) -> Vec<u8> {
    assert_eq!(rows.len(), out * row_bytes, "bytes of a matrix of {out} rows of {row_bytes}");
    let tile_bytes = tile_bytes(row_bytes);
    let mut packed = vec![0; packed_bytes(out, row_bytes)];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = out.div_ceil(16).div_ceil(threads).max(1);
    let parts = rows.chunks(share * 16 * row_bytes).zip(packed.chunks_mut(share * tile_bytes));
    std::thread::scope(|scope| {
        for (rows, packed) in parts {
            scope.spawn(move || {
                let tiles = rows.chunks(16 * row_bytes).zip(packed.chunks_exact_mut(tile_bytes));
                tiles.for_each(|(rows, tile)| pack_tile(rows, row_bytes, tile));
            });
        }
    });
    packed
}

/// Up to 16 rows.
fn pack_tile(rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    for (index, row) in rows.chunks_exact(row_bytes).enumerate() {
        let start = index % 8 * 64 + index / 8 * 8;
        for (block, part) in row.chunks(32).enumerate() {
            for (t, piece) in part.chunks(8).enumerate() {
                let at = start + block * 512 + t * 16;
                tile[at..at + piece.len()].copy_from_slice(piece);
            }
        }
    }
}
