//! Converts stored rows to device formats: BF16, or E4M3 codes with a scale per output row.

use safetensors::tensor::Dtype;

use super::checkpoint::Tensor;
use super::error::LoadError;
use crate::device::cpu::{Quantizer, zeros};
use crate::device::{DeviceError, fp8};

/// Bytes per element of a float tensor; an error for other dtypes.
pub(super) fn float_width(tensor: &Tensor) -> Result<usize, LoadError> {
    match tensor.dtype {
        Dtype::BF16 | Dtype::F16 => Ok(2),
        Dtype::F32 => Ok(4),
        other => Err(tensor.error(format!("expected BF16, F16 or F32, got {other:?}"))),
    }
}

/// Reads a small float tensor and widens it to F32. All elements must be finite.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>, LoadError> {
    let width = float_width(tensor)?;
    let no_memory = |error: DeviceError| tensor.error(error.message);
    let mut bytes = zeros(tensor.bytes as usize).map_err(no_memory)?;
    tensor.read(0, &mut bytes)?;
    let mut out = zeros(bytes.len() / width).map_err(no_memory)?;
    widen(tensor.dtype, &bytes, &mut out);
    match out.iter().position(|x| !x.is_finite()) {
        None => Ok(out),
        Some(i) => Err(tensor.error(format!("element {i} is {}, expected a finite number", out[i]))),
    }
}

/// Widens little-endian stored floats to F32. `dtype` must be BF16, F16 or F32.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = fp8::bf16_value(u16::from_le_bytes(*b));
            }
        }
        Dtype::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = half::f16::from_bits(u16::from_le_bytes(*b)).to_f32();
            }
        }
        _ => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
    }
}

/// Rounds a row of stored floats to BF16. Returns `false` if an element is not finite.
pub(super) fn bf16_row(dtype: Dtype, bytes: &[u8], out: &mut [u16]) -> bool {
    if dtype == Dtype::BF16 {
        let pairs = bytes.as_chunks::<2>().0;
        out.iter_mut().zip(pairs).for_each(|(o, b)| *o = u16::from_le_bytes(*b));
    } else {
        let width = if dtype == Dtype::F16 { 2 } else { 4 };
        let mut buffer = [0.0f32; 256];
        for (out, bytes) in out.chunks_mut(256).zip(bytes.chunks(256 * width)) {
            widen(dtype, bytes, &mut buffer);
            out.iter_mut().zip(&buffer).for_each(|(o, x)| *o = fp8::bf16_bits(*x));
        }
    }
    // The largest exponent: 0xFF means infinity or NaN.
    out.iter().fold(0, |largest: u16, x| largest.max(x & 0x7F80)) != 0x7F80
}

/// Quantises a row of stored floats to E4M3 and returns its scale, which is NaN or infinite if an element is.
/// `row` is scratch memory of the same length.
pub(crate) fn quantize_row(
    quantizer: Quantizer,
    dtype: Dtype,
    bytes: &[u8],
    row: &mut [f32],
    codes: &mut [u8],
) -> f32 {
    if dtype == Dtype::BF16 {
        quantizer.bf16(bytes, row);
    } else {
        widen(dtype, bytes, row);
    }
    let scale = quantizer.row(row, codes);
    // An infinite element makes the scale infinite. A NaN only shows as a NaN code.
    if has_nan(codes) { f32::NAN } else { scale }
}

/// Whether one of the E4M3 codes is NaN.
pub(super) fn has_nan(codes: &[u8]) -> bool {
    codes.iter().fold(0, |largest: u8, code| largest.max(code & 0x7F)) == 0x7F
}

/// Expands a stored scale to one F32 per output row.
/// Exporters use the shapes `[]`, `[1]`, `[out]` and `[out, 1]`.
pub(super) fn row_scales(tensor: &Tensor, out: usize) -> Result<Vec<f32>, LoadError> {
    let single = match tensor.shape.as_slice() {
        [] | [1] | [1, 1] => true,
        [n] | [n, 1] if *n == out => false,
        shape => {
            return Err(tensor.error(format!("expected shape [], [1], [{out}] or [{out}, 1], got {shape:?}")));
        }
    };
    let scales = floats(tensor)?;
    match scales.iter().find(|scale| **scale <= 0.0) {
        Some(bad) => Err(tensor.error(format!("expected positive scales, got {bad}"))),
        None if single => Ok(vec![scales[0]; out]),
        None => Ok(scales),
    }
}

/// Reads a stored scale that is a single number.
pub(super) fn scalar(tensor: &Tensor) -> Result<f32, LoadError> {
    let scales = row_scales(tensor, 1)?;
    Ok(scales[0])
}
