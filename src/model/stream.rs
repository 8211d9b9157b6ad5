//! Reads weights and hands them to devices: pieces of some rows, in the order of the files, by several threads at once.
//!
//! Some threads only read, into one landing after the other, so that the disk always has reads to do; others convert what
//! has landed and hand every rank its rows and columns of it, so that what several ranks have parts of is read once. Disks
//! of virtual machines say of many reads at once that they are done, so threads that did both by turns would all convert
//! while the disk stands still, and then all read. The system is told of what is wanted some pieces ahead. Besides the
//! weights themselves, memory holds two pieces for each thread that reads and one converted for each that converts, whatever
//! the size of the model: of 32 rows at least, which are 4.7 MB where a row is 73,728 elements of BF16.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::checkpoint::Tensor;
use super::convert;
use super::error::LoadError;
use super::plan::{Form, Part, Plan, Product, Source};
use super::storage::Landing;
use super::weights::LoadProgress;
use crate::device::cpu::Quantizer;
use crate::device::{Device, HostRows, MatrixData, MatrixShape};
use crate::machine;

/// Bytes of a piece: few enough to stay in a cache until they are packed, many enough for a disk.
const PIECE: usize = 2 << 20;

/// Rows of a piece are a multiple of this: what devices pack together.
const ROWS: usize = 32;

/// Bytes that the system is told of in advance.
const AHEAD: usize = 64 << 20;

/// If no rank wants so many bytes of each row, they are skipped, and every row is read by itself.
const SKIPPED: usize = 16 << 10;

/// Some rows of a stored matrix, and the columns that are read of them.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    /// Index into the plan's.
    source: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// A piece that has been read: its index, and where it is.
type Landed = (usize, Landing);

/// What a thread converts into.
#[derive(Default)]
struct Desk {
    halves: Vec<u16>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    row: Vec<f32>,
}

/// What the threads share.
struct Work<'a, D: Device> {
    plan: &'a Plan,
    pieces: &'a [Piece],
    devices: &'a [&'a D],
    /// By rank and product.
    builders: &'a [Vec<D::MatrixBuilder>],
    quantizer: Quantizer,
    next: AtomicUsize,
    stop: AtomicBool,
    /// Of the pieces that failed, the first: its error.
    failure: Mutex<Option<(usize, LoadError)>>,
}

/// Fills the plan's products on each device. The matrices are by rank and product.
pub(super) fn run<D: Device>(
    plan: &Plan,
    devices: &[&D],
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Vec<Vec<D::Matrix>>, LoadError> {
    let shape =
        |product: &Product| MatrixShape { out: product.out, input: product.input, bf16: product.bf16 };
    let builders = devices
        .iter()
        .map(|device| plan.products.iter().map(|product| device.begin_matrix(shape(product))).collect());
    let builders: Vec<Vec<D::MatrixBuilder>> = builders.collect::<Result<_, _>>()?;
    let pieces = pieces(&plan.sources);
    let work = Work {
        plan,
        pieces: &pieces,
        devices,
        builders: &builders,
        quantizer: Quantizer::new(),
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    work.all(progress);
    let failure = work.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = failure {
        return Err(error);
    }
    let matrices = builders.into_iter().zip(devices).map(|(builders, device)| {
        let finish = |builder| Ok(device.finish_matrix(builder)?);
        builders.into_iter().map(finish).collect::<Result<Vec<_>, LoadError>>()
    });
    matrices.collect()
}

/// Threads that read: many more than a few cores, so that a disk has many reads to do.
pub fn read_threads() -> usize {
    (2 * cores()).clamp(16, 64)
}

/// Threads that convert.
fn convert_threads() -> usize {
    cores().min(64)
}

fn cores() -> usize {
    machine::cores()
}

/// All that the ranks want, each of it once, in the order of the files.
fn pieces(sources: &[Source]) -> Vec<Piece> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|source| {
        let tensor = &sources[*source].tensor;
        (tensor.path(), tensor.start)
    });
    order.into_iter().flat_map(|source| cut(source, &sources[source])).collect()
}

/// The rows that some rank has, in pieces.
fn cut(source: usize, stored: &Source) -> Vec<Piece> {
    let Source { tensor, form, parts } = stored;
    let [_, input] = tensor.shape[..] else { unreachable!("the plan has matrices only") };
    let width = width(tensor);
    let start = parts.iter().map(|part| part.cols.start).min().unwrap_or(0);
    let end = parts.iter().map(|part| part.cols.end).max().unwrap_or(0);
    // A scale is that of the whole row.
    let whole = matches!(form, Form::Quantised) || (input - (end - start)) * width < SKIPPED;
    let cols = if whole { 0..input } else { start..end };
    let rows = (PIECE / (cols.len() * width).max(1) / ROWS * ROWS).max(ROWS);
    let pieces = wanted(parts).into_iter().flat_map(|wanted| {
        let starts = wanted.clone().step_by(rows);
        starts.map(move |start| start..wanted.end.min(start + rows))
    });
    pieces.map(|rows| Piece { source, rows, cols: cols.clone() }).collect()
}

/// The rows that some part has, as ranges that do not touch.
fn wanted(parts: &[Part]) -> Vec<Range<usize>> {
    let mut ranges: Vec<_> = parts.iter().map(|part| part.rows.clone()).filter(|r| !r.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Bytes per element.
fn width(tensor: &Tensor) -> usize {
    tensor.bytes as usize / tensor.shape.iter().product::<usize>().max(1)
}

impl Piece {
    fn bytes(&self, plan: &Plan) -> u64 {
        (self.rows.len() * self.cols.len() * width(&plan.sources[self.source].tensor)) as u64
    }

    /// Whether it is one run of bytes.
    fn is_whole(&self, tensor: &Tensor) -> bool {
        self.cols.len() == tensor.shape[1]
    }

    /// Has the system begin to read it. What is not one run would be read with all that lies between.
    fn expect(&self, plan: &Plan) {
        let tensor = &plan.sources[self.source].tensor;
        if self.is_whole(tensor) {
            let row_bytes = (tensor.shape[1] * width(tensor)) as u64;
            tensor.expect(self.rows.start as u64 * row_bytes, self.rows.len() as u64 * row_bytes);
        }
    }

    /// Reads it, row after row without what lies between.
    fn read(&self, tensor: &Tensor, landing: &mut Landing) -> Result<(), LoadError> {
        let width = width(tensor);
        let row_bytes = tensor.shape[1] * width;
        if self.is_whole(tensor) {
            let from = (self.rows.start * row_bytes) as u64;
            return tensor.read_once(from, self.rows.len() * row_bytes, landing);
        }
        let each = self.cols.len() * width;
        let to = landing.room(0..self.rows.len() * each);
        for (row, to) in self.rows.clone().zip(to.chunks_exact_mut(each)) {
            tensor.read((row * row_bytes + self.cols.start * width) as u64, to)?;
        }
        Ok(())
    }
}

impl<D: Device> Work<'_, D> {
    /// Reads and converts all pieces, or until one fails.
    fn all(&self, progress: &mut dyn FnMut(LoadProgress<'_>)) {
        let total = self.pieces.iter().map(|piece| piece.bytes(self.plan)).sum();
        let mut done = 0;
        let readers = read_threads().min(self.pieces.len());
        let (give_back, free) = flume::unbounded();
        // As many to convert as are being read: whoever has read one goes on at once.
        (0..2 * readers).for_each(|_| give_back.send(Landing::default()).expect("the other end is here"));
        let (land, landed) = flume::unbounded();
        let (report, reports) = flume::unbounded();
        std::thread::scope(|scope| {
            for _ in 0..readers {
                let (free, land) = (free.clone(), land.clone());
                scope.spawn(move || self.read(&free, &land));
            }
            for _ in 0..convert_threads() {
                let (landed, give_back, report) = (landed.clone(), give_back.clone(), report.clone());
                scope.spawn(move || self.convert(&landed, &give_back, &report));
            }
            // Each channel ends with the last thread that sends.
            drop((free, give_back, land, landed, report));
            for index in reports {
                let piece: &Piece = &self.pieces[index];
                done += piece.bytes(self.plan);
                progress(LoadProgress { done, total, tensor: &self.plan.sources[piece.source].tensor.name });
            }
        });
    }

    /// Reads pieces into free landings until there are no more pieces, or one fails.
    fn read(&self, free: &flume::Receiver<Landing>, land: &flume::Sender<Landed>) {
        let ahead = AHEAD / PIECE;
        // Nobody is left to give any back if those who convert have panicked.
        for mut landing in free {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = self.pieces.get(index) else { return };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if index == 0 {
                self.pieces.iter().take(ahead).skip(1).for_each(|piece| piece.expect(self.plan));
            }
            if let Some(later) = self.pieces.get(index + ahead) {
                later.expect(self.plan);
            }
            match piece.read(&self.plan.sources[piece.source].tensor, &mut landing) {
                Ok(()) if land.send((index, landing)).is_ok() => {}
                Ok(()) => return,
                Err(error) => return self.fail(index, error),
            }
        }
    }

    /// Converts what has landed until all has, and reports it; once a piece has failed, it only gives landings back.
    fn convert(
        &self,
        landed: &flume::Receiver<Landed>,
        give_back: &flume::Sender<Landing>,
        report: &flume::Sender<usize>,
    ) {
        let mut desk = Desk::default();
        for (index, landing) in landed {
            if !self.stop.load(Ordering::Relaxed) {
                match self.take(&self.pieces[index], landing.bytes(), &mut desk) {
                    Ok(()) => report.send(index).expect("reports are read until the last thread ends"),
                    Err(error) => self.fail(index, error),
                }
            }
            // Refused when all has been read.
            let _unwanted = give_back.send(landing);
        }
    }

    fn fail(&self, index: usize, error: LoadError) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| index < *first) {
            *failure = Some((index, error));
        }
    }

    /// Hands a piece to the ranks that have a part of it.
    fn take(&self, piece: &Piece, bytes: &[u8], desk: &mut Desk) -> Result<(), LoadError> {
        match &self.plan.sources[piece.source].form {
            Form::Codes(scales) => self.take_codes(piece, scales, bytes),
            Form::Quantised => self.quantise(piece, bytes, desk),
            Form::Bf16 => self.take_halves(piece, bytes, desk),
        }
    }

    /// The parts that have rows of a piece, and these rows.
    fn parts<'p>(&'p self, piece: &'p Piece) -> impl Iterator<Item = (&'p Part, Range<usize>)> {
        self.plan.sources[piece.source].parts.iter().filter_map(|part| {
            let rows = part.rows.start.max(piece.rows.start)..part.rows.end.min(piece.rows.end);
            (!rows.is_empty()).then_some((part, rows))
        })
    }

    /// Hands rows to the rank whose part they are of.
    fn fill(&self, part: &Part, first: usize, rows: HostRows<'_>) -> Result<(), LoadError> {
        let builder = &self.builders[part.rank][part.product];
        Ok(self.devices[part.rank].write_rows(builder, part.first + first - part.rows.start, rows)?)
    }

    /// Stored codes, of which a rank takes what is its part; `scales` are those of all rows.
    fn take_codes(&self, piece: &Piece, scales: &[f32], codes: &[u8]) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[piece.source].tensor;
        let stride = piece.cols.len();
        if convert::has_nan(codes) {
            let at = codes.iter().position(|code| code & 0x7F == 0x7F).unwrap_or_default();
            let (row, col) = (piece.rows.start + at / stride, piece.cols.start + at % stride);
            let element = row * tensor.shape[1] + col;
            return Err(tensor.error(format!("element {element} is the NaN code {:#04x}", codes[at])));
        }
        self.fill_codes(piece, codes, |rows| &scales[rows])
    }

    /// Codes of a piece, and the scales of a range of the tensor's rows, to the ranks.
    fn fill_codes<'s>(
        &self,
        piece: &Piece,
        codes: &[u8],
        scales: impl Fn(Range<usize>) -> &'s [f32],
    ) -> Result<(), LoadError> {
        let stride = piece.cols.len();
        for (part, rows) in self.parts(piece) {
            let start = (rows.start - piece.rows.start) * stride + part.cols.start - piece.cols.start;
            let data = MatrixData::Fp8 { codes: &codes[start..], scales: scales(rows.clone()) };
            self.fill(part, rows.start, HostRows { rows: rows.len(), input: part.cols.len(), stride, data })?;
        }
        Ok(())
    }

    /// Quantises whole rows.
    fn quantise(&self, piece: &Piece, bytes: &[u8], desk: &mut Desk) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[piece.source].tensor;
        let input = piece.cols.len();
        let Desk { codes, scales, row, .. } = desk;
        codes.resize(piece.rows.len() * input, 0);
        row.resize(input, 0.0);
        scales.clear();
        let rows = bytes.chunks_exact(input * width(tensor)).zip(codes.chunks_exact_mut(input));
        for (index, (bytes, codes)) in rows.enumerate() {
            let scale = convert::quantize_row(self.quantizer, (tensor.dtype, bytes), row, codes);
            if !scale.is_finite() {
                let row = piece.rows.start + index;
                return Err(tensor.error(format!("row {row} holds NaN or infinity, expected finite numbers")));
            }
            scales.push(scale);
        }
        self.fill_codes(piece, codes, |r| &scales[r.start - piece.rows.start..r.end - piece.rows.start])
    }

    /// Rounds each rank's part to BF16.
    fn take_halves(&self, piece: &Piece, bytes: &[u8], desk: &mut Desk) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[piece.source].tensor;
        let width = width(tensor);
        let row_bytes = piece.cols.len() * width;
        let halves = &mut desk.halves;
        for (part, rows) in self.parts(piece) {
            let (count, input) = (rows.len(), part.cols.len());
            halves.resize(count * input, 0);
            let cols = part.cols.start - piece.cols.start..part.cols.end - piece.cols.start;
            let stored = bytes[(rows.start - piece.rows.start) * row_bytes..].chunks_exact(row_bytes);
            for (index, (bytes, out)) in stored.zip(halves.chunks_exact_mut(input)).enumerate() {
                let bytes = &bytes[cols.start * width..cols.end * width];
                if !convert::bf16_row(tensor.dtype, bytes, out) {
                    let row = rows.start + index;
                    return Err(
                        tensor.error(format!("row {row} holds NaN or infinity, expected finite numbers"))
                    );
                }
            }
            let data = MatrixData::Bf16(halves);
            self.fill(part, rows.start, HostRows { rows: count, input, stride: input, data })?;
        }
        Ok(())
    }
}
