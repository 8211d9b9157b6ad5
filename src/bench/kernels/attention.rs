//! Attention of decode rows, each over a context of its own. Keys and values are zeros, since the time does
//! not depend on the values.

use super::bytes;
use super::measured::{Kernel, KernelTime};
use super::timer::Timer;
use crate::device::{
    ActQuant, AttentionLayer, BLOCK_TOKENS, CacheSpec, Device, DeviceError, KvDtype, LayerKv, Rope, Segment,
    StepInputs, Token,
};
use crate::model::{ModelConfig, Precision};

/// A cache of one layer and the rotary embedding.
pub(super) struct AttentionOperation<'a, D: Device> {
    device: &'a D,
    timer: &'a Timer<D>,
    /// One rank's share of the model.
    share: &'a ModelConfig,
    /// Positions that a row attends to.
    context: usize,
    rope: Rope,
    cache: D::Cache,
}

impl<'a, D: Device> AttentionOperation<'a, D> {
    /// Allocates a cache for `rows` sequences of `context` tokens.
    pub(super) fn new(
        device: &'a D,
        timer: &'a Timer<D>,
        share: &'a ModelConfig,
        context: usize,
        rows: usize,
    ) -> Result<Self, DeviceError> {
        let blocks = rows * context.div_ceil(BLOCK_TOKENS);
        let spec = CacheSpec { layers: 1, blocks, heads: share.heads, dtype: KvDtype::Fp8 };
        let rope = Rope { inv_freq: share.inv_freq.clone() };
        Ok(Self { device, timer, share, context, rope, cache: device.cache(spec)? })
    }

    /// Times the rotary embedding and the attention of a token for each of `rows` sequences.
    pub(super) fn decode(&mut self, step: &mut D::Step, rows: usize) -> anyhow::Result<KernelTime> {
        let Self { device, timer, share, context, rope, cache } = self;
        let (device, context) = (*device, *context);
        let [(qkv_cols, _), (_, cols), _, _] = share.linear_shapes();
        let blocks = context.div_ceil(BLOCK_TOKENS) as u32;
        let segment = |first: usize| Segment {
            first,
            len: 1,
            position: context - 1,
            blocks: (first as u32 * blocks..(first as u32 + 1) * blocks).collect(),
        };
        let inputs = StepInputs {
            tokens: vec![Token::Id(0); rows],
            segments: (0..rows).map(segment).collect(),
            graph_rows: 0,
        };
        device.begin_step(&inputs, step)?;
        let mut qkv = device.floats_of(Precision::Fp8.results(), rows, qkv_cols)?;
        device.write(&vec![0.0; rows * qkv_cols], &mut qkv)?;
        let mut out = device.acts(rows, cols)?;
        let kv = LayerKv { layer: 0, k_scale: 1.0, v_scale: 1.0 };
        let layer = AttentionLayer { rope, kv, quant: ActQuant::Fp8PerToken };
        let time = timer.graph(device, || device.attention(step, layer, &mut qkv, cache, &mut out))?;
        let bytes = bytes::attention(rows, context, share.heads);
        Ok(Kernel { rows, launches: 3, bytes, ..Kernel::of("attention") }.timed([rows, context, cols], time))
    }
}
