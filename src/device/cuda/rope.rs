//! `kernels/rope.cu`.

use super::{Buffer, Cache, Cuda, Driver, Floats, Launch, StepTables};
use crate::device::{CacheSpec, DeviceError, KvDtype, LayerKv, Rope};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RopeParams {
    qkv: u64,
    queries: u64,
    positions: u64,
    blocks: u64,
    inv_freq: u64,
    cache: u64,
    q_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    padded_dim: u32,
    half: u32,
    cache_bf16: u32,
    k_inverse: f32,
    v_inverse: f32,
    qkv_bf16: u32,
    unused: u32,
}
const _: () = assert!(size_of::<RopeParams>() == 88);

/// The rotated queries of a layer, which attention reads, and tables of the rotation.
#[derive(Debug, Default)]
pub(super) struct RopeScratch {
    /// \[rows, q_heads × head_dim\].
    queries: Option<Buffer<f32>>,
    /// Rows of the largest step.
    rows: usize,
    /// Elements of a row of queries.
    cols: usize,
    /// The inverse frequencies used last: every layer has the same.
    inv_freq: Option<Frequencies>,
}

/// Inverse frequencies on the host and on the device.
#[derive(Debug)]
struct Frequencies {
    known: Vec<f32>,
    buffer: Buffer<f32>,
}

impl RopeScratch {
    /// Grows the scratch for steps of `rows` rows.
    pub(super) fn fit_rows(&mut self, driver: &Driver, rows: usize) -> Result<(), DeviceError> {
        self.rows = self.rows.max(rows);
        self.grow(driver)
    }

    /// Grows the scratch for a cache.
    pub(super) fn fit_cache(&mut self, driver: &Driver, spec: &CacheSpec) -> Result<(), DeviceError> {
        let frequencies = spec.heads.head_dim / 2;
        if self.inv_freq.as_ref().is_none_or(|table| table.buffer.len() < frequencies) {
            self.inv_freq = Some(Frequencies { known: Vec::new(), buffer: driver.buffer(frequencies)? });
        }
        self.cols = self.cols.max(spec.heads.q_heads * spec.heads.head_dim);
        self.grow(driver)
    }

    fn grow(&mut self, driver: &Driver) -> Result<(), DeviceError> {
        let elements = self.rows * self.cols;
        if self.queries.as_ref().map_or(0, Buffer::len) < elements {
            self.queries = None;
            self.queries = Some(driver.buffer(elements)?);
        }
        Ok(())
    }

    /// The address of a model's inverse frequencies.
    fn frequencies(&mut self, inv_freq: &[f32]) -> Result<u64, DeviceError> {
        let table = self.inv_freq.as_mut().expect("a cache was made before rope runs");
        if table.known != inv_freq {
            table.buffer.write(0, inv_freq)?;
            table.known = inv_freq.to_vec();
        }
        Ok(table.buffer.address())
    }

    /// The address of queries of `elements` elements.
    fn queries(&self, elements: usize) -> u64 {
        let queries = self.queries.as_ref().expect("a step and a cache were made before rope runs");
        assert!(elements <= queries.len(), "{elements} elements of queries, room for {}", queries.len());
        queries.address()
    }
}

const THREADS: u32 = 256;
/// Blocks of a launch with few rows: one per multiprocessor of an H100.
const BLOCKS: usize = 132;

/// Inputs of the operation.
pub(super) struct RopeInputs<'a> {
    pub(super) step: &'a StepTables,
    pub(super) rope: &'a Rope,
    pub(super) kv: LayerKv,
}

/// Returns the address of the rotated queries, F32 \[rows, q_heads × head_dim\].
pub(super) fn run(
    cuda: &Cuda,
    inputs: RopeInputs<'_>,
    qkv: &Floats,
    cache: &mut Cache,
) -> Result<u64, DeviceError> {
    let heads = cache.spec.heads;
    let RopeInputs { step, rope, kv } = inputs;
    let cols = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim;
    assert_eq!((qkv.rows, qkv.cols), (step.rows, cols), "shape of QKV of {heads:?}");
    assert!(2 * rope.inv_freq.len() <= heads.head_dim, "rotary dimensions of a head");
    assert!(
        step.largest_block < cache.spec.blocks,
        "KV block {} of {}",
        step.largest_block,
        cache.spec.blocks
    );
    let scratch = &mut cuda.scratch().rope;
    let inv_freq = scratch.frequencies(&rope.inv_freq)?;
    let queries = scratch.queries(step.rows * heads.q_heads * heads.head_dim);
    let params = RopeParams {
        qkv: qkv.data.address(),
        queries,
        positions: step.positions(),
        blocks: step.row_blocks(),
        inv_freq,
        cache: cache.layer(kv.layer),
        q_heads: heads.q_heads as u32,
        kv_heads: heads.kv_heads as u32,
        head_dim: heads.head_dim as u32,
        padded_dim: Cache::padded(heads.head_dim) as u32,
        half: rope.inv_freq.len() as u32,
        cache_bf16: u32::from(cache.spec.dtype == KvDtype::Bf16),
        k_inverse: 1.0 / kv.k_scale,
        v_inverse: 1.0 / kv.v_scale,
        qkv_bf16: qkv.is_bf16(),
        unused: 0,
    };
    let shared = 8 * rope.inv_freq.len();
    // A thread has eight elements at a time.
    let blocks = cols.div_ceil(8 * THREADS as usize).min((BLOCKS / step.rows.max(1)).max(1));
    let launch = Launch { kernel: "rope", grid: [step.rows, blocks, 1], threads: THREADS, shared };
    // SAFETY: shapes and block ids have been checked.
    unsafe { cuda.driver.launch(launch, &params)? };
    Ok(queries)
}
