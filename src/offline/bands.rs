//! One item from its source into its shard: read, converted and written in bands of rows, on many threads.
//!
//! A band's size depends on the weight's shape alone, and what is added up over bands is added in their order: neither
//! the number of threads nor an interruption changes a bit.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use safetensors::tensor::Dtype;

use super::item::Reader;
use super::plan::Place;
use super::report::Errors;
use super::{Granularity, Item};
use crate::device::cpu::Quantizer;
use crate::device::fp8;
use crate::model::{LoadError, quantize_row, widen};

/// Stored bytes that a thread has in memory at a time, unless a single row has more.
const BAND_BYTES: usize = 4 << 20;

/// Where an item is written.
pub(super) struct Target<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) place: &'a Place,
}

/// How an item is worked on.
pub(super) struct Work<'a> {
    pub(super) threads: usize,
    /// Told of every band's bytes that are dealt with.
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
}

/// A thread's memory.
#[derive(Default)]
struct Buffers {
    stored: Vec<u8>,
    scratch: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<u8>,
    row: Vec<f32>,
}

/// Converts an item. Returns how far it is from what is stored, if it is quantised.
pub(super) fn convert(
    item: &Item,
    target: &Target<'_>,
    work: &Work<'_>,
) -> Result<Option<Errors>, LoadError> {
    let reader = item.open()?;
    let bands = Bands { item, reader: &reader, target, threads: work.threads };
    let told = |rows: &Range<usize>| (work.progress)((rows.len() * bands.row_bytes()) as u64);
    let Some(granularity) = item.granularity else {
        bands.each(|rows, buffers| {
            bands.copy(&rows, buffers)?;
            told(&rows);
            Ok(())
        })?;
        return Ok(None);
    };
    let scale = match granularity {
        Granularity::Channel => None,
        Granularity::Tensor => {
            let largest = bands.each(|rows, buffers| bands.amax(&rows, buffers))?;
            let scale = fp8::scale_for(largest.into_iter().fold(0.0, f32::max));
            target.write(target.place.scales.start, &scale.to_le_bytes())?;
            Some(scale)
        }
    };
    let errors = bands.each(|rows, buffers| {
        let errors = bands.quantize(&rows, scale, buffers)?;
        told(&rows);
        Ok(errors)
    })?;
    Ok(Some(errors.into_iter().fold(Errors::default(), Errors::and)))
}

impl Target<'_> {
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), LoadError> {
        self.file.write_all_at(bytes, at).map_err(|e| LoadError::io(self.path, e))
    }
}

struct Bands<'a> {
    item: &'a Item,
    reader: &'a Reader<'a>,
    target: &'a Target<'a>,
    threads: usize,
}

impl Bands<'_> {
    fn row_bytes(&self) -> usize {
        self.item.matrix().1 * self.item.width()
    }

    /// Runs `step` over all bands and returns what it gave for each, in their order, or the first error in their order.
    fn each<T: Send>(
        &self,
        step: impl Fn(Range<usize>, &mut Buffers) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        let rows = self.item.matrix().0;
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

    fn copy(&self, rows: &Range<usize>, b: &mut Buffers) -> Result<(), LoadError> {
        let bytes = self.read(rows, &mut b.stored, &mut b.scratch)?;
        if !all_finite(self.item.dtype, bytes) {
            return Err(self.not_finite(rows));
        }
        let at = self.target.place.weight.start + (rows.start * self.row_bytes()) as u64;
        self.target.write(at, bytes)
    }

    /// The largest magnitude of a band.
    fn amax(&self, rows: &Range<usize>, b: &mut Buffers) -> Result<f32, LoadError> {
        let bytes = self.read(rows, &mut b.stored, &mut b.scratch)?;
        if !all_finite(self.item.dtype, bytes) {
            return Err(self.not_finite(rows));
        }
        b.row.resize(self.item.matrix().1, 0.0);
        let mut largest = 0.0f32;
        for bytes in bytes.chunks_exact(self.row_bytes()) {
            widen(self.item.dtype, bytes, &mut b.row);
            largest = largest.max(fp8::amax(&b.row));
        }
        Ok(largest)
    }

    /// Quantises a band: each row by its own scale, or all by a given one.
    fn quantize(
        &self,
        rows: &Range<usize>,
        given: Option<f32>,
        b: &mut Buffers,
    ) -> Result<Errors, LoadError> {
        let cols = self.item.matrix().1;
        let bytes = self.read(rows, &mut b.stored, &mut b.scratch)?;
        b.codes.resize(rows.len() * cols, 0);
        b.row.resize(cols, 0.0);
        b.scales.clear();
        let (mut errors, quantizer) = (Errors::default(), Quantizer::new());
        let stored = bytes.chunks_exact(self.row_bytes()).zip(b.codes.chunks_exact_mut(cols));
        for (index, (bytes, codes)) in stored.enumerate() {
            let scale = match given {
                None => quantize_row(quantizer, self.item.dtype, bytes, &mut b.row, codes),
                Some(scale) => {
                    widen(self.item.dtype, bytes, &mut b.row);
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
        let place = self.target.place;
        self.target.write(place.weight.start + (rows.start * cols) as u64, &b.codes)?;
        if given.is_none() {
            self.target.write(place.scales.start + (rows.start * 4) as u64, &b.scales)?;
        }
        Ok(errors)
    }

    fn not_finite(&self, rows: &Range<usize>) -> LoadError {
        let rows = match rows.len() {
            1 => format!("row {}", rows.start),
            _ => format!("one of rows {} to {}", rows.start, rows.end - 1),
        };
        self.item.error(format!("{rows} holds NaN or infinity, expected finite numbers"))
    }
}

/// Whether no exponent is that of NaN and infinity.
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
