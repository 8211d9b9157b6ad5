//! `kernels/attention_decode.cu` for few rows of a sequence, by splits of its positions;
//! `kernels/attention_prefill.cu` for many rows, in tiles; then `kernels/attention_combine.cu`, which
//! combines each row's parts and quantises the sum.

use super::row::{self, Quantised};
use super::step::Entries;
use super::{Acts, Buffer, Cache, Cuda, Driver, Launch, StepTables};
use crate::device::attention_tiles::{DECODE_HEADS, PREFILL_ROWS, WARPGROUP_ROWS};
use crate::device::{
    ActQuant, BLOCK_TOKENS, CacheSpec, DeviceError, HeadShape, KvDtype, LayerKv, SPLIT_BLOCKS,
};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionParams {
    queries: u64,
    cache: u64,
    blocks: u64,
    items: u64,
    count: u64,
    sums: u64,
    stats: u64,
    q_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    scale: f32,
}
const _: () = assert!(size_of::<AttentionParams>() == 72);

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionCombineParams {
    sums: u64,
    stats: u64,
    entries: u64,
    out: Quantised,
    q_heads: u32,
    head_dim: u32,
    v_scale: f32,
    unused: u32,
}
const _: () = assert!(size_of::<AttentionCombineParams>() == 72);

/// Most blocks of `attention_decode`, whatever the items: two per multiprocessor of an H100. A block copies
/// its next item while it computes one.
const DECODE_BLOCKS: usize = 264;
/// Threads of a warpgroup.
const WARPGROUP: u32 = 128;
/// Warpgroups of a block of `attention_prefill`.
const CONSUMERS: usize = PREFILL_ROWS / WARPGROUP_ROWS;

/// Bytes of the tiles of K and V of both kernels, `Tiles` of `kernels/attention.cuh`.
const fn tile_bytes(padded: usize, dtype: KvDtype) -> usize {
    let (stages, width) = match dtype {
        KvDtype::Fp8 => (2 * SPLIT_BLOCKS, 1),
        KvDtype::Bf16 => (SPLIT_BLOCKS, 2),
    };
    stages * BLOCK_TOKENS * padded * width
}

/// Bytes of the query rows of a warpgroup, `QueryRows` of `kernels/attention.cuh`.
const fn row_bytes(padded: usize, rows: usize) -> usize {
    (padded / 64 + SPLIT_BLOCKS) * rows * 128 + 17 * rows * 4
}

/// Partial results of the rows' attention, before they are combined.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    /// Rows of the largest step.
    rows: usize,
    spec: Option<CacheSpec>,
    /// \[entries, q_heads, head_dim\].
    sums: Option<Buffer<f32>>,
    /// Maximum and denominator, \[entries, q_heads, 2\].
    stats: Option<Buffer<f32>>,
    entries: usize,
}

impl AttentionScratch {
    /// Grows the scratch for steps of `rows` rows.
    pub(super) fn fit_rows(&mut self, driver: &Driver, rows: usize) -> Result<(), DeviceError> {
        self.rows = self.rows.max(rows);
        self.grow(driver)
    }

    /// Grows the scratch for a cache.
    pub(super) fn fit_cache(&mut self, driver: &Driver, spec: &CacheSpec) -> Result<(), DeviceError> {
        self.spec = Some(*spec);
        self.grow(driver)
    }

    /// Allocates an entry per row and one per split of the cache. If sequences share blocks, their splits may
    /// exceed this; the remaining rows are then computed by the prefill kernel, with one entry each.
    fn grow(&mut self, driver: &Driver) -> Result<(), DeviceError> {
        let Some(spec) = &self.spec else { return Ok(()) };
        let entries = self.rows + spec.blocks / 4;
        self.sums = None;
        self.sums = Some(driver.buffer(entries * spec.heads.q_heads * spec.heads.head_dim)?);
        self.stats = Some(driver.buffer(entries * spec.heads.q_heads * 2)?);
        self.entries = entries;
        Ok(())
    }

    /// The entries that a step may use.
    pub(super) fn entries(&self) -> Entries {
        let group = self.spec.as_ref().map_or(1, |spec| spec.heads.q_heads / spec.heads.kv_heads);
        let spare_block = self.spec.as_ref().map_or(0, |spec| spec.blocks as u32 - 1);
        Entries { count: self.entries.max(self.rows), group, spare_block }
    }
}

/// Inputs of attention, and the type of its output.
pub(super) struct AttentionInputs<'a> {
    pub(super) step: &'a StepTables,
    /// The address of the rotated queries, F32 \[rows, q_heads × head_dim\].
    pub(super) queries: u64,
    pub(super) kv: LayerKv,
    pub(super) cache: &'a Cache,
    pub(super) quant: ActQuant,
}

pub(super) fn run(cuda: &Cuda, inputs: AttentionInputs<'_>, out: &mut Acts) -> Result<(), DeviceError> {
    let AttentionInputs { step, queries, kv, cache, quant } = inputs;
    let spec = &cache.spec;
    let HeadShape { q_heads, kv_heads, head_dim } = spec.heads;
    assert_eq!(out.cols, q_heads * head_dim, "columns of the output of attention");
    assert!(step.largest_block < spec.blocks, "KV block {} of {}", step.largest_block, spec.blocks);
    let padded = Cache::padded(head_dim);
    let [decode, prefill] = kernels(padded, spec.dtype)?;
    let scratch = &cuda.scratch().attention;
    let made = "a cache was made before attention runs";
    let (sums, stats) = (scratch.sums.as_ref().expect(made), scratch.stats.as_ref().expect(made));
    let params = AttentionParams {
        queries,
        cache: cache.layer(kv.layer),
        blocks: step.blocks(),
        items: step.decode_items(),
        count: step.decode_count(),
        sums: sums.address(),
        stats: stats.address(),
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        scale: kv.k_scale / (head_dim as f32).sqrt() * std::f32::consts::LOG2_E,
    };
    let tiles = (q_heads / kv_heads).div_ceil(DECODE_HEADS);
    let tile_bytes = tile_bytes(padded, spec.dtype);
    let shared = tile_bytes + row_bytes(padded, DECODE_HEADS);
    // A captured launch must work for any number of items.
    let blocks = if step.graph_rows > 0 { DECODE_BLOCKS } else { step.decodes.min(DECODE_BLOCKS) };
    let launch = Launch { kernel: decode, grid: [blocks, kv_heads, tiles], threads: WARPGROUP, shared };
    // SAFETY: shapes and block ids have been checked, and the items use entries of the scratch only.
    unsafe { cuda.driver.launch(launch, &params)? };
    let params = AttentionParams { items: step.prefill_items(), ..params };
    let shared = tile_bytes + CONSUMERS * row_bytes(padded, WARPGROUP_ROWS).next_multiple_of(1024);
    let grid = [step.prefills, kv_heads, 1];
    let launch = Launch { kernel: prefill, grid, threads: WARPGROUP * CONSUMERS as u32, shared };
    // SAFETY: as above.
    unsafe { cuda.driver.launch(launch, &params)? };
    let params = AttentionCombineParams {
        sums: sums.address(),
        stats: stats.address(),
        entries: step.entries(),
        out: out.target(step.rows, quant),
        q_heads: q_heads as u32,
        head_dim: head_dim as u32,
        v_scale: kv.v_scale,
        unused: 0,
    };
    let (grid, cols) = ([step.rows, 1, 1], q_heads * head_dim);
    let shared = 4 * q_heads * (head_dim + 18);
    let launch = Launch { kernel: "attention_combine", grid, threads: row::threads(cols), shared };
    // SAFETY: as above.
    unsafe { cuda.driver.launch(launch, &params) }
}

/// The kernels of decode and prefill for cached heads of `padded` elements.
fn kernels(padded: usize, dtype: KvDtype) -> Result<[&'static str; 2], DeviceError> {
    let fp8 = dtype == KvDtype::Fp8;
    Ok(match padded {
        64 if fp8 => ["attention_decode_e4m3_64", "attention_prefill_e4m3_64"],
        64 => ["attention_decode_bf16_64", "attention_prefill_bf16_64"],
        128 if fp8 => ["attention_decode_e4m3_128", "attention_prefill_e4m3_128"],
        128 => ["attention_decode_bf16_128", "attention_prefill_bf16_128"],
        192 if fp8 => ["attention_decode_e4m3_192", "attention_prefill_e4m3_192"],
        192 => ["attention_decode_bf16_192", "attention_prefill_bf16_192"],
        _ => {
            let message = format!("expected heads of at most 192 elements, got {padded}");
            return Err(DeviceError { op: "attention", message });
        }
    })
}
