//! The CUDA device: each operation launches the kernel of the same name in `kernels/`, or a few kernels.
//!
//! Each file here has one kernel's parameters, in the memory layout that the kernel reads, and its launch
//! configuration. Shapes are checked before anything is enqueued, since a kernel with a wrong shape would
//! access other requests' memory. Tests run the same launches on the host, with kernels compiled by g++
//! (`backend`).
#![allow(unsafe_code)]

mod activation;
mod activation_quantise;
mod add;
mod attention;
mod backend;
mod beside;
mod cublaslt_linear;
mod driver;
mod embed;
mod floats;
mod gather;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "host-kernels")]
mod host;
mod linear;
mod matrix;
mod norm;
mod packet_norm;
mod peers;
mod push;
mod random_weights;
mod reduce;
mod reduce_norm;
mod reward_head;
mod rope;
mod row;
mod sample;
mod select;
mod self_test;
mod step;
mod stream_read;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use backend::Launch;
pub use cublaslt_linear::Products;
use driver::{Buffer, Driver};
pub use floats::FloatMemory;
#[cfg(feature = "cuda")]
pub(crate) use gpu::library_loads;
#[cfg(feature = "cuda")]
pub use gpu::{Nccl, nccl_version};
pub use matrix::{Matrix, MatrixBuilder};
use peers::PeerRank;
pub use peers::Peers;
pub use reduce::{ReduceMode, Reduction};
pub use row::Acts;
pub use step::Step;
use step::StepTables;

use super::{
    ActQuant, Activation, AttentionLayer, BLOCK_TOKENS, CacheSpec, Device, DeviceError, EmbeddingTable,
    FloatType, Graph, HostRows, KvDtype, Layout, MatrixShape, Norm, QuantisedActivation, RandomWeights,
    RewardWeights, RowLogprob, SampleResult, SampleRow, SampleSource, StepCapacity, StepInputs,
};

/// Heads in the cache are padded to a multiple of this many elements, since the kernels are compiled for
/// those sizes.
const HEAD_DIM: usize = 64;

// The memory plan relies on these constants.
const _: () = {
    let Layout { outputs, head_dim, inputs, sample_row, sample_result, .. } = Layout::CUDA;
    assert!(outputs == matrix::TILE && head_dim == HEAD_DIM);
    assert!(inputs[0] == matrix::CHUNK && inputs[1] == matrix::CHUNK / 2 && Layout::CUDA.bf16 == 2);
    assert!(Layout::CUDA.acts[0] == row::ROWS && Layout::CUDA.acts[1] == row::COLS);
    assert!(Layout::CUDA.product_scratch == linear::SCRATCH_BYTES);
    assert!(sample_row == sample::ROW_BYTES && sample_result == sample::RESULT_BYTES);
    assert!(Layout::CUDA.mailbox == peers::MAILBOX_BYTES);
};

/// A GPU as a [`Device`], or its kernels on the host.
#[derive(Debug)]
pub struct Cuda {
    driver: Driver,
    scratch: Mutex<SharedScratch>,
    /// `None` if products must be deterministic.
    library_products: Option<Mutex<cublaslt_linear::LibraryProducts>>,
    beside: beside::Beside,
    /// This device's rank in each group that it belongs to.
    groups: Mutex<Vec<Weak<PeerRank>>>,
}

/// Memory that operations use one after the other. It grows while weights, buffers and the cache are
/// allocated.
#[derive(Debug, Default)]
struct SharedScratch {
    linear: linear::LinearScratch,
    attention: attention::AttentionScratch,
    sample: sample::SampleScratch,
    /// Row indices of `select`.
    rows: Option<Buffer<u32>>,
    rope: rope::RopeScratch,
}

/// Rows of floats on this device.
pub type Floats = super::Floats<Cuda>;

impl Floats {
    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.cols * Layout::CUDA.float_bytes(self.float_type)
    }

    /// Whether the elements are BF16, as a kernel's parameter.
    fn is_bf16(&self) -> u32 {
        u32::from(self.float_type == FloatType::Bf16)
    }
}

impl Cuda {
    fn with_driver(driver: Driver, products: Products) -> Self {
        let library_products = match products {
            Products::Deterministic => None,
            Products::Fastest { cache } => Some(Mutex::new(cublaslt_linear::LibraryProducts::new(cache))),
        };
        Self {
            driver,
            scratch: Mutex::default(),
            library_products,
            beside: beside::Beside::default(),
            groups: Mutex::default(),
        }
    }

    /// Free device memory in bytes.
    ///
    /// # Errors
    /// If the driver returns an error.
    pub fn free_memory(&self) -> Result<u64, DeviceError> {
        self.driver.backend().free_memory()
    }

    /// The GPU's PCI address in the form that NVIDIA's management library takes.
    ///
    /// # Errors
    /// If the kernels run on the host, or the driver returns an error.
    pub fn pci(&self) -> Result<String, DeviceError> {
        self.driver.backend().pci_address()
    }

    /// Reads `words` once, and then `times` more times, which are timed. Returns bytes per second and the XOR
    /// of all words.
    ///
    /// # Errors
    /// If memory runs out or the kernel fails.
    pub fn stream_read(&self, words: &[u32], times: usize) -> Result<(f64, u32), DeviceError> {
        stream_read::run(self, words, times)
    }

    /// Multiplies matrices of small integers by every product kernel, and compares each result with the
    /// exact one.
    ///
    /// # Errors
    /// If a result differs. The error names the kernel.
    pub fn self_test(&self) -> Result<(), DeviceError> {
        self_test::run(self)
    }

    /// Bytes of the weights, buffers, caches and scratch on this device.
    pub fn allocated(&self) -> u64 {
        self.driver.allocated()
    }

    /// The GPU's name.
    pub fn name(&self) -> String {
        self.driver.backend().name()
    }

    /// Makes a matrix of random weights in the device's own memory.
    ///
    /// # Errors
    /// If memory runs out or the kernel fails.
    pub fn random_weights(&self, weights: &RandomWeights<'_>) -> Result<Matrix, DeviceError> {
        self.with_scratch(random_weights::run(self, weights)?)
    }

    /// Makes a matrix of zeros to measure with. No library is measured for it.
    pub(crate) fn zeros(&self, shape: MatrixShape) -> Result<Matrix, DeviceError> {
        let matrix = MatrixBuilder::new(&self.driver, shape)?.finish()?;
        self.scratch().linear.grow(&self.driver, &matrix)?;
        Ok(matrix)
    }

    /// Returns the error of an operation that another rank did not reach. Such an operation itself
    /// ends without an error, so every call that waits for operations calls this function afterwards.
    fn check_peers(&self) -> Result<(), DeviceError> {
        locked(&self.groups).iter().filter_map(Weak::upgrade).try_for_each(|rank| rank.check())
    }

    /// Makes this device return the errors of a group's operations.
    fn join(&self, rank: &Arc<PeerRank>) {
        let mut groups = locked(&self.groups);
        groups.retain(|rank| rank.strong_count() > 0);
        groups.push(Arc::downgrade(rank));
    }

    /// Grows the scratch for products with a new matrix.
    fn with_scratch(&self, matrix: Matrix) -> Result<Matrix, DeviceError> {
        self.scratch().linear.grow(&self.driver, &matrix)?;
        if let Some(products) = &self.library_products {
            locked(products).add(&self.driver, &matrix)?;
        }
        Ok(matrix)
    }

    /// Computes a product by cuBLASLt, if that is faster. Returns whether it has.
    fn run_by_library(&self, x: &Acts, w: &Matrix, out: &mut Floats) -> Result<bool, DeviceError> {
        let Some(products) = self.library_products.as_ref().map(locked) else { return Ok(false) };
        let Some(algorithm) = products.choice(x, w, out) else { return Ok(false) };
        cublaslt_linear::run(self, &products, algorithm, x, w, out)?;
        Ok(true)
    }

    /// The scratch of operations, which run one at a time.
    fn scratch(&self) -> MutexGuard<'_, SharedScratch> {
        locked(&self.scratch)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A paged KV cache of all layers: \[layer\]\[block\]\[kv_head\]\[K: 64 × padded | V: padded × 64\].
#[derive(Debug)]
pub struct Cache {
    spec: CacheSpec,
    data: Buffer<u8>,
}

impl Cache {
    /// Elements of a cached head, padded to a size that the kernels are compiled for.
    fn padded(head_dim: usize) -> usize {
        head_dim.next_multiple_of(HEAD_DIM)
    }

    /// Bytes of a layer.
    fn layer_bytes(spec: &CacheSpec) -> usize {
        let element = if spec.dtype == KvDtype::Fp8 { 1 } else { 2 };
        spec.blocks * spec.heads.kv_heads * 2 * BLOCK_TOKENS * Self::padded(spec.heads.head_dim) * element
    }

    /// The address of a layer.
    fn layer(&self, layer: usize) -> u64 {
        assert!(layer < self.spec.layers, "layer {layer} of {}", self.spec.layers);
        self.data.at(layer * Self::layer_bytes(&self.spec))
    }
}

impl Device for Cuda {
    type Matrix = Matrix;
    type MatrixBuilder = MatrixBuilder;
    type FloatBuffer = FloatMemory;
    type Acts = Acts;
    type Cache = Cache;
    type Step = Step;

    const LAYOUT: Layout = Layout::CUDA;

    fn sibling(&self) -> Self {
        Self::with_driver(self.driver.clone(), Products::Deterministic)
    }

    fn begin_matrix(&self, shape: MatrixShape) -> Result<MatrixBuilder, DeviceError> {
        MatrixBuilder::new(&self.driver, shape)
    }

    fn write_rows(
        &self,
        builder: &MatrixBuilder,
        first: usize,
        rows: HostRows<'_>,
    ) -> Result<(), DeviceError> {
        builder.write(first, rows)
    }

    fn finish_matrix(&self, builder: MatrixBuilder) -> Result<Matrix, DeviceError> {
        self.with_scratch(builder.finish()?)
    }

    fn floats_of(&self, float_type: FloatType, rows: usize, cols: usize) -> Result<Floats, DeviceError> {
        let memory = FloatMemory::new(&self.driver, float_type, rows * cols)?;
        Ok(Floats::empty(float_type, rows, cols, memory))
    }

    fn acts(&self, rows: usize, cols: usize) -> Result<Acts, DeviceError> {
        Acts::new(&self.driver, rows, cols)
    }

    fn cache(&self, spec: CacheSpec) -> Result<Cache, DeviceError> {
        // The additional block is for padding rows.
        let spec = CacheSpec { blocks: spec.blocks + 1, ..spec };
        let data = self.driver.buffer(spec.layers * Cache::layer_bytes(&spec))?;
        let mut scratch = self.scratch();
        scratch.attention.fit_cache(&self.driver, &spec)?;
        scratch.rope.fit_cache(&self.driver, &spec)?;
        Ok(Cache { spec, data })
    }

    fn step(&self, capacity: StepCapacity) -> Result<Step, DeviceError> {
        let rows = capacity.rows;
        if let Some(products) = &self.library_products {
            cublaslt_linear::tune(self, &mut locked(products), rows)?;
        }
        let mut scratch = self.scratch();
        scratch.attention.fit_rows(&self.driver, rows)?;
        scratch.rope.fit_rows(&self.driver, rows)?;
        if scratch.rows.as_ref().is_none_or(|buffer| buffer.len() < rows) {
            scratch.rows = Some(self.driver.buffer(rows)?);
        }
        scratch.sample.fit(&self.driver, capacity)?;
        Step::new(&self.driver, capacity)
    }

    fn read(&self, floats: &Floats) -> Result<Vec<f32>, DeviceError> {
        let values = floats.data.read(floats.rows * floats.cols)?;
        self.check_peers()?;
        Ok(values)
    }

    fn write(&self, host: &[f32], floats: &mut Floats) -> Result<(), DeviceError> {
        assert_eq!(host.len() % floats.cols, 0, "whole rows of {}", floats.cols);
        floats.set_rows(host.len() / floats.cols);
        floats.data.write(host)
    }

    fn begin_step(&self, inputs: &StepInputs, step: &mut Step) -> Result<bool, DeviceError> {
        self.check_peers()?;
        step.tables.begin(inputs, self.scratch().attention.entries())?;
        // Decode rows whose splits do not fit in the scratch need the prefill kernel, which a graph does not
        // launch.
        Ok(step.tables.graph_rows > 0 && step.tables.prefills == 0)
    }

    fn capture(&self, operations: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        self.driver.backend().capture(operations)
    }

    fn beside(
        &self,
        number: usize,
        operations: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.run_beside(number, operations)
    }

    fn join(&self, number: usize) -> Result<(), DeviceError> {
        self.join_batch(number)
    }

    fn embed(
        &self,
        step: &Step,
        table: EmbeddingTable<'_, Matrix>,
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        embed::run(self, step, table, out)
    }

    fn norm(
        &self,
        residual: &mut Floats,
        delta: Option<&Floats>,
        norm: &Norm<Self>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        norm::run(self, residual, delta, norm, quant, out)
    }

    fn linear(&self, x: &Acts, w: &Matrix, out: &mut Floats) -> Result<(), DeviceError> {
        match self.run_by_library(x, w, out)? {
            true => Ok(()),
            false => linear::run(self, x, w, out),
        }
    }

    fn attention(
        &self,
        step: &Step,
        layer: AttentionLayer<'_>,
        qkv: &mut Floats,
        cache: &mut Cache,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let (step, AttentionLayer { rope, kv, quant }) = (&step.tables, layer);
        let queries = rope::run(self, rope::RopeInputs { step, rope, kv }, qkv, cache)?;
        attention::run(self, attention::AttentionInputs { step, queries, kv, cache, quant }, out)
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

    fn linear_activation(
        &self,
        x: &Acts,
        w: &Matrix,
        activation: QuantisedActivation,
        h: &mut Floats,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let QuantisedActivation { kind, quant } = activation;
        if !activation_quantise::fits(x, w, activation, h) {
            self.linear(x, w, h)?;
        } else if !self.run_by_library(x, w, h)? {
            return activation_quantise::run(self, x, w, kind, h, out);
        }
        activation::run(self, kind, h, quant, out)
    }

    fn add(&self, parts: &[Floats], x: &mut Floats) -> Result<(), DeviceError> {
        add::run(self, parts, x)
    }

    fn select(&self, from: &Floats, rows: &[u32], out: &mut Floats, first: usize) -> Result<(), DeviceError> {
        select::run(self, from, rows, out, first)
    }

    fn reward_head(
        &self,
        hidden: &Floats,
        norm: &Norm<Self>,
        head: &RewardWeights<Self>,
        out: &mut Floats,
    ) -> Result<(), DeviceError> {
        reward_head::run(self, hidden, norm, head, out)
    }

    fn sample(
        &self,
        source: SampleSource<'_, Self>,
        rows: &[SampleRow<'_>],
        step: &mut Step,
    ) -> Result<(), DeviceError> {
        let sampled = &mut step.sampled;
        match source {
            SampleSource::Logits { logits, vocab } => sample::run(self, logits, vocab, rows, sampled),
            SampleSource::Shortlists(shortlists) => sample::pick(self, shortlists, rows, sampled),
        }
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

    fn take_sampled(&self, step: &mut Step) -> Result<Vec<SampleResult>, DeviceError> {
        let results = step.sampled.take()?;
        self.check_peers()?;
        Ok(results)
    }

    fn is_idle(&self) -> Result<bool, DeviceError> {
        self.driver.backend().is_idle()
    }

    fn score(
        &self,
        logits: &Floats,
        vocab: usize,
        targets: &[u32],
        top: u8,
    ) -> Result<Vec<Option<RowLogprob>>, DeviceError> {
        let scores = sample::score(self, logits, vocab, targets, top)?;
        self.check_peers()?;
        Ok(scores)
    }
}
