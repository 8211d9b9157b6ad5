//! Reads weights and hands them to devices: tasks of some rows, in the order of the files, by several threads at once.
//!
//! Some threads only read, into one buffer after the other, so that the disk always has reads to do; others convert what
//! has filled and hand every rank its rows and columns of it, so that what several ranks have parts of is read once. Disks
//! of virtual machines say of many reads at once that they are done, so threads that did both by turns would all convert
//! while the disk stands still, and then all read. The system is told of what is wanted some tasks ahead. Besides the
//! weights themselves, memory holds two tasks for each thread that reads and one converted for each that converts, whatever
//! the size of the model: of 32 rows at least, which are 4.7 MB where a row is 73,728 elements of BF16.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::checkpoint::Tensor;
use super::convert;
use super::direct_file::ReadBuffer;
use super::error::LoadError;
use super::load_plan::{LoadPlan, RankPart, StoredMatrix, WeightForm};
use crate::device::cpu::Quantizer;
use crate::device::{Device, HostRows, MatrixData};

/// Bytes of a task: few enough to stay in a cache until they are packed, many enough for a disk.
const TASK_BYTES: usize = 2 << 20;

/// Rows of a task are a multiple of this: what devices pack together.
const ROWS: usize = 32;

/// Bytes that the system is told of in advance.
const PREFETCH_BYTES: usize = 64 << 20;

/// If no rank wants so many bytes of each row, they are skipped, and every row is read by itself.
const MAX_SKIPPED_BYTES: usize = 16 << 10;

/// How far loading has got.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadProgress<'a> {
    /// Bytes of the files read and taken in.
    pub done: u64,
    /// Bytes that have to be: what the ranks that are loaded have between them, once.
    pub total: u64,
    /// The tensor of which a piece has just been taken in.
    pub tensor: &'a str,
}

/// Some rows of a stored matrix, and the columns that are read of them.
#[derive(Debug, Clone, PartialEq)]
struct ReadTask {
    /// Index into the plan's.
    source: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// A task that has been read: its index, and where it is.
type FilledBuffer = (usize, ReadBuffer);

/// What a thread converts into.
#[derive(Default)]
struct ConvertBuffers {
    halves: Vec<u16>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    row: Vec<f32>,
}

/// What the threads share.
struct Loader<'a, D: Device> {
    plan: &'a LoadPlan,
    tasks: &'a [ReadTask],
    devices: &'a [&'a D],
    /// By rank and matrix.
    fillings: &'a [Vec<D::Filling>],
    quantizer: Quantizer,
    next: AtomicUsize,
    stop: AtomicBool,
    /// Of the tasks that failed, the first: its error.
    failure: Mutex<Option<(usize, LoadError)>>,
}

/// Fills the plan's matrices on each device. The matrices are by rank and matrix.
pub(super) fn run<D: Device>(
    plan: &LoadPlan,
    devices: &[&D],
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Vec<Vec<D::Matrix>>, LoadError> {
    let fillings = devices.iter().map(|device| {
        let matrices = plan.matrices.iter();
        matrices.map(|matrix| device.filling(matrix.out, matrix.input, matrix.bf16)).collect()
    });
    let fillings: Vec<Vec<D::Filling>> = fillings.collect::<Result<_, _>>()?;
    let tasks = tasks(&plan.sources);
    let loader = Loader {
        plan,
        tasks: &tasks,
        devices,
        fillings: &fillings,
        quantizer: Quantizer::new(),
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    loader.all(progress);
    let failure = loader.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = failure {
        return Err(error);
    }
    let filled = fillings.into_iter().zip(devices).map(|(fillings, device)| {
        fillings.into_iter().map(|filling| Ok(device.filled(filling)?)).collect::<Result<Vec<_>, LoadError>>()
    });
    filled.collect()
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
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// All that the ranks want, each of it once, in the order of the files.
fn tasks(sources: &[StoredMatrix]) -> Vec<ReadTask> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|source| {
        let tensor = &sources[*source].tensor;
        (tensor.path(), tensor.start)
    });
    order.into_iter().flat_map(|source| cut(source, &sources[source])).collect()
}

/// The rows that some rank has, in tasks.
fn cut(source: usize, stored: &StoredMatrix) -> Vec<ReadTask> {
    let StoredMatrix { tensor, form, parts } = stored;
    let [_, input] = tensor.shape[..] else { unreachable!("the plan has matrices only") };
    let width = width(tensor);
    let start = parts.iter().map(|part| part.cols.start).min().unwrap_or(0);
    let end = parts.iter().map(|part| part.cols.end).max().unwrap_or(0);
    // A scale is that of the whole row.
    let whole = matches!(form, WeightForm::Quantised) || (input - (end - start)) * width < MAX_SKIPPED_BYTES;
    let cols = if whole { 0..input } else { start..end };
    let rows = (TASK_BYTES / (cols.len() * width).max(1) / ROWS * ROWS).max(ROWS);
    let tasks = wanted(parts).into_iter().flat_map(|wanted| {
        let starts = wanted.clone().step_by(rows);
        starts.map(move |start| start..wanted.end.min(start + rows))
    });
    tasks.map(|rows| ReadTask { source, rows, cols: cols.clone() }).collect()
}

/// The rows that some part has, as ranges that do not touch.
fn wanted(parts: &[RankPart]) -> Vec<Range<usize>> {
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

impl ReadTask {
    fn bytes(&self, plan: &LoadPlan) -> u64 {
        (self.rows.len() * self.cols.len() * width(&plan.sources[self.source].tensor)) as u64
    }

    /// Whether it is one run of bytes.
    fn is_whole(&self, tensor: &Tensor) -> bool {
        self.cols.len() == tensor.shape[1]
    }

    /// Has the system begin to read it. What is not one run would be read with all that lies between.
    fn prefetch(&self, plan: &LoadPlan) {
        let tensor = &plan.sources[self.source].tensor;
        if self.is_whole(tensor) {
            let row_bytes = (tensor.shape[1] * width(tensor)) as u64;
            tensor.prefetch(self.rows.start as u64 * row_bytes, self.rows.len() as u64 * row_bytes);
        }
    }

    /// Reads it, row after row without what lies between.
    fn read(&self, tensor: &Tensor, buffer: &mut ReadBuffer) -> Result<(), LoadError> {
        let width = width(tensor);
        let row_bytes = tensor.shape[1] * width;
        if self.is_whole(tensor) {
            let from = (self.rows.start * row_bytes) as u64;
            return tensor.read_once(from, self.rows.len() * row_bytes, buffer);
        }
        let each = self.cols.len() * width;
        let to = buffer.room(0..self.rows.len() * each);
        for (row, to) in self.rows.clone().zip(to.chunks_exact_mut(each)) {
            tensor.read((row * row_bytes + self.cols.start * width) as u64, to)?;
        }
        Ok(())
    }
}

impl<D: Device> Loader<'_, D> {
    /// Reads and converts all tasks, or until one fails.
    fn all(&self, progress: &mut dyn FnMut(LoadProgress<'_>)) {
        let total = self.tasks.iter().map(|task| task.bytes(self.plan)).sum();
        let mut done = 0;
        let readers = read_threads().min(self.tasks.len());
        let (return_buffer, free) = flume::unbounded();
        // As many to convert as are being read: whoever has read one goes on at once.
        (0..2 * readers)
            .for_each(|_| return_buffer.send(ReadBuffer::default()).expect("the other end is here"));
        let (send_filled, filled) = flume::unbounded();
        let (report, reports) = flume::unbounded();
        std::thread::scope(|scope| {
            for _ in 0..readers {
                let (free, send_filled) = (free.clone(), send_filled.clone());
                scope.spawn(move || self.read(&free, &send_filled));
            }
            for _ in 0..convert_threads() {
                let (filled, return_buffer, report) = (filled.clone(), return_buffer.clone(), report.clone());
                scope.spawn(move || self.convert(&filled, &return_buffer, &report));
            }
            // Each channel ends with the last thread that sends.
            drop((free, return_buffer, send_filled, filled, report));
            for index in reports {
                let task: &ReadTask = &self.tasks[index];
                done += task.bytes(self.plan);
                progress(LoadProgress { done, total, tensor: &self.plan.sources[task.source].tensor.name });
            }
        });
    }

    /// Reads tasks into free landings until there are no more tasks, or one fails.
    fn read(&self, free: &flume::Receiver<ReadBuffer>, send_filled: &flume::Sender<FilledBuffer>) {
        let ahead = PREFETCH_BYTES / TASK_BYTES;
        // Nobody is left to give any back if those who convert have panicked.
        for mut buffer in free {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = self.tasks.get(index) else { return };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if index == 0 {
                self.tasks.iter().take(ahead).skip(1).for_each(|task| task.prefetch(self.plan));
            }
            if let Some(later) = self.tasks.get(index + ahead) {
                later.prefetch(self.plan);
            }
            match task.read(&self.plan.sources[task.source].tensor, &mut buffer) {
                Ok(()) if send_filled.send((index, buffer)).is_ok() => {}
                Ok(()) => return,
                Err(error) => return self.fail(index, error),
            }
        }
    }

    /// Converts what has filled until all has, and reports it; once a task has failed, it only gives landings back.
    fn convert(
        &self,
        filled: &flume::Receiver<FilledBuffer>,
        return_buffer: &flume::Sender<ReadBuffer>,
        report: &flume::Sender<usize>,
    ) {
        let mut scratch = ConvertBuffers::default();
        for (index, buffer) in filled {
            if !self.stop.load(Ordering::Relaxed) {
                match self.take(&self.tasks[index], buffer.bytes(), &mut scratch) {
                    Ok(()) => report.send(index).expect("reports are read until the last thread ends"),
                    Err(error) => self.fail(index, error),
                }
            }
            // Refused when all has been read.
            let _unwanted = return_buffer.send(buffer);
        }
    }

    fn fail(&self, index: usize, error: LoadError) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| index < *first) {
            *failure = Some((index, error));
        }
    }

    /// Hands a task to the ranks that have a part of it.
    fn take(&self, task: &ReadTask, bytes: &[u8], scratch: &mut ConvertBuffers) -> Result<(), LoadError> {
        match &self.plan.sources[task.source].form {
            WeightForm::Codes(scales) => self.fill_stored_codes(task, scales, bytes),
            WeightForm::Quantised => self.quantise(task, bytes, scratch),
            WeightForm::Bf16 => self.fill_bf16(task, bytes, scratch),
        }
    }

    /// The parts that have rows of a task, and these rows.
    fn parts<'p>(&'p self, task: &'p ReadTask) -> impl Iterator<Item = (&'p RankPart, Range<usize>)> {
        self.plan.sources[task.source].parts.iter().filter_map(|part| {
            let rows = part.rows.start.max(task.rows.start)..part.rows.end.min(task.rows.end);
            (!rows.is_empty()).then_some((part, rows))
        })
    }

    /// Hands rows to the rank whose part they are of.
    fn fill(&self, part: &RankPart, first: usize, rows: HostRows<'_>) -> Result<(), LoadError> {
        let filling = &self.fillings[part.rank][part.matrix];
        Ok(self.devices[part.rank].fill(filling, part.first + first - part.rows.start, rows)?)
    }

    /// Stored codes, of which a rank takes what is its part; `scales` are those of all rows.
    fn fill_stored_codes(&self, task: &ReadTask, scales: &[f32], codes: &[u8]) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[task.source].tensor;
        let stride = task.cols.len();
        if convert::has_nan(codes) {
            let at = codes.iter().position(|code| code & 0x7F == 0x7F).unwrap_or_default();
            let (row, col) = (task.rows.start + at / stride, task.cols.start + at % stride);
            let element = row * tensor.shape[1] + col;
            return Err(tensor.error(format!("element {element} is the NaN code {:#04x}", codes[at])));
        }
        self.fill_codes(task, codes, |rows| &scales[rows])
    }

    /// Codes of a task, and the scales of a range of the tensor's rows, to the ranks.
    fn fill_codes<'s>(
        &self,
        task: &ReadTask,
        codes: &[u8],
        scales: impl Fn(Range<usize>) -> &'s [f32],
    ) -> Result<(), LoadError> {
        let stride = task.cols.len();
        for (part, rows) in self.parts(task) {
            let start = (rows.start - task.rows.start) * stride + part.cols.start - task.cols.start;
            let data = MatrixData::Fp8 { codes: &codes[start..], scales: scales(rows.clone()) };
            self.fill(part, rows.start, HostRows { rows: rows.len(), input: part.cols.len(), stride, data })?;
        }
        Ok(())
    }

    /// Quantises whole rows.
    fn quantise(&self, task: &ReadTask, bytes: &[u8], scratch: &mut ConvertBuffers) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[task.source].tensor;
        let input = task.cols.len();
        let ConvertBuffers { codes, scales, row, .. } = scratch;
        codes.resize(task.rows.len() * input, 0);
        row.resize(input, 0.0);
        scales.clear();
        let rows = bytes.chunks_exact(input * width(tensor)).zip(codes.chunks_exact_mut(input));
        for (index, (bytes, codes)) in rows.enumerate() {
            let scale = convert::quantize_row(self.quantizer, tensor.dtype, bytes, row, codes);
            if !scale.is_finite() {
                let row = task.rows.start + index;
                return Err(tensor.error(format!("row {row} holds NaN or infinity, expected finite numbers")));
            }
            scales.push(scale);
        }
        self.fill_codes(task, codes, |r| &scales[r.start - task.rows.start..r.end - task.rows.start])
    }

    /// Rounds each rank's part to BF16.
    fn fill_bf16(
        &self,
        task: &ReadTask,
        bytes: &[u8],
        scratch: &mut ConvertBuffers,
    ) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[task.source].tensor;
        let width = width(tensor);
        let row_bytes = task.cols.len() * width;
        let halves = &mut scratch.halves;
        for (part, rows) in self.parts(task) {
            let (count, input) = (rows.len(), part.cols.len());
            halves.resize(count * input, 0);
            let cols = part.cols.start - task.cols.start..part.cols.end - task.cols.start;
            let stored = bytes[(rows.start - task.rows.start) * row_bytes..].chunks_exact(row_bytes);
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
