//! Converts one weight from its source into its shard: several threads read, convert and write bands of rows.
//!
//! The size of a band depends only on the weight's shape, and sums over bands are added in the order of the
//! bands. Neither the number of threads nor an interruption changes a bit of the output.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use safetensors::tensor::Dtype;

use super::granularity::Granularity;
use super::output_weight::{OutputWeight, WeightReader};
use super::quantization_report::ErrorSums;
use super::shard_layout::Placement;
use crate::device::cpu::Quantizer;
use crate::device::fp8;
use crate::model::{LoadError, quantize_row, widen};

/// Stored bytes of a band; a band has at least one row.
const BAND_BYTES: usize = 4 << 20;

/// The place where a weight is written.
pub(super) struct WriteTarget<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) placement: &'a Placement,
}

/// Threads and progress callback of a conversion.
pub(super) struct BandOptions<'a> {
    pub(super) threads: usize,
    /// Called with the stored bytes of each band that has been written.
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
}

/// Buffers of one thread, reused for each of its bands.
#[derive(Default)]
struct Buffers {
    stored: Vec<u8>,
    scratch: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<u8>,
    row: Vec<f32>,
}

/// Converts a weight. Returns its quantisation error if it is quantised.
///
/// # Errors
/// If reading or writing fails, or if an element is NaN or infinite.
pub(super) fn convert(
    weight: &OutputWeight,
    target: &WriteTarget<'_>,
    options: &BandOptions<'_>,
) -> Result<Option<ErrorSums>, LoadError> {
    let reader = weight.open()?;
    let bands = Bands { weight, reader: &reader, target, threads: options.threads };
    let report = |rows: &Range<usize>| (options.progress)((rows.len() * bands.row_bytes()) as u64);
    let Some(granularity) = weight.granularity else {
        bands.each(|rows, buffers| {
            bands.copy(&rows, buffers)?;
            report(&rows);
            Ok(())
        })?;
        return Ok(None);
    };
    let scale = match granularity {
        Granularity::Channel => None,
        Granularity::Tensor => {
            let largest = bands.each(|rows, buffers| bands.amax(&rows, buffers))?;
            let scale = fp8::scale_for(largest.into_iter().fold(0.0, f32::max));
            target.write(target.placement.scales.start, &scale.to_le_bytes())?;
            Some(scale)
        }
    };
    let errors = bands.each(|rows, buffers| {
        let errors = bands.quantize(&rows, scale, buffers)?;
        report(&rows);
        Ok(errors)
    })?;
    Ok(Some(errors.into_iter().fold(ErrorSums::default(), ErrorSums::and)))
}

impl WriteTarget<'_> {
    /// Writes bytes at an offset of the shard's file.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), LoadError> {
        self.file.write_all_at(bytes, at).map_err(|e| LoadError::io(self.path, e))
    }
}

/// The bands of one weight.
struct Bands<'a> {
    weight: &'a OutputWeight,
    reader: &'a WeightReader<'a>,
    target: &'a WriteTarget<'a>,
    threads: usize,
}

impl Bands<'_> {
    /// Returns the stored bytes of a row.
    fn row_bytes(&self) -> usize {
        self.weight.matrix().1 * self.weight.width()
    }

    /// Runs `step` for all bands on several threads. Returns the results in the order of the bands. If some
    /// fail, returns the error of the first band that failed.
    fn each<T: Send>(
        &self,
        step: impl Fn(Range<usize>, &mut Buffers) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        let rows = self.weight.matrix().0;
        let per = (BAND_BYTES / self.row_bytes().max(1)).max(1);
        let count = rows.div_ceil(per);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results: Mutex<Vec<(usize, Result<T, LoadError>)>> = Mutex::new(Vec::with_capacity(count));
        let run = || {
            let mut buffers = Buffers::default();
            while !failed.load(Ordering::Relaxed) {
                let band = next.fetch_add(1, Ordering::Relaxed);
                if band >= count {
                    return;
                }
                let result = step(band * per..rows.min((band + 1) * per), &mut buffers);
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                results.lock().unwrap_or_else(PoisonError::into_inner).push((band, result));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(count) {
                scope.spawn(run);
            }
            run();
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(band, _)| *band);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Reads rows into `stored`.
    fn read<'b>(
        &self,
        rows: &Range<usize>,
        stored: &'b mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<&'b [u8], LoadError> {
        stored.resize(rows.len() * self.row_bytes(), 0);
        self.reader.read(rows.clone(), stored, scratch)?;
        Ok(stored)
    }

    /// Copies a band as it is stored.
    fn copy(&self, rows: &Range<usize>, b: &mut Buffers) -> Result<(), LoadError> {
        let bytes = self.read(rows, &mut b.stored, &mut b.scratch)?;
        if !all_finite(self.weight.dtype, bytes) {
            return Err(self.not_finite(rows));
        }
        let at = self.target.placement.weight.start + (rows.start * self.row_bytes()) as u64;
        self.target.write(at, bytes)
    }

    /// Returns the largest magnitude of a band.
    fn amax(&self, rows: &Range<usize>, b: &mut Buffers) -> Result<f32, LoadError> {
        let bytes = self.read(rows, &mut b.stored, &mut b.scratch)?;
        if !all_finite(self.weight.dtype, bytes) {
            return Err(self.not_finite(rows));
        }
        b.row.resize(self.weight.matrix().1, 0.0);
        let mut largest = 0.0f32;
        for bytes in bytes.chunks_exact(self.row_bytes()) {
            widen(self.weight.dtype, bytes, &mut b.row);
            largest = largest.max(fp8::amax(&b.row));
        }
        Ok(largest)
    }

    /// Quantises a band with the scale of the whole weight, or each row with its own scale if there is none.
    fn quantize(
        &self,
        rows: &Range<usize>,
        tensor_scale: Option<f32>,
        b: &mut Buffers,
    ) -> Result<ErrorSums, LoadError> {
        let cols = self.weight.matrix().1;
        let bytes = self.read(rows, &mut b.stored, &mut b.scratch)?;
        b.codes.resize(rows.len() * cols, 0);
        b.row.resize(cols, 0.0);
        b.scales.clear();
        let (mut errors, quantizer) = (ErrorSums::default(), Quantizer::new());
        let stored = bytes.chunks_exact(self.row_bytes()).zip(b.codes.chunks_exact_mut(cols));
        for (index, (bytes, codes)) in stored.enumerate() {
            let scale = match tensor_scale {
                None => quantize_row(quantizer, self.weight.dtype, bytes, &mut b.row, codes),
                Some(scale) => {
                    widen(self.weight.dtype, bytes, &mut b.row);
                    let inverse = 1.0 / scale;
                    codes.iter_mut().zip(&b.row).for_each(|(code, x)| *code = fp8::encode(x * inverse));
                    scale
                }
            };
            if !scale.is_finite() {
                let row = rows.start + index;
                return Err(self.not_finite(&(row..row + 1)));
            }
            b.scales.extend(scale.to_le_bytes());
            errors.add_row(&b.row, codes, scale);
        }
        let placement = self.target.placement;
        self.target.write(placement.weight.start + (rows.start * cols) as u64, &b.codes)?;
        if tensor_scale.is_none() {
            self.target.write(placement.scales.start + (rows.start * 4) as u64, &b.scales)?;
        }
        Ok(errors)
    }

    /// Returns the error for rows with an element that is not finite.
    fn not_finite(&self, rows: &Range<usize>) -> LoadError {
        let rows = match rows.len() {
            1 => format!("row {}", rows.start),
            _ => format!("one of rows {} to {}", rows.start, rows.end - 1),
        };
        self.weight.error(format!("{rows} holds NaN or infinity, expected finite numbers"))
    }
}

/// Returns whether all elements are finite: no exponent is all ones, as in NaN and infinity.
fn all_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    let halves = |mask: u16| {
        let any = |any, b: &[u8]| any | (u16::from_le_bytes([b[0], b[1]]) & mask == mask);
        !bytes.chunks_exact(2).fold(false, any)
    };
    match dtype {
        Dtype::BF16 => halves(0x7F80),
        Dtype::F16 => halves(0x7C00),
        _ => !bytes
            .chunks_exact(4)
            .fold(false, |any, b| any | !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
    }
}
