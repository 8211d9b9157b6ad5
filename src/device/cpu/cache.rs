//! The paged KV cache. A block holds 64 positions of one layer: for each KV head, K as \[head_dim\]\[64\]
//! and then V as \[64\]\[head_dim\]. The vectors of attention therefore run over positions in q·kᵀ and over
//! head_dim in the product with V, both contiguous in memory.

use super::isa::{DetectedIsa, Isa};
use super::zeros;
use crate::device::{BLOCK_TOKENS, CacheSpec, DeviceError, KvDtype, fp8};

/// A paged KV cache of all layers.
#[derive(Debug)]
pub struct Cache {
    pub(super) spec: CacheSpec,
    pub(super) data: CacheData,
}

/// The elements, \[layers, blocks, kv_heads, 2, 64 × head_dim\].
#[derive(Debug)]
pub(super) enum CacheData {
    Fp8(Vec<u8>),
    Bf16(Vec<u16>),
}

impl Cache {
    /// Allocates a cache.
    ///
    /// # Errors
    /// The system has no memory for it.
    pub(super) fn new(spec: CacheSpec) -> Result<Self, DeviceError> {
        let block = spec.layers * spec.heads.kv_heads * 2 * BLOCK_TOKENS * spec.heads.head_dim;
        let size = spec.blocks.saturating_mul(block);
        let data = match spec.dtype {
            KvDtype::Fp8 => CacheData::Fp8(zeros(size)?),
            KvDtype::Bf16 => CacheData::Bf16(zeros(size)?),
        };
        Ok(Self { spec, data })
    }

    /// Bytes of the elements.
    pub(super) fn bytes(&self) -> usize {
        match &self.data {
            CacheData::Fp8(codes) => codes.len(),
            CacheData::Bf16(values) => values.len() * 2,
        }
    }

    /// Index of the first element of K of (layer, block, KV head). V follows K.
    pub(super) fn offset(&self, layer: usize, block: u32, head: usize) -> usize {
        let spec = &self.spec;
        let block = block as usize;
        assert!(layer < spec.layers, "layer {layer} of {}", spec.layers);
        assert!(block < spec.blocks, "KV block {block} of {}", spec.blocks);
        let part = 2 * BLOCK_TOKENS * spec.heads.head_dim;
        ((layer * spec.blocks + block) * spec.heads.kv_heads + head) * part
    }

    /// The number of elements of K in one block and head. V has the same number.
    pub(super) fn half(&self) -> usize {
        BLOCK_TOKENS * self.spec.heads.head_dim
    }
}

/// An element type of the cache: u8 holds E4M3, u16 holds BF16.
pub(super) trait CacheElement: Copy + Send + Sync {
    /// Rounds x × inverse_scale to the type. BF16 ignores the scale.
    fn store(x: f32, inverse_scale: f32) -> Self;
    /// Converts to F32 without the scale.
    fn load(self) -> f32;

    /// Converts as many elements as there are, a multiple of 64.
    #[inline(always)]
    fn load_all(_isa: DetectedIsa, from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load());
    }
}

impl CacheElement for u8 {
    #[inline(always)]
    fn store(x: f32, inverse_scale: f32) -> Self {
        fp8::encode(x * inverse_scale)
    }

    #[inline(always)]
    fn load(self) -> f32 {
        fp8::decode(self)
    }

    #[inline(always)]
    fn load_all(isa: DetectedIsa, from: &[Self], to: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if isa.isa() == Isa::Avx512 {
            // SAFETY: a `DetectedIsa` of `Avx512` was detected on this machine.
            return unsafe { super::e4m3::decode(from, to) };
        }
        let _ = isa;
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load());
    }
}

impl CacheElement for u16 {
    #[inline(always)]
    fn store(x: f32, _unscaled: f32) -> Self {
        fp8::bf16_bits(x)
    }

    #[inline(always)]
    fn load(self) -> f32 {
        fp8::bf16_value(self)
    }
}
