//! Reads weights and fills the devices' matrices with them. The work is split into tasks of some rows each,
//! in the order of the files, and several threads run at once.
//!
//! Some threads only read, into one buffer after the other, so that the disk always has requests. Others
//! convert filled buffers and give every rank its rows and columns, so bytes that several ranks need are read
//! once. The two kinds are separate because disks of virtual machines complete many reads at once: threads
//! that did both would all convert while the disk is idle, and then all read. Reads are prefetched some tasks
//! ahead.
//!
//! Besides the weights, memory holds two buffers per reading thread and one converted task per converting
//! thread, whatever the size of the model. A GPU's memory receives whole tiles of rows. Tiles of a gated MLP
//! have rows of two tensors, whose tasks alternate, so that few tiles wait. A task has at least 32 rows: 4.7
//! MB for rows of 73,728 BF16 elements. Where memory is scarce, fewer threads run.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope};

use super::checkpoint::Tensor;
use super::convert;
use super::direct_file::ReadBuffer;
use super::error::LoadError;
use super::load_plan::{LoadPlan, MatrixPlan, RankPart, StoredMatrix, WeightForm};
use crate::device::cpu::{Quantizer, resize};
use crate::device::{Device, DeviceError, HostRows, MatrixData, MatrixShape};
use crate::machine::{self, MemoryLimit};

/// Bytes per task: few enough to stay in a CPU cache until they are packed, many enough for efficient disk
/// reads.
const TASK_BYTES: usize = 2 << 20;

/// Rows per task are a multiple of this, because devices pack that many rows together.
const ROWS: usize = 32;

/// Bytes that the system is asked to prefetch.
const PREFETCH_BYTES: usize = 64 << 20;

/// Inverse of the fraction of the available memory that buffers and stacks of the threads may take. By
/// default a server's memory plan leaves more than this fraction free.
const BUFFER_SHARE: u64 = 8;

/// Address space of a thread's stack.
const STACK_BYTES: u64 = 2 << 20;

/// If at least this many bytes of each row are needed by no rank, they are skipped and each row is read
/// separately.
const MAX_SKIPPED_BYTES: usize = 16 << 10;

/// Progress of loading.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadProgress<'a> {
    /// Bytes read and converted so far.
    pub done: u64,
    /// Bytes to read: those that the loaded ranks need, each counted once.
    pub total: u64,
    /// The tensor of the task that has just finished.
    pub tensor: &'a str,
}

/// Rows of a stored matrix, and the columns to read.
#[derive(Debug, Clone, PartialEq)]
struct ReadTask {
    /// Index into [`LoadPlan::sources`].
    source: usize,
    rows: Range<usize>,
    cols: Range<usize>,
}

/// The index of a task and the buffer that it was read into.
type FilledBuffer = (usize, ReadBuffer);

/// Scratch memory of a converting thread.
#[derive(Default)]
struct ConvertBuffers {
    halves: Vec<u16>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    row: Vec<f32>,
}

/// State shared by the threads.
struct Loader<'a, D: Device> {
    plan: &'a LoadPlan,
    tasks: &'a [ReadTask],
    devices: &'a [&'a D],
    /// The builder of each matrix, indexed by rank and then by matrix.
    builders: &'a [Vec<D::MatrixBuilder>],
    quantizer: Quantizer,
    next: AtomicUsize,
    stop: AtomicBool,
    /// The failed task with the lowest index, and its error.
    failure: Mutex<Option<(usize, LoadError)>>,
}

/// Reads and converts all matrices of the plan. Returns them by rank, then by matrix.
///
/// # Errors
/// The error of the failed task with the lowest index among those that were started.
pub(super) fn run<D: Device>(
    plan: &LoadPlan,
    devices: &[&D],
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Vec<Vec<D::Matrix>>, LoadError> {
    let shape = |matrix: &MatrixPlan| MatrixShape { out: matrix.out, input: matrix.input, bf16: matrix.bf16 };
    let begin = |device: &&D| {
        let matrices = plan.matrices.iter().enumerate();
        let matrices = matrices.map(|(index, matrix)| {
            device.begin_matrix(shape(matrix)).map_err(|error| no_matrix(plan, index, error))
        });
        matrices.collect::<Result<Vec<_>, LoadError>>()
    };
    let builders: Vec<Vec<D::MatrixBuilder>> = devices.iter().map(begin).collect::<Result<_, _>>()?;
    let tasks = tasks(&plan.sources);
    let loader = Loader {
        plan,
        tasks: &tasks,
        devices,
        builders: &builders,
        quantizer: Quantizer::new(),
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    loader.all(progress)?;
    let failure = loader.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = failure {
        return Err(error);
    }
    let matrices = builders.into_iter().zip(devices).map(|(builders, device)| {
        let finish = |builder| Ok(device.finish_matrix(builder)?);
        builders.into_iter().map(finish).collect::<Result<Vec<_>, LoadError>>()
    });
    matrices.collect()
}

/// Names the first tensor of a matrix that the device has no memory for.
fn no_matrix(plan: &LoadPlan, index: usize, error: DeviceError) -> LoadError {
    let of_matrix = |source: &&StoredMatrix| source.parts.iter().any(|part| part.matrix == index);
    match plan.sources.iter().find(of_matrix) {
        Some(source) => source.tensor.error(error.to_string()),
        None => error.into(),
    }
}

/// Number of reading threads: more than the cores of a small machine, so that a disk has many requests.
pub(crate) fn read_threads() -> usize {
    (2 * cores()).clamp(16, 64)
}

/// Numbers of reading and of converting threads, at least one of each. Their buffers and stacks take at most
/// [`BUFFER_SHARE`] of the memory that is left. `task` is the largest task in bytes.
fn threads(task: u64, limit: Option<MemoryLimit>) -> (usize, usize) {
    let most = limit.map_or(u64::MAX, |limit| limit.available() / BUFFER_SHARE);
    let fit = |each: u64, memory: u64| usize::try_from(memory / each).unwrap_or(usize::MAX);
    let task = task.max(TASK_BYTES as u64);
    // A converting thread has a converted task, a reading thread has two buffers.
    let converters = cores().min(64).min(fit(task + STACK_BYTES, most / 2)).max(1);
    let rest = most.saturating_sub(converters as u64 * (task + STACK_BYTES));
    let readers = read_threads().min(fit(2 * task + STACK_BYTES, rest)).max(1);
    (readers, converters)
}

/// Starts up to `count` threads. One is enough, since each works until nothing is left.
///
/// # Errors
/// The system starts none.
fn start<'scope, F: FnOnce() + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    mut job: impl FnMut() -> F,
) -> Result<(), LoadError> {
    for started in 0..count {
        match Builder::new().spawn_scoped(scope, job()) {
            Ok(_thread) => {}
            Err(_refused) if started > 0 => break,
            Err(error) => {
                let message = format!("cannot start a thread: {error}");
                return Err(DeviceError { op: "load", message }.into());
            }
        }
    }
    Ok(())
}

fn cores() -> usize {
    machine::cores()
}

/// The tasks that read everything the ranks need once, in the order of the files. Those of a gate and of the
/// values that it multiplies alternate.
fn tasks(sources: &[StoredMatrix]) -> Vec<ReadTask> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|source| {
        let tensor = &sources[*source].tensor;
        (tensor.path(), tensor.start)
    });
    let mut tasks = Vec::new();
    while !order.is_empty() {
        let first = order.remove(0);
        let first_tasks = cut(first, &sources[first]);
        match order.iter().position(|other| sources[first].alternates_with(&sources[*other])) {
            None => tasks.extend(first_tasks),
            Some(at) => {
                let second = order.remove(at);
                tasks.extend(alternating(first_tasks, cut(second, &sources[second])));
            }
        }
    }
    tasks
}

/// Elements of two lists in turn, and then the rest of the longer one.
fn alternating<T>(first: Vec<T>, second: Vec<T>) -> impl Iterator<Item = T> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    std::iter::from_fn(move || {
        let next = first.next().or_else(|| second.next());
        std::mem::swap(&mut first, &mut second);
        next
    })
}

/// Splits the rows that some rank needs into tasks.
fn cut(source: usize, stored: &StoredMatrix) -> Vec<ReadTask> {
    let StoredMatrix { tensor, form, parts } = stored;
    let [_, input] = tensor.shape[..] else { unreachable!("the plan has matrices only") };
    let width = width(tensor);
    let start = parts.iter().map(|part| part.cols.start).min().unwrap_or(0);
    let end = parts.iter().map(|part| part.cols.end).max().unwrap_or(0);
    // A quantisation scale needs the whole row.
    let whole = matches!(form, WeightForm::Quantised) || (input - (end - start)) * width < MAX_SKIPPED_BYTES;
    let cols = if whole { 0..input } else { start..end };
    let rows = (TASK_BYTES / (cols.len() * width).max(1) / ROWS * ROWS).max(ROWS);
    let tasks = wanted(parts).into_iter().flat_map(|wanted| {
        let starts = wanted.clone().step_by(rows);
        starts.map(move |start| start..wanted.end.min(start + rows))
    });
    tasks.map(|rows| ReadTask { source, rows, cols: cols.clone() }).collect()
}

/// The rows that some rank needs, as sorted, disjoint ranges.
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

    /// Whether the task's bytes are contiguous in the file.
    fn is_whole(&self, tensor: &Tensor) -> bool {
        self.cols.len() == tensor.shape[1]
    }

    /// Asks the system to prefetch the task, if it is contiguous. Otherwise the skipped bytes would be read
    /// too.
    fn prefetch(&self, plan: &LoadPlan) {
        let tensor = &plan.sources[self.source].tensor;
        if self.is_whole(tensor) {
            let row_bytes = (tensor.shape[1] * width(tensor)) as u64;
            tensor.prefetch(self.rows.start as u64 * row_bytes, self.rows.len() as u64 * row_bytes);
        }
    }

    /// Reads the task, row by row if it is not contiguous.
    fn read(&self, tensor: &Tensor, buffer: &mut ReadBuffer) -> Result<(), LoadError> {
        let width = width(tensor);
        let row_bytes = tensor.shape[1] * width;
        if self.is_whole(tensor) {
            let from = (self.rows.start * row_bytes) as u64;
            return tensor.read_once(from, self.rows.len() * row_bytes, buffer);
        }
        let each = self.cols.len() * width;
        let to = buffer.room(0..self.rows.len() * each).map_err(|error| tensor.error(error.to_string()))?;
        for (row, to) in self.rows.clone().zip(to.chunks_exact_mut(each)) {
            tensor.read((row * row_bytes + self.cols.start * width) as u64, to)?;
        }
        Ok(())
    }
}

impl<D: Device> Loader<'_, D> {
    /// Runs all tasks, or until one fails.
    ///
    /// # Errors
    /// The system starts no thread.
    fn all(&self, progress: &mut dyn FnMut(LoadProgress<'_>)) -> Result<(), LoadError> {
        let total = self.tasks.iter().map(|task| task.bytes(self.plan)).sum();
        let mut done = 0;
        let largest = self.tasks.iter().map(|task| task.bytes(self.plan)).max().unwrap_or_default();
        let (readers, converters) = threads(largest, machine::memory_limit().ok());
        let readers = readers.min(self.tasks.len());
        let (return_buffer, free) = flume::unbounded();
        // Two buffers per reading thread: one to read into, one waiting to be converted.
        (0..2 * readers)
            .for_each(|_| return_buffer.send(ReadBuffer::default()).expect("the receiver is in scope"));
        let (send_filled, filled) = flume::unbounded();
        let (report, reports) = flume::unbounded();
        std::thread::scope(|scope| {
            start(scope, readers, || {
                let (free, send_filled) = (free.clone(), send_filled.clone());
                move || self.read(&free, &send_filled)
            })?;
            start(scope, converters, || {
                let (filled, return_buffer, report) = (filled.clone(), return_buffer.clone(), report.clone());
                move || self.convert(&filled, &return_buffer, &report)
            })?;
            // Each channel closes when its last sending thread ends.
            drop((free, return_buffer, send_filled, filled, report));
            for index in reports {
                let task: &ReadTask = &self.tasks[index];
                done += task.bytes(self.plan);
                progress(LoadProgress { done, total, tensor: &self.plan.sources[task.source].tensor.name });
            }
            Ok(())
        })
    }

    /// Reads tasks into free buffers until no task is left or one fails.
    fn read(&self, free: &flume::Receiver<ReadBuffer>, send_filled: &flume::Sender<FilledBuffer>) {
        let ahead = PREFETCH_BYTES / TASK_BYTES;
        // The channel closes early if the converting threads have panicked.
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

    /// Converts filled buffers and reports their tasks. After a failure it only returns buffers.
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
            // Fails once all reading threads have ended.
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

    /// Converts a task and fills every rank's part of it.
    fn take(&self, task: &ReadTask, bytes: &[u8], scratch: &mut ConvertBuffers) -> Result<(), LoadError> {
        match &self.plan.sources[task.source].form {
            WeightForm::Codes(scales) => self.fill_stored_codes(task, scales, bytes),
            WeightForm::Quantised => self.quantise(task, bytes, scratch),
            WeightForm::Bf16 => self.fill_bf16(task, bytes, scratch),
        }
    }

    /// The parts that need rows of a task, with these rows.
    fn parts<'p>(&'p self, task: &'p ReadTask) -> impl Iterator<Item = (&'p RankPart, Range<usize>)> {
        self.plan.sources[task.source].parts.iter().filter_map(|part| {
            let rows = part.rows.start.max(task.rows.start)..part.rows.end.min(task.rows.end);
            (!rows.is_empty()).then_some((part, rows))
        })
    }

    /// Fills rows of a rank's matrix, starting with row `first` of the stored matrix.
    fn fill(&self, part: &RankPart, first: usize, rows: HostRows<'_>) -> Result<(), LoadError> {
        let builder = &self.builders[part.rank][part.matrix];
        for (run, to) in part.runs(first..first + rows.rows) {
            let rows = rows.slice(run.start - first..run.end - first);
            self.devices[part.rank].write_rows(builder, to, rows)?;
        }
        Ok(())
    }

    /// Fills stored E4M3 codes. `scales` has an entry for each row of the tensor.
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

    /// Fills a task's codes. `scales` returns the scales of a range of the tensor's rows.
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

    /// Quantises whole rows and fills them.
    fn quantise(&self, task: &ReadTask, bytes: &[u8], scratch: &mut ConvertBuffers) -> Result<(), LoadError> {
        let tensor = &self.plan.sources[task.source].tensor;
        let input = task.cols.len();
        let ConvertBuffers { codes, scales, row, .. } = scratch;
        let no_memory = |error: DeviceError| tensor.error(error.message);
        resize(codes, task.rows.len() * input).map_err(no_memory)?;
        resize(row, input).map_err(no_memory)?;
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

    /// Rounds each rank's part to BF16 and fills it.
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
            resize(halves, count * input).map_err(|error| tensor.error(error.message))?;
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
