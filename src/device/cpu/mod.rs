//! The CPU device: the reference for other devices, and always available.
//!
//! Loading packs weights into panels of 32 output features. The lanes of a vector are outputs and the input
//! is broadcast, so that the order of a sum does not depend on the number of rows. Elementwise operations
//! are plain loops, compiled for each instruction set. The threads of a pool share each operation.
#![allow(unsafe_code)]

mod activation;
mod allocated;
mod attention;
mod cache;
#[cfg(target_arch = "x86_64")]
mod e4m3;
mod embed;
mod exp;
mod isa;
mod linear;
mod matrix;
mod matrix_builder;
mod norm;
mod parts;
mod peak;
mod philox;
mod pool;
mod quant;
mod quantizer;
mod reward_head;
mod rope;
mod sample;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use isa::Isa;

use super::{
    ActQuant, Activation, AttentionLayer, BLOCK_TOKENS, CacheSpec, Device, DeviceError, EmbeddingTable,
    FloatType, Graph, HostRows, Layout, MatrixShape, Norm, RewardWeights, RowLogprob, SampleResult,
    SampleRow, SampleSource, Segment, StepCapacity, StepInputs,
};
use isa::DetectedIsa;
use parts::Parts;
use pool::ThreadPool;

pub(crate) use allocated::{release_freed_memory, resize, use_one_malloc_arena, zeros};
pub use cache::Cache;
pub use matrix::Matrix;
pub use matrix_builder::MatrixBuilder;
pub(crate) use matrix_builder::zeros_in_huge_pages;
pub use peak::PeakRates;
pub(crate) use quantizer::Quantizer;

// The memory plan uses these constants.
const _: () = assert!(Layout::CPU.outputs == matrix::PANEL && Layout::CPU.step[1] == 8 + size_of::<Tile>());

/// The most elements that an elementwise operation computes on the calling thread alone: a few microseconds
/// of work.
const SERIAL_ELEMENTS: usize = 8192;

/// Options of the CPU device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads per operation; 0 counts as 1.
    pub threads: usize,
    /// Instruction set; `None` selects the best one of this machine.
    pub isa: Option<Isa>,
    /// Whether AVX-512 computes products of more than two rows as dot products of BF16 pairs, or by F32
    /// multiply-adds, which round alike; `None` selects the faster way of this processor.
    pub pairs: Option<bool>,
}

/// A CPU as a [`Device`].
#[derive(Debug)]
pub struct Cpu {
    pool: Arc<ThreadPool>,
    isa: DetectedIsa,
    /// Products of any number of rows are dot products of BF16 pairs, if the instruction set is AVX-512.
    pairs: bool,
    /// Scratch memory of each thread. It grows when buffers and caches are allocated, so that steps need not
    /// allocate it.
    scratch: Vec<Mutex<ThreadScratch>>,
    /// Output of attention before quantisation, which needs whole rows. Grows like `scratch`.
    stage: Mutex<Vec<f32>>,
    /// Bytes allocated so far, without scratch memory.
    allocated: AtomicU64,
}

/// Scratch memory of one thread.
#[derive(Debug, Default)]
struct ThreadScratch {
    /// Decoded weights and sums of a matrix product.
    product: Vec<f32>,
    /// K and V of a block in F32, and the state of a tile's queries; see [`attention::scratch_floats`].
    kv: Vec<f32>,
    /// A row before it is quantised, or a row of logits being sampled.
    row: Vec<f32>,
    /// Candidates for the sampled token: logit and id. Has room for the whole vocabulary.
    candidates: Vec<(f32, u32)>,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// This machine does not support the requested instruction set, or refuses to start a thread.
    pub fn new(options: CpuOptions) -> Result<Self, DeviceError> {
        let best = Isa::available()[0];
        let isa = DetectedIsa::new(options.isa.unwrap_or(best)).ok_or_else(|| DeviceError {
            op: "cpu",
            message: format!("this machine supports {:?}, not {:?}", Isa::available(), options.isa),
        })?;
        let threads = options.threads.max(1);
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        let refused = |error: std::io::Error| DeviceError {
            op: "cpu",
            message: format!("cannot start {threads} threads: {error}"),
        };
        Ok(Self {
            pool: Arc::new(ThreadPool::new(threads).map_err(refused)?),
            isa,
            pairs: options.pairs.unwrap_or_else(linear::pairs_are_fast),
            scratch,
            stage: Mutex::default(),
            allocated: AtomicU64::new(0),
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Whether AVX-512 computes products of any number of rows as dot products of BF16 pairs.
    pub fn pairs(&self) -> bool {
        self.pairs
    }

    /// Threads per operation.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Splits the rows among the threads and calls `job(range, scratch)` on each, with scratch memory of at
    /// least `cols` floats. The calling thread does a small amount of work alone, since waking the others
    /// costs more.
    fn split_rows(&self, rows: usize, cols: usize, job: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        if rows * cols <= SERIAL_ELEMENTS {
            return job(0..rows, &mut self.scratch(0).row);
        }
        self.pool.split(rows, |thread, range| job(range, &mut self.scratch(thread).row));
    }

    fn stage(&self) -> MutexGuard<'_, Vec<f32>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scratch memory of one thread. The lock is free, since only that thread takes it during an
    /// operation.
    fn scratch(&self, thread: usize) -> MutexGuard<'_, ThreadScratch> {
        self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Buffers of rows of floats on the CPU device. BF16 elements are kept as F32.
pub type Floats = super::Floats<Cpu>;

impl Floats {
    /// The valid rows.
    fn valid(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.data[row * self.cols..][..self.cols]
    }

    /// Sets the number of valid rows and returns them for writing.
    fn resize(&mut self, rows: usize) -> &mut [f32] {
        self.set_rows(rows);
        &mut self.data[..rows * self.cols]
    }

    /// Rounds the first elements to the buffer's type.
    fn round(&mut self, elements: usize) {
        let float_type = self.float_type;
        if float_type != FloatType::F32 {
            self.data[..elements].iter_mut().for_each(|x| *x = float_type.round(*x));
        }
    }
}

/// Inputs of products \[rows, cols\] with a scale per row. Values are BF16, which represents E4M3 exactly.
#[derive(Debug)]
pub struct Acts {
    rows: usize,
    cols: usize,
    /// BF16 bit patterns, for dot products of pairs.
    values: Vec<u16>,
    /// The same values in F32, for multiply-adds.
    floats: Vec<f32>,
    scales: Vec<f32>,
}

impl Acts {
    /// Sets the number of valid rows and returns their values, floats and scales for writing.
    fn resize(&mut self, rows: usize) -> (&mut [u16], &mut [f32], &mut [f32]) {
        let size = rows * self.cols;
        assert!(size <= self.values.len(), "{rows} rows of {} do not fit the buffer", self.cols);
        self.rows = rows;
        (&mut self.values[..size], &mut self.floats[..size], &mut self.scales[..rows])
    }
}

/// Tokens sampled last, and results of sampling that have not been taken.
#[derive(Debug)]
struct Sampled {
    /// The token sampled last for each slot.
    last: Vec<u32>,
    /// Results of each call of [`Device::sample`], oldest first.
    pending: VecDeque<Vec<SampleResult>>,
}

/// The inputs of the current step, with tables derived from them, and the results of sampling.
#[derive(Debug)]
pub struct Step {
    inputs: StepInputs,
    /// The position of each row.
    positions: Vec<u32>,
    /// The cache block of each row's position.
    blocks: Vec<u32>,
    /// The tiles of all segments, in row order.
    tiles: Vec<Tile>,
    max_rows: usize,
    sampled: Sampled,
}

/// Up to [`attention::TILE`] rows of one segment.
#[derive(Debug)]
struct Tile {
    segment: usize,
    first: usize,
    len: usize,
}

impl Step {
    /// The cache block of a row's position.
    fn block(&self, row: usize) -> usize {
        self.blocks[row] as usize
    }

    /// Appends the rows of the segment with this index.
    fn add(&mut self, index: usize, segment: &Segment) {
        assert_eq!(segment.first, self.positions.len(), "segments must follow one another");
        for position in segment.position..segment.position + segment.len {
            self.positions.push(position as u32);
            self.blocks.push(segment.blocks[position / BLOCK_TOKENS]);
        }
        for start in (0..segment.len).step_by(attention::TILE) {
            let len = attention::TILE.min(segment.len - start);
            self.tiles.push(Tile { segment: index, first: segment.first + start, len });
        }
    }
}

impl Device for Cpu {
    type Matrix = Matrix;
    type MatrixBuilder = MatrixBuilder;
    type FloatBuffer = Vec<f32>;
    type Acts = Acts;
    type Cache = Cache;
    type Step = Step;

    const LAYOUT: Layout = Layout::CPU;

    fn sibling(&self) -> Self {
        Self {
            pool: Arc::clone(&self.pool),
            isa: self.isa,
            pairs: self.pairs,
            scratch: self.scratch.iter().map(|_| Mutex::default()).collect(),
            stage: Mutex::default(),
            allocated: AtomicU64::new(0),
        }
    }

    fn begin_matrix(&self, shape: MatrixShape) -> Result<MatrixBuilder, DeviceError> {
        MatrixBuilder::new(shape, self.isa.isa())
    }

    fn write_rows(
        &self,
        builder: &MatrixBuilder,
        first: usize,
        rows: HostRows<'_>,
    ) -> Result<(), DeviceError> {
        builder.write(first, rows);
        Ok(())
    }

    fn finish_matrix(&self, builder: MatrixBuilder) -> Result<Matrix, DeviceError> {
        Ok(self.counted(builder.finish()))
    }

    fn floats_of(&self, float_type: FloatType, rows: usize, cols: usize) -> Result<Floats, DeviceError> {
        self.grow(|scratch| &mut scratch.row, cols)?;
        self.grow(|scratch| &mut scratch.product, linear::scratch_floats(rows))?;
        Ok(Floats::empty(float_type, rows, cols, self.zeros(rows.saturating_mul(cols))?))
    }

    fn acts(&self, rows: usize, cols: usize) -> Result<Acts, DeviceError> {
        self.grow(|scratch| &mut scratch.row, cols)?;
        let size = rows.saturating_mul(cols);
        self.grow_stage(size)?;
        let (values, floats) = (self.zeros(size)?, self.zeros(size)?);
        let mut scales = self.zeros(rows)?;
        scales.fill(1.0);
        Ok(Acts { rows: 0, cols, values, floats, scales })
    }

    fn cache(&self, spec: CacheSpec) -> Result<Cache, DeviceError> {
        self.grow(|scratch| &mut scratch.kv, attention::scratch_floats(spec.heads))?;
        let cache = Cache::new(spec)?;
        self.count_bytes(cache.bytes());
        Ok(cache)
    }

    fn step(&self, capacity: StepCapacity) -> Result<Step, DeviceError> {
        let StepCapacity { rows, slots, vocab, .. } = capacity;
        let (positions, blocks, tiles) = (self.room(rows)?, self.room(rows)?, self.room(rows)?);
        self.reserve_candidates(vocab)?;
        let sampled = Sampled { last: self.zeros(slots)?, pending: VecDeque::new() };
        Ok(Step { inputs: StepInputs::default(), positions, blocks, tiles, max_rows: rows, sampled })
    }

    fn begin_step(&self, inputs: &StepInputs, step: &mut Step) -> Result<bool, DeviceError> {
        let rows = inputs.tokens.len();
        assert!(rows <= step.max_rows, "{rows} rows exceed the {} of the buffers", step.max_rows);
        step.positions.clear();
        step.blocks.clear();
        step.tiles.clear();
        for (index, segment) in inputs.segments.iter().enumerate() {
            step.add(index, segment);
        }
        assert_eq!(step.positions.len(), rows, "segments must cover the rows");
        step.inputs.clone_from(inputs);
        Ok(false)
    }

    fn capture(
        &self,
        _operations: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        Err(DeviceError { op: "capture", message: "the CPU device does not capture".to_owned() })
    }

    fn embed(
        &self,
        step: &Step,
        table: EmbeddingTable<'_, Matrix>,
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        embed::run(&self.pool, step, table, out);
        Ok(())
    }

    fn norm(
        &self,
        residual: &mut Floats,
        delta: Option<&Floats>,
        norm: &Norm<Self>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        norm::run(self, residual, delta, norm, quant, out);
        Ok(())
    }

    fn linear(&self, x: &Acts, w: &Matrix, out: &mut Floats) -> Result<(), DeviceError> {
        linear::run(self, x, w, out);
        Ok(())
    }

    fn attention(
        &self,
        step: &Step,
        layer: AttentionLayer<'_>,
        qkv: &mut Floats,
        cache: &mut Cache,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let AttentionLayer { rope, kv, quant } = layer;
        rope::run(self, rope::RopeInputs { step, rope, kv }, qkv, cache);
        attention::run(self, attention::AttentionInputs { step, qkv, kv, cache, quant }, out);
        Ok(())
    }

    fn activation(
        &self,
        kind: Activation,
        h: &Floats,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        activation::run(self, kind, h, quant, out);
        Ok(())
    }

    fn select(&self, from: &Floats, rows: &[u32], out: &mut Floats, first: usize) -> Result<(), DeviceError> {
        let cols = from.cols;
        let target = &mut out.resize(first + rows.len())[first * cols..];
        for (row, target) in rows.iter().zip(target.chunks_exact_mut(cols)) {
            target.copy_from_slice(from.row(*row as usize));
        }
        Ok(())
    }

    fn reward_head(
        &self,
        hidden: &Floats,
        norm: &Norm<Self>,
        head: &RewardWeights<Self>,
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        reward_head::run(self, hidden, norm, head, out);
        Ok(())
    }

    fn sample(
        &self,
        source: SampleSource<'_, Self>,
        rows: &[SampleRow<'_>],
        step: &mut Step,
    ) -> Result<(), DeviceError> {
        let sampled = &mut step.sampled;
        match source {
            SampleSource::Logits { logits, vocab } => sample::from_logits(self, logits, vocab, rows, sampled),
            SampleSource::Shortlists(shortlists) => sample::from_shortlists(self, shortlists, rows, sampled),
        }
        Ok(())
    }

    fn shortlist(
        &self,
        logits: &Floats,
        ids: Range<u32>,
        rows: &[SampleRow<'_>],
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        sample::shortlist(self, logits, &ids, rows, out);
        Ok(())
    }

    fn take_sampled(&self, step: &mut Step) -> Result<Vec<SampleResult>, DeviceError> {
        Ok(step.sampled.pending.pop_front().expect("a result of sampling that has not been taken"))
    }

    fn is_idle(&self) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn score(
        &self,
        logits: &Floats,
        vocab: usize,
        targets: &[u32],
        top: u8,
    ) -> Result<Vec<Option<RowLogprob>>, DeviceError> {
        Ok(sample::score(self, logits, vocab, targets, top))
    }

    fn add(&self, parts: &[Floats], x: &mut Floats) -> Result<(), DeviceError> {
        let elements = x.rows * x.cols;
        for part in parts {
            let whole = &part.data[..elements];
            x.data[..elements].iter_mut().zip(whole).for_each(|(x, part)| *x += part);
        }
        x.round(elements);
        Ok(())
    }

    fn read(&self, floats: &Floats) -> Result<Vec<f32>, DeviceError> {
        let mut values = zeros(floats.valid().len())?;
        values.copy_from_slice(floats.valid());
        Ok(values)
    }

    fn write(&self, host: &[f32], floats: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(host.len() % floats.cols, 0, "the values must be whole rows of {}", floats.cols);
        floats.resize(host.len() / floats.cols).copy_from_slice(host);
        floats.round(host.len());
        Ok(())
    }
}
