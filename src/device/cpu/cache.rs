//! The paged KV cache. A block holds 64 positions of one layer, for each KV head K as \[head_dim\]\[64\] and V as
//! \[64\]\[head_dim\]: attention's vectors are 64 positions in the first product and head_dim in the second.

use crate::device::{BLOCK_TOKENS, CacheSpec, KvDtype, fp8};

/// A paged KV cache for all layers.
#[derive(Debug)]
pub struct Cache {
    pub(super) spec: CacheSpec,
    pub(super) data: Store,
}

/// Elements of all layers, blocks and heads.
#[derive(Debug)]
pub(super) enum Store {
    Fp8(Vec<u8>),
    Bf16(Vec<u16>),
}

impl Cache {
    pub(super) fn new(spec: CacheSpec) -> Self {
        let size = spec.layers * spec.blocks * spec.heads.kv_heads * 2 * BLOCK_TOKENS * spec.heads.head_dim;
        // Zeroed pages come from the system untouched, so that a large cache costs nothing until it is used.
        let data = match spec.dtype {
            KvDtype::Fp8 => Store::Fp8(vec![0; size]),
            KvDtype::Bf16 => Store::Bf16(vec![0; size]),
        };
        Self { spec, data }
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> usize {
        match &self.data {
            Store::Fp8(codes) => codes.len(),
            Store::Bf16(values) => values.len() * 2,
        }
    }

    /// Where K of (layer, block, KV head) begins; V follows it.
    pub(super) fn offset(&self, layer: usize, block: u32, head: usize) -> usize {
        let spec = &self.spec;
        let block = block as usize;
        assert!(layer < spec.layers, "layer {layer} of {}", spec.layers);
        assert!(block < spec.blocks, "KV block {block} of {}", spec.blocks);
        let part = 2 * BLOCK_TOKENS * spec.heads.head_dim;
        ((layer * spec.blocks + block) * spec.heads.kv_heads + head) * part
    }

    /// Elements of K, and of V, of one block and head.
    pub(super) fn half(&self) -> usize {
        BLOCK_TOKENS * self.spec.heads.head_dim
    }
}

/// An element type of the cache.
pub(super) trait Element: Copy + Send + Sync {
    fn store(x: f32, inverse_scale: f32) -> Self;
    fn load(self) -> f32;
}

impl Element for u8 {
    #[inline(always)]
    fn store(x: f32, inverse_scale: f32) -> Self {
        fp8::encode(x * inverse_scale)
    }

    #[inline(always)]
    fn load(self) -> f32 {
        fp8::decode(self)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn store(x: f32, _unscaled: f32) -> Self {
        fp8::bf16_bits(x)
    }

    #[inline(always)]
    fn load(self) -> f32 {
        fp8::bf16_value(self)
    }
}
