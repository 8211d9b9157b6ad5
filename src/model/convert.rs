//! Stored tensors to what devices take: BF16, or E4M3 codes with a scale per output row; all of a matrix, or a slice.

use std::ops::Range;

use safetensors::tensor::Dtype;

use super::checkpoint::Tensor;
use super::error::LoadError;
use crate::device::fp8;

/// Rows of a linear weight, ready for a device.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rows {
    Bf16(Vec<u16>),
    Fp8 { codes: Vec<u8>, scales: Vec<f32> },
}

/// The rows and columns of a stored matrix that are wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slice {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl Slice {
    /// The bytes of each wanted row of a matrix whose rows have `row_bytes` and whose elements `width`.
    fn of<'a>(
        &self,
        bytes: &'a [u8],
        row_bytes: usize,
        width: usize,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let cols = self.cols.start * width..self.cols.end * width;
        let rows = &bytes[self.rows.start * row_bytes..self.rows.end * row_bytes];
        rows.chunks_exact(row_bytes).map(move |row| &row[cols.clone()])
    }
}

/// Rows that a thread converts at a time are not shared, so they are split evenly.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A 16- or 32-bit float tensor as F32.
pub(super) fn floats(tensor: &Tensor<'_>) -> Result<Vec<f32>, LoadError> {
    let width = width(tensor)?;
    let mut out = vec![0.0; tensor.bytes.len() / width];
    widen(tensor.dtype, tensor.bytes, &mut out);
    match out.iter().position(|x| !x.is_finite()) {
        None => Ok(out),
        Some(i) => Err(tensor.error(format!("element {i} is {}, expected a finite number", out[i]))),
    }
}

/// Bytes per element of a float tensor.
fn width(tensor: &Tensor<'_>) -> Result<usize, LoadError> {
    match tensor.dtype {
        Dtype::BF16 | Dtype::F16 => Ok(2),
        Dtype::F32 => Ok(4),
        other => Err(tensor.error(format!("expected BF16, F16 or F32, got {other:?}"))),
    }
}

/// Stored floats, little-endian, as F32.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = fp8::bf16_value(u16::from_le_bytes([b[0], b[1]]));
            }
        }
        Dtype::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = half::f16::from_bits(u16::from_le_bytes([b[0], b[1]])).to_f32();
            }
        }
        _ => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
}

/// A slice of a float matrix rounded to BF16.
pub(super) fn to_bf16(tensor: &Tensor<'_>, slice: &Slice) -> Result<Vec<u16>, LoadError> {
    let (width, row_bytes) = (width(tensor)?, tensor.shape[1] * width(tensor)?);
    let (rows, cols) = (slice.rows.len(), slice.cols.len());
    let mut out = vec![0u16; rows * cols];
    let per = rows.div_ceil(threads()).max(1);
    let finite = std::thread::scope(|scope| {
        let parts = out.chunks_mut((per * cols).max(1)).enumerate();
        let part = |(index, out): (usize, &mut [u16])| {
            let first = slice.rows.start + index * per;
            let slice = Slice { rows: first..first + out.len() / cols, cols: slice.cols.clone() };
            slice
                .of(tensor.bytes, row_bytes, width)
                .zip(out.chunks_exact_mut(cols))
                .fold(true, |finite, (bytes, out)| finite & bf16_part(tensor.dtype, bytes, out))
        };
        let workers: Vec<_> = parts.map(|chunk| scope.spawn(move || part(chunk))).collect();
        workers.into_iter().all(|w| w.join().expect("conversion does not panic"))
    });
    if finite { Ok(out) } else { Err(tensor.error("holds NaN or infinity, expected finite numbers")) }
}

/// Converts, and says whether everything was finite.
fn bf16_part(dtype: Dtype, bytes: &[u8], out: &mut [u16]) -> bool {
    if dtype == Dtype::BF16 {
        out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(o, b)| *o = u16::from_le_bytes([b[0], b[1]]));
    } else {
        let width = if dtype == Dtype::F16 { 2 } else { 4 };
        let mut buffer = [0.0f32; 256];
        for (out, bytes) in out.chunks_mut(256).zip(bytes.chunks(256 * width)) {
            widen(dtype, bytes, &mut buffer);
            out.iter_mut().zip(&buffer).for_each(|(o, x)| *o = fp8::bf16_bits(*x));
        }
    }
    out.iter().fold(true, |all, x| all & (x & 0x7F80 != 0x7F80))
}

/// Quantises one stored row, leaving it in `row` as F32. Returns its scale, which is finite only if the whole row is.
pub(crate) fn quantize_row(dtype: Dtype, bytes: &[u8], row: &mut [f32], codes: &mut [u8]) -> f32 {
    widen(dtype, bytes, row);
    let scale = fp8::quantize_row(row, codes);
    // An infinite element shows in the scale; a NaN has a code of its own.
    if codes.iter().fold(false, |any, c| any | fp8::is_nan(*c)) { f32::NAN } else { scale }
}

/// A slice of a float matrix \[out, in\] quantised, a scale per row: that of the whole row, whatever part of it is wanted,
/// so that the ranks of a group have the weights that one rank would have.
pub(super) fn quantize(tensor: &Tensor<'_>, slice: &Slice) -> Result<Rows, LoadError> {
    let width = width(tensor)?;
    let (input, cols) = (tensor.shape[1], slice.cols.len());
    let mut codes = vec![0u8; slice.rows.len() * cols];
    let mut scales = vec![0.0f32; slice.rows.len()];
    let per = slice.rows.len().div_ceil(threads()).max(1);
    let bytes = &tensor.bytes[slice.rows.start * input * width..slice.rows.end * input * width];
    std::thread::scope(|scope| {
        let parts = codes.chunks_mut((per * cols).max(1)).zip(scales.chunks_mut(per));
        for ((codes, scales), bytes) in parts.zip(bytes.chunks(per * input * width)) {
            scope.spawn(move || {
                let (mut row, mut whole) = (vec![0.0; input], vec![0; input]);
                let rows = codes.chunks_exact_mut(cols).zip(bytes.chunks_exact(input * width));
                for ((codes, bytes), scale) in rows.zip(scales) {
                    *scale = quantize_row(tensor.dtype, bytes, &mut row, &mut whole);
                    codes.copy_from_slice(&whole[slice.cols.clone()]);
                }
            });
        }
    });
    match scales.iter().position(|scale| !scale.is_finite()) {
        None => Ok(Rows::Fp8 { codes, scales }),
        Some(row) => {
            let row = slice.rows.start + row;
            Err(tensor.error(format!("row {row} holds NaN or infinity, expected finite numbers")))
        }
    }
}

/// A slice of stored E4M3 codes, none of them NaN.
pub(super) fn codes(tensor: &Tensor<'_>, slice: &Slice) -> Result<Vec<u8>, LoadError> {
    if tensor.dtype != Dtype::F8_E4M3 {
        return Err(tensor.error(format!("expected F8_E4M3, got {:?}", tensor.dtype)));
    }
    let input = tensor.shape[1];
    let mut codes = Vec::with_capacity(slice.rows.len() * slice.cols.len());
    slice.of(tensor.bytes, input, 1).for_each(|row| codes.extend_from_slice(row));
    if codes.iter().fold(false, |any, code| any | fp8::is_nan(*code)) {
        let at = codes.iter().position(|code| fp8::is_nan(*code)).unwrap_or_default();
        let cols = slice.cols.len();
        let element = (slice.rows.start + at / cols) * input + slice.cols.start + at % cols;
        return Err(tensor.error(format!("element {element} is the NaN code {:#04x}", codes[at])));
    }
    Ok(codes)
}

/// A stored scale as one F32 per output row: `[]`, `[1]`, `[out]` and `[out, 1]` are all in use.
pub(super) fn row_scales(tensor: &Tensor<'_>, out: usize) -> Result<Vec<f32>, LoadError> {
    let scales = floats(tensor)?;
    if let Some(bad) = scales.iter().find(|scale| **scale <= 0.0) {
        return Err(tensor.error(format!("expected positive scales, got {bad}")));
    }
    match tensor.shape {
        [] | [1] | [1, 1] => Ok(vec![scales[0]; out]),
        [n] | [n, 1] if *n == out => Ok(scales),
        shape => Err(tensor.error(format!("expected shape [], [1], [{out}] or [{out}, 1], got {shape:?}"))),
    }
}

/// A stored scale that is one number.
pub(super) fn scalar(tensor: &Tensor<'_>) -> Result<f32, LoadError> {
    let scales = row_scales(tensor, 1)?;
    Ok(scales[0])
}
