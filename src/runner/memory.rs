//! What fits: weights, working memory and KV blocks against the memory there is. Pure arithmetic, the same for the
//! banner, the refusal to start, and planning without a device.

use crate::device::{BLOCK_TOKENS, CacheSpec, Device, HeadShape, KvDtype, Layout};
use crate::model::{ModelConfig, Precision, Scheme, Workspace};

/// What a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// All weights as they lie on the device.
    pub weights: u64,
    /// Buffers of the largest step.
    pub workspace: u64,
    /// One KV block, of all layers.
    pub block: u64,
}

/// How memory is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What the model needs.
    pub needs: MemoryNeeds,
    /// KV blocks.
    pub blocks: usize,
    /// Tokens of one full-length request.
    pub max_model_len: usize,
}

/// The plan needs more memory than there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "needs {} ({} of weights, {} of working memory, {} for the KV cache of one full-length request) \
     but {} are available",
    gib(*.need), gib(.needs.weights), gib(.needs.workspace), gib(.need - .needs.weights - .needs.workspace),
    gib(*.have)
)]
pub struct DoesNotFit {
    /// The parts.
    pub needs: MemoryNeeds,
    /// The least that would do, in bytes.
    pub need: u64,
    /// What there is, in bytes.
    pub have: u64,
}

impl MemoryNeeds {
    /// What each of `ranks` ranks needs on its device with this precision and cache, in steps of at most `rows` tokens.
    /// `config` is the share of one.
    pub fn new<D: Device>(
        config: &ModelConfig,
        ranks: usize,
        precision: Precision,
        kv: KvDtype,
        rows: usize,
    ) -> Self {
        let layout = D::LAYOUT;
        let stored_fp8 = config.scheme != Scheme::None;
        let element = if precision == Precision::Fp8 || stored_fp8 { 1 } else { 2 };
        let linear = config.linear_shapes().into_iter().map(|(out, input)| {
            // E4M3 has a scale of 4 bytes for each output.
            let out = out.next_multiple_of(layout.outputs) as u64;
            out * input as u64 * element + if element == 1 { out * 4 } else { 0 }
        });
        let table = (config.vocab.next_multiple_of(layout.outputs) * config.hidden * 2) as u64;
        let tables = if config.tied { table } else { 2 * table };
        let norms = ((2 * config.layers + 1) * 2 * config.hidden * 4) as u64;
        Self {
            weights: config.layers as u64 * linear.sum::<u64>() + tables + norms,
            workspace: Workspace::<D>::bytes(config, ranks, rows) + scratch_bytes(config, &layout, rows),
            block: block_bytes(config, &layout, kv),
        }
    }
}

/// Bytes of what a device's operations work in.
fn scratch_bytes(config: &ModelConfig, layout: &Layout, rows: usize) -> u64 {
    let widest = config.linear_shapes().into_iter().map(|(out, _)| out).chain([config.vocab]).max();
    let product = (widest.unwrap_or(0) + 264 * layout.outputs) * layout.product_scratch;
    (product + rows * config.heads.q_heads * (config.heads.head_dim + 2) * layout.attention_scratch) as u64
}

/// Bytes of one KV block of all layers, with its share of attention's scratch.
fn block_bytes(config: &ModelConfig, layout: &Layout, kv: KvDtype) -> u64 {
    let HeadShape { q_heads, kv_heads, head_dim } = config.heads;
    let element = if kv == KvDtype::Fp8 { 1 } else { 2 };
    let padded = head_dim.next_multiple_of(layout.head_dim);
    let scratch = q_heads * (head_dim + 2) * layout.attention_scratch / 4;
    (2 * config.layers * kv_heads * padded * BLOCK_TOKENS * element + scratch) as u64
}

impl MemoryPlan {
    /// Gives the KV cache `kv_memory` bytes, or without that what `max_num_seqs` full-length requests can use, and
    /// at most what is left of `available`. At least one full-length request must fit.
    pub fn new(
        needs: MemoryNeeds,
        available: u64,
        kv_memory: Option<u64>,
        max_model_len: usize,
        max_num_seqs: usize,
    ) -> Result<Self, DoesNotFit> {
        let per_request = max_model_len.div_ceil(BLOCK_TOKENS) as u64;
        let fixed = needs.weights + needs.workspace;
        let wanted = kv_memory.map_or(per_request * max_num_seqs as u64, |bytes| bytes / needs.block);
        let least = fixed + per_request * needs.block;
        let explicit = kv_memory.map_or(0, |bytes| fixed + bytes);
        let need = least.max(explicit);
        if need > available {
            return Err(DoesNotFit { needs, need, have: available });
        }
        if wanted < per_request {
            let have = fixed + wanted * needs.block;
            return Err(DoesNotFit { needs, need: least, have });
        }
        let blocks = wanted.min((available - fixed) / needs.block) as usize;
        Ok(Self { needs, blocks, max_model_len })
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.blocks as u64 * self.needs.block
    }

    /// Tokens that the KV cache holds.
    pub fn kv_tokens(&self) -> usize {
        self.blocks * BLOCK_TOKENS
    }

    /// Requests of full length that the KV cache holds at once.
    pub fn full_length_requests(&self) -> usize {
        self.blocks / self.max_model_len.div_ceil(BLOCK_TOKENS)
    }

    /// The cache to allocate.
    pub fn cache(&self, config: &ModelConfig, dtype: KvDtype) -> CacheSpec {
        CacheSpec { layers: config.layers, blocks: self.blocks, heads: config.heads, dtype }
    }
}

/// A size as people read it.
pub fn gib(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = bytes as f64 / MIB;
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
