//! The CUDA device: each operation is one launch, or a few, of a kernel of `kernels/` with the same name.
//!
//! A file here holds a kernel's parameters, laid out as the kernel has them, and decides the launch. Shapes are checked
//! before anything is enqueued, since a kernel that is wrong about one reads other requests' memory. The same launches
//! run on the host for tests, where the kernels are compiled by g++ (`driver`).
#![allow(unsafe_code)]

mod activation;
mod add;
mod attention;
#[cfg(feature = "cuda")]
mod cublaslt;
mod cublaslt_linear;
mod driver;
mod embed;
mod gather;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "host-kernels")]
mod host;
mod linear;
mod matrix;
#[cfg(feature = "cuda")]
mod nccl;
mod norm;
mod peers;
#[cfg(feature = "cuda")]
mod pinned;
mod random_weights;
mod reduce;
mod reduce_norm;
mod rope;
mod row;
mod sample;
mod select;
mod step;
mod stream_read;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cublaslt_linear::Products;
use driver::{Buffer, Driver, Launch};
#[cfg(feature = "cuda")]
pub use gpu::library_loads;
pub use matrix::{Filling, Matrix};
#[cfg(feature = "cuda")]
pub use nccl::{Nccl, nccl_version};
pub use peers::{Missed, Peers};
pub use reduce::Rows;
pub use reduce_norm::Reduction;
pub use row::Acts;
pub use sample::Sampled;
pub use step::Step;

use super::{
    ActQuant, Activation, BLOCK_TOKENS, CacheSpec, Cached, Device, DeviceError, Draw, DrawRoom, HostMatrix,
    HostRows, KvDtype, LayerKv, Layout, Norm, RandomWeights, Rope, RowLogprob, SampleRow, StepInputs, Table,
};

/// Heads are cached in multiples of so many elements, which the kernels are compiled for.
const HEAD_DIM: usize = 64;

// The memory plan counts with these.
const _: () = {
    let Layout { outputs, head_dim, product_scratch, product_tiles, draw_row, draw_result, .. } =
        Layout::CUDA;
    assert!(outputs == matrix::TILE && head_dim == HEAD_DIM);
    assert!(
        product_scratch == 4 * Layout::CUDA.pass_rows
            && product_scratch == linear::SCRATCH_BYTES
            && product_tiles == linear::CTAS
    );
    assert!(draw_row == sample::ROW_BYTES && draw_result == sample::RESULT_BYTES);
    assert!(Layout::CUDA.mailbox == peers::MAILBOX_BYTES);
};

/// A GPU, or its stand-in on the host, as a [`Device`].
#[derive(Debug)]
pub struct Cuda {
    driver: Driver,
    scratch: Mutex<Scratch>,
    /// Unless products are to be deterministic.
    large: Option<Mutex<cublaslt_linear::Large>>,
}

/// Memory that operations use one after the other, grown while weights, buffers and the cache are made.
#[derive(Debug, Default)]
struct Scratch {
    product: linear::Scratch,
    attention: attention::Scratch,
    sample: sample::Scratch,
    /// The rows of a `select`.
    rows: Option<Buffer<u32>>,
    /// The inverse frequencies that were used last, since every layer has the same.
    inv_freq: Option<(Vec<f32>, Buffer<f32>)>,
}

impl Cuda {
    fn over(driver: Driver, products: Products) -> Self {
        let large = match products {
            Products::Deterministic => None,
            Products::Fastest { cache } => Some(Mutex::new(cublaslt_linear::Large::new(cache))),
        };
        Self { driver, scratch: Mutex::default(), large }
    }

    /// Opens a GPU of compute capability 9.0, by its number.
    ///
    /// # Errors
    /// Where there is no driver, no such GPU, or another kind of GPU.
    #[cfg(feature = "cuda")]
    pub fn new(ordinal: usize, products: Products) -> Result<Self, DeviceError> {
        Ok(Self::over(Driver::gpu(ordinal, products != Products::Deterministic)?, products))
    }

    /// The kernels on the host, for tests: slow, and exact about who waits for whom. `descending` says in which order
    /// the threads of a block start.
    ///
    /// # Errors
    /// If the library of the kernels cannot be loaded.
    #[cfg(feature = "host-kernels")]
    pub fn on_host(descending: bool, products: Products) -> Result<Self, DeviceError> {
        Ok(Self::over(Driver::host(descending)?, products))
    }

    /// Bytes of device memory that nobody uses.
    ///
    /// # Errors
    /// If the device does not answer.
    #[cfg(feature = "cuda")]
    pub fn free_memory(&self) -> Result<u64, DeviceError> {
        self.driver.free_memory()
    }

    /// The GPU's PCI address, as NVIDIA's management library takes it.
    ///
    /// # Errors
    /// If the driver does not tell.
    #[cfg(feature = "cuda")]
    pub fn pci(&self) -> Result<String, DeviceError> {
        self.driver.pci()
    }

    /// Reads `words` once to check, then `times` times against the clock: bytes per second, and their bitwise sum.
    ///
    /// # Errors
    /// If memory runs out, or the kernel fails.
    pub fn stream_read(&self, words: &[u32], times: usize) -> Result<(f64, u32), DeviceError> {
        stream_read::run(self, words, times)
    }

    /// Bytes of weights, buffers, caches and scratch that this device has made and that are still there.
    pub fn allocated(&self) -> u64 {
        self.driver.allocated()
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        self.driver.name()
    }

    /// Makes room for products with a matrix.
    fn noted(&self, matrix: Matrix) -> Result<Matrix, DeviceError> {
        self.scratch().product.grow(&self.driver, &matrix)?;
        if let Some(large) = &self.large {
            locked(large).add(&self.driver, &matrix)?;
        }
        Ok(matrix)
    }

    /// The memory that operations share. One runs at a time.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        locked(&self.scratch)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Floats \[rows, cols\], row-major.
#[derive(Debug)]
pub struct Floats {
    rows: usize,
    cols: usize,
    data: Buffer<f32>,
}

impl Floats {
    /// Sets the row count; the rows are about to be written.
    fn resize(&mut self, rows: usize) {
        assert!(rows * self.cols <= self.data.len(), "{rows} rows of {} do not fit the buffer", self.cols);
        self.rows = rows;
    }
}

/// A paged KV cache for all layers: \[layer\]\[block\]\[kv_head\]\[K: 64 × padded | V: padded × 64\].
#[derive(Debug)]
pub struct Cache {
    spec: CacheSpec,
    data: Buffer<u8>,
}

impl Cache {
    /// Elements per head as they are stored: what the kernels are compiled for.
    fn padded(head_dim: usize) -> usize {
        head_dim.next_multiple_of(HEAD_DIM)
    }

    /// Bytes of a layer.
    fn layer_bytes(spec: &CacheSpec) -> usize {
        let element = if spec.dtype == KvDtype::Fp8 { 1 } else { 2 };
        spec.blocks * spec.heads.kv_heads * 2 * BLOCK_TOKENS * Self::padded(spec.heads.head_dim) * element
    }

    /// Where a layer begins.
    fn layer(&self, layer: usize) -> u64 {
        assert!(layer < self.spec.layers, "layer {layer} of {}", self.spec.layers);
        self.data.at(layer * Self::layer_bytes(&self.spec))
    }
}

impl Device for Cuda {
    type Matrix = Matrix;
    type Filling = Filling;
    type Vector = Buffer<f32>;
    type Floats = Floats;
    type Acts = Acts;
    type Cache = Cache;
    type Step = Step;
    type Sampled = Sampled;
    type Recording = driver::Recording;

    const CAPTURES: bool = true;
    const LAYOUT: Layout = Layout::CUDA;

    fn matrix(&self, host: HostMatrix<'_>) -> Result<Matrix, DeviceError> {
        self.noted(Matrix::pack(&self.driver, host)?)
    }

    fn filling(&self, out: usize, input: usize, bf16: bool) -> Result<Filling, DeviceError> {
        Filling::new(&self.driver, (out, input), bf16)
    }

    fn fill(&self, filling: &Filling, first: usize, rows: HostRows<'_>) -> Result<(), DeviceError> {
        filling.put(first, rows)
    }

    fn filled(&self, filling: Filling) -> Result<Matrix, DeviceError> {
        self.noted(filling.done()?)
    }

    fn random_weights(&self, noise: &RandomWeights<'_>) -> Result<Matrix, DeviceError> {
        self.noted(random_weights::run(self, noise)?)
    }

    fn vector(&self, host: &[f32]) -> Result<Buffer<f32>, DeviceError> {
        let buffer = self.driver.buffer(host.len())?;
        buffer.write(0, host)?;
        Ok(buffer)
    }

    fn floats(&self, rows: usize, cols: usize) -> Result<Floats, DeviceError> {
        Ok(Floats { rows: 0, cols, data: self.driver.buffer(rows * cols)? })
    }

    fn acts(&self, rows: usize, cols: usize) -> Result<Acts, DeviceError> {
        Acts::new(&self.driver, rows, cols)
    }

    fn cache(&self, spec: CacheSpec) -> Result<Cache, DeviceError> {
        // One block more than anyone leases: that of rows that are nobody's.
        let spec = CacheSpec { blocks: spec.blocks + 1, ..spec };
        let data = self.driver.buffer(spec.layers * Cache::layer_bytes(&spec))?;
        let mut scratch = self.scratch();
        scratch.attention.fit_cache(&self.driver, &spec)?;
        let frequencies = spec.heads.head_dim / 2;
        if scratch.inv_freq.as_ref().is_none_or(|(_, buffer)| buffer.len() < frequencies) {
            scratch.inv_freq = Some((Vec::new(), self.driver.buffer(frequencies)?));
        }
        Ok(Cache { spec, data })
    }

    fn step(&self, rows: usize, max_positions: usize) -> Result<Step, DeviceError> {
        if let Some(large) = &self.large {
            cublaslt_linear::tune(self, &mut locked(large), rows)?;
        }
        let mut scratch = self.scratch();
        scratch.attention.fit_rows(&self.driver, rows)?;
        if scratch.rows.as_ref().is_none_or(|buffer| buffer.len() < rows) {
            scratch.rows = Some(self.driver.buffer(rows)?);
        }
        Step::new(&self.driver, rows, max_positions)
    }

    fn draws(&self, slots: usize, room: DrawRoom) -> Result<Sampled, DeviceError> {
        self.scratch().sample.fit(&self.driver, room)?;
        Sampled::new(&self.driver, slots, room)
    }

    fn begin(&self, inputs: &StepInputs, step: &mut Step) -> Result<(), DeviceError> {
        step.begin(inputs, self.scratch().attention.entries())
    }

    fn record(
        &self,
        operations: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<driver::Recording, DeviceError> {
        self.driver.record(operations)
    }

    fn repeat(&self, recording: &driver::Recording, step: &Step) -> Result<bool, DeviceError> {
        // Rows that found no room for their splits are attended to by a launch that was not recorded.
        if step.prefills > 0 {
            return Ok(false);
        }
        self.driver.repeat(recording).map(|()| true)
    }

    fn written(&self, floats: &mut Floats, rows: usize) {
        floats.resize(rows);
    }

    fn embed(
        &self,
        step: &Step,
        table: Table<'_, Matrix>,
        draws: &Sampled,
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        embed::run(self, step, table, draws, out)
    }

    fn norm(
        &self,
        residual: &mut Floats,
        delta: Option<&Floats>,
        norm: &Norm<Buffer<f32>>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        norm::run(self, residual, delta, norm, quant, out)
    }

    fn linear(&self, x: &Acts, w: &Matrix, out: &mut Floats) -> Result<(), DeviceError> {
        if let Some(large) = self.large.as_ref().map(locked)
            && let Some(algorithm) = large.choice(x, w)
        {
            return cublaslt_linear::run(self, &large, algorithm, x, w, out);
        }
        linear::run(self, x, w, out)
    }

    fn rope(
        &self,
        step: &Step,
        rope: &Rope,
        kv: LayerKv,
        qkv: &mut Floats,
        cache: &mut Cache,
    ) -> Result<(), DeviceError> {
        rope::run(self, rope::Job { step, rope, kv }, qkv, cache)
    }

    fn attention(
        &self,
        step: &Step,
        qkv: &Floats,
        cached: Cached<'_, Cache>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        attention::run(self, attention::Job { step, qkv, cached, quant }, out)
    }

    fn activation(
        &self,
        kind: Activation,
        h: &Floats,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        activation::run(self, kind, h, quant, out)
    }

    fn select(&self, residual: &Floats, rows: &[u32], out: &mut Floats) -> Result<(), DeviceError> {
        select::run(self, residual, rows, out)
    }

    fn sample(
        &self,
        logits: &Floats,
        vocab: usize,
        rows: &[SampleRow<'_>],
        draws: &mut Sampled,
    ) -> Result<(), DeviceError> {
        sample::run(self, logits, vocab, rows, draws)
    }

    fn shortlist(
        &self,
        logits: &Floats,
        ids: Range<u32>,
        rows: &[SampleRow<'_>],
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        sample::shortlist(self, logits, ids, rows, out)
    }

    fn pick(
        &self,
        shortlists: &Floats,
        rows: &[SampleRow<'_>],
        draws: &mut Sampled,
    ) -> Result<(), DeviceError> {
        sample::pick(self, shortlists, rows, draws)
    }

    fn take_sampled(&self, draws: &mut Sampled) -> Result<Vec<Draw>, DeviceError> {
        sample::take_sampled(draws)
    }

    fn score(
        &self,
        logits: &Floats,
        vocab: usize,
        targets: &[u32],
        top: u8,
    ) -> Result<Vec<Option<RowLogprob>>, DeviceError> {
        sample::score(self, logits, vocab, targets, top)
    }

    fn add(&self, parts: &[Floats], x: &mut Floats) -> Result<(), DeviceError> {
        add::run(self, parts, x)
    }

    fn rows(&self, floats: &Floats) -> usize {
        floats.rows
    }

    fn cols(&self, floats: &Floats) -> usize {
        floats.cols
    }

    fn read(&self, floats: &Floats) -> Result<Vec<f32>, DeviceError> {
        floats.data.read(floats.rows * floats.cols)
    }

    fn write(&self, host: &[f32], floats: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(host.len() % floats.cols, 0, "whole rows of {}", floats.cols);
        floats.resize(host.len() / floats.cols);
        floats.data.write(0, host)
    }
}
