//! `kernels/rope.cu`.

use super::{Cache, Cuda, Floats, Launch, StepTables};
use crate::device::{DeviceError, KvDtype, LayerKv, Rope};

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RopeParams {
    qkv: u64,
    positions: u64,
    blocks: u64,
    inv_freq: u64,
    cache: u64,
    q_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    padded_dim: u32,
    half: u32,
    bf16: u32,
    k_inverse: f32,
    v_inverse: f32,
}
const _: () = assert!(size_of::<RopeParams>() == 72);

/// Inputs of the operation.
pub(super) struct RopeInputs<'a> {
    pub(super) step: &'a StepTables,
    pub(super) rope: &'a Rope,
    pub(super) kv: LayerKv,
}

pub(super) fn run(
    cuda: &Cuda,
    inputs: RopeInputs<'_>,
    qkv: &mut Floats,
    cache: &mut Cache,
) -> Result<(), DeviceError> {
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
    let scratch = &mut *cuda.scratch();
    if scratch.inv_freq.as_ref().is_none_or(|(known, _)| *known != rope.inv_freq) {
        let (_, buffer) = scratch.inv_freq.take().expect("a cache was made before rope runs");
        buffer.write(0, &rope.inv_freq)?;
        scratch.inv_freq = Some((rope.inv_freq.clone(), buffer));
    }
    let inv_freq = scratch.inv_freq.as_ref().map_or(0, |(_, buffer)| buffer.address());
    let params = RopeParams {
        qkv: qkv.data.address(),
        positions: step.positions(),
        blocks: step.row_blocks(),
        inv_freq,
        cache: cache.layer(kv.layer),
        q_heads: heads.q_heads as u32,
        kv_heads: heads.kv_heads as u32,
        head_dim: heads.head_dim as u32,
        padded_dim: Cache::padded(heads.head_dim) as u32,
        half: rope.inv_freq.len() as u32,
        bf16: u32::from(cache.spec.dtype == KvDtype::Bf16),
        k_inverse: 1.0 / kv.k_scale,
        v_inverse: 1.0 / kv.v_scale,
    };
    let launch = Launch { kernel: "rope", grid: [step.rows, 1, 1], threads: 128, shared: 0 };
    // SAFETY: shapes and block ids have been checked.
    unsafe { cuda.driver.launch(launch, &params) }
}
