//! The memory plan: whether weights, working memory and KV blocks fit into the available memory. Pure
//! arithmetic, used by the start-up banner, the refusal to start, and `octant plan`, which needs no device.

use crate::device::{BLOCK_TOKENS, CacheSpec, HeadShape, KvDtype, Layout, SPLIT_BLOCKS};
use crate::model::{HeadDtype, ModelConfig, Precision, Scheme, StepBytes, StepRoom};

/// Bytes of one rank's weights in the layout of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightBytes {
    /// Linear weights of one layer: QKV, O, up (with gate if there is one), down.
    pub products: [u64; 4],
    /// Weight scales of one layer.
    pub scales: u64,
    /// Number of layers.
    pub layers: u64,
    /// Embedding table.
    pub embedding: u64,
    /// LM head with its scales, 0 if it is the embedding; or reward head.
    pub head: u64,
    /// All norm weights.
    pub norms: u64,
}

/// Bytes that a model needs on each rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// All weights in the layout of the device.
    pub weights: u64,
    /// Inputs and intermediate results of the largest step.
    pub activations: u64,
    /// Buffers that other ranks read and write, and the results gathered from them.
    pub communication: u64,
    /// Scratch memory of operations, and KV blocks that the scheduler never uses.
    pub scratch: u64,
    /// CUDA graphs; an estimate, see [`GRAPH_LAUNCH_BYTES`].
    pub graphs: u64,
    /// One KV block in all layers, with its share of attention's scratch memory.
    pub block: u64,
}

/// Estimated bytes per kernel launch in a CUDA graph; not measured. The launch's parameters take about 100
/// bytes, the rest is the driver's.
pub(crate) const GRAPH_LAUNCH_BYTES: u64 = 8 << 10;

/// Row counts for which decode steps are captured: the powers of two below `most`, and `most`.
pub(crate) fn graph_rows(most: usize) -> impl Iterator<Item = usize> {
    let powers = (0..usize::BITS).map(|i| 1 << i).take_while(move |rows| *rows < most);
    powers.chain([most])
}

/// How a rank's memory is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Memory that the model needs.
    pub needs: MemoryNeeds,
    /// Number of KV blocks.
    pub blocks: usize,
    /// Tokens of one full-length request.
    pub max_model_len: usize,
}

/// The model and one full-length request need more memory than is available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "needs {} ({} of weights, {} of working memory, {} for the KV cache of one full-length request), \
     but {} are available",
    gib(*.need),
    gib(.needs.weights),
    gib(.needs.workspace()),
    gib(.need.saturating_sub(.needs.fixed())),
    gib(*.have)
)]
pub struct DoesNotFit {
    /// Memory that the model needs.
    pub needs: MemoryNeeds,
    /// The least memory that would be enough, in bytes.
    pub need: u64,
    /// Available memory, in bytes.
    pub have: u64,
}

impl WeightBytes {
    /// Bytes of one rank's weights. `config` is the rank's share of the model.
    pub fn new(config: &ModelConfig, layout: &Layout, precision: Precision) -> Self {
        let fp8 = precision == Precision::Fp8 || config.scheme != Scheme::None;
        let matrix = |(out, input): (usize, usize), fp8: bool| {
            let (size, multiple) = if fp8 { (1, layout.inputs[0]) } else { (2, layout.inputs[1]) };
            (out.next_multiple_of(layout.outputs) * input.next_multiple_of(multiple) * size) as u64
        };
        let shapes = config.linear_shapes();
        let scales: usize = shapes.iter().map(|(out, _)| out.next_multiple_of(layout.scales) * 4).sum();
        let table = matrix((config.vocab, config.hidden), false);
        let vectors = if config.norm.has_bias() { 2 } else { 1 };
        Self {
            products: shapes.map(|shape| matrix(shape, fp8)),
            scales: if fp8 { scales as u64 } else { 0 },
            layers: config.layers as u64,
            embedding: table,
            head: match &config.reward {
                Some(head) => head.elements(config.hidden) as u64 * 4,
                None if config.head_dtype == HeadDtype::Fp8 => {
                    let scales = config.vocab.next_multiple_of(layout.scales) * 4;
                    matrix((config.vocab, config.hidden), true) + scales as u64
                }
                None if config.tied => 0,
                None => table,
            },
            norms: ((2 * config.layers + 1) * vectors * config.hidden * 4) as u64,
        }
    }

    /// Bytes of all weights.
    pub fn total(&self) -> u64 {
        let layer = self.products.iter().sum::<u64>() + self.scales;
        self.layers * layer + self.embedding + self.head + self.norms
    }
}

impl MemoryNeeds {
    /// Bytes that each rank needs on a device with this layout, for weights of this precision, a KV cache of
    /// type `kv` and steps of the size of `room`. `config` is one rank's share of the model.
    pub fn new(
        config: &ModelConfig,
        layout: &Layout,
        precision: Precision,
        kv: KvDtype,
        room: &StepRoom,
    ) -> Self {
        let StepBytes { activations, communication, scratch } =
            StepBytes::new(config, layout, precision, room);
        let HeadShape { q_heads, head_dim, .. } = config.heads;
        let per_row = q_heads * (head_dim + 2) * layout.attention_scratch;
        let attention = (room.rows as u64).saturating_mul(per_row as u64);
        let block = block_bytes(config, layout, kv);
        let launches = graph_rows(room.slots.min(room.rows)).count() * config.layers * layout.graph_launches;
        Self {
            weights: WeightBytes::new(config, layout, precision).total(),
            activations,
            communication,
            scratch: scratch.saturating_add(attention).saturating_add(layout.spare_blocks as u64 * block),
            graphs: launches as u64 * GRAPH_LAUNCH_BYTES,
            block,
        }
    }

    /// Bytes that each rank needs for its share of a draft model, in the steps of the model that it drafts
    /// for. Its products are always deterministic, whatever those of the model are, and one batch computes
    /// its steps. `draft` is made by [`ModelConfig::drafting_for`].
    pub(crate) fn of_draft(
        draft: &ModelConfig,
        layout: &Layout,
        precision: Precision,
        kv: KvDtype,
        room: &StepRoom,
    ) -> Self {
        Self::new(
            draft,
            layout,
            precision,
            kv,
            &StepRoom { deterministic: true, two_batch_tokens: None, ..*room },
        )
    }

    /// Bytes that this model and a draft model need together. Each block of one has a block of the other.
    pub fn beside(&self, draft: &Self) -> Self {
        Self {
            weights: self.weights.saturating_add(draft.weights),
            activations: self.activations.saturating_add(draft.activations),
            communication: self.communication.saturating_add(draft.communication),
            scratch: self.scratch.saturating_add(draft.scratch),
            graphs: self.graphs.saturating_add(draft.graphs),
            block: self.block.saturating_add(draft.block),
        }
    }

    /// Bytes of everything except weights and KV cache.
    pub fn workspace(&self) -> u64 {
        let parts = [self.activations, self.communication, self.scratch, self.graphs];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Bytes of everything except the KV cache.
    fn fixed(&self) -> u64 {
        self.weights.saturating_add(self.workspace())
    }

    /// Number of KV blocks that fit into `available` bytes.
    pub fn blocks_within(&self, available: u64) -> u64 {
        available.saturating_sub(self.fixed()) / self.block
    }
}

/// Bytes of one KV block in all layers, with its share of attention's scratch memory.
fn block_bytes(config: &ModelConfig, layout: &Layout, kv: KvDtype) -> u64 {
    let HeadShape { q_heads, head_dim, .. } = config.heads;
    let padded = ModelConfig {
        heads: HeadShape { head_dim: head_dim.next_multiple_of(layout.head_dim), ..config.heads },
        ..config.clone()
    };
    let scratch = q_heads * (head_dim + 2) * layout.attention_scratch / SPLIT_BLOCKS;
    token_bytes(&padded, kv) * BLOCK_TOKENS as u64 + scratch as u64
}

/// Bytes of keys and values per token, in all layers.
pub fn token_bytes(config: &ModelConfig, kv: KvDtype) -> u64 {
    let HeadShape { kv_heads, head_dim, .. } = config.heads;
    let element = if kv == KvDtype::Fp8 { 1 } else { 2 };
    (2 * config.layers * kv_heads * head_dim * element) as u64
}

impl MemoryPlan {
    /// Sizes the KV cache: `kv_memory` bytes if given, otherwise enough for `max_num_seqs` full-length
    /// requests, limited to what is left of `available` bytes.
    ///
    /// # Errors
    /// One full-length request does not fit, or `kv_memory` does not.
    pub fn new(
        needs: MemoryNeeds,
        available: u64,
        kv_memory: Option<u64>,
        max_model_len: usize,
        max_num_seqs: usize,
    ) -> Result<Self, DoesNotFit> {
        let per_request = max_model_len.div_ceil(BLOCK_TOKENS) as u64;
        let fixed = needs.fixed();
        let all = per_request.saturating_mul(max_num_seqs as u64);
        let wanted = kv_memory.map_or(all, |bytes| bytes / needs.block);
        let least = fixed.saturating_add(per_request.saturating_mul(needs.block));
        let explicit = kv_memory.map_or(0, |bytes| fixed.saturating_add(bytes));
        let need = least.max(explicit);
        if need > available {
            return Err(DoesNotFit { needs, need, have: available });
        }
        if wanted < per_request {
            let have = fixed.saturating_add(wanted.saturating_mul(needs.block));
            return Err(DoesNotFit { needs, need: least, have });
        }
        // Block ids have 32 bits.
        let blocks = wanted.min(needs.blocks_within(available)).min(u64::from(u32::MAX)) as usize;
        Ok(Self { needs, blocks, max_model_len })
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.blocks as u64 * self.needs.block
    }

    /// Tokens that the KV cache can hold.
    pub(crate) fn kv_tokens(&self) -> usize {
        self.blocks * BLOCK_TOKENS
    }

    /// Full-length requests that the KV cache can hold at once.
    pub(crate) fn full_length_requests(&self) -> usize {
        self.blocks / self.max_model_len.div_ceil(BLOCK_TOKENS)
    }

    /// The KV cache to allocate.
    pub fn cache(&self, config: &ModelConfig, dtype: KvDtype) -> CacheSpec {
        CacheSpec { layers: config.layers, blocks: self.blocks, heads: config.heads, dtype }
    }
}

/// A size in MiB below 1 GiB, otherwise in GiB.
pub(crate) fn gib(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = bytes as f64 / MIB;
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
