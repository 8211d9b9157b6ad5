//! Random weights follow the same formula on every device.

use octant::device::{
    CacheSpec, Device, EmbeddingTable, HeadShape, KvDtype, RandomWeights, Segment, StepCapacity, StepInputs,
    Token, fp8,
};

use crate::dev;

/// Reads all rows of a matrix through the embedding, which is exact.
pub(super) fn rows(
    device: &dev::Dev,
    table: &<dev::Dev as Device>::Matrix,
    out: usize,
    input: usize,
) -> Vec<f32> {
    let heads = HeadShape { q_heads: 1, kv_heads: 1, head_dim: 64 };
    let _cache = device.cache(CacheSpec { layers: 1, blocks: 4, heads, dtype: KvDtype::Fp8 }).unwrap();
    let mut step = device.step(StepCapacity { rows: out, max_positions: 256, ..Default::default() }).unwrap();
    let mut floats = device.floats(out, input).unwrap();
    let segments = vec![Segment { first: 0, len: out, position: 0, blocks: [0, 1, 2, 3].into() }];
    let inputs =
        StepInputs { tokens: (0..out as u32).map(Token::Id).collect(), segments, ..StepInputs::default() };
    device.begin_step(&inputs, &mut step).unwrap();
    device.embed(&step, EmbeddingTable { matrix: table, first: 0 }, &mut floats).unwrap();
    device.read(&floats).unwrap()
}

#[test]
fn random_weights_follow_the_formula() {
    let codes = std::array::from_fn(|i| fp8::encode((i as f32 - 128.0) * 3.0));
    for device in dev::all() {
        for (out, input) in [(1, 16), (130, 48), (200, 208)] {
            for bf16 in [false, true] {
                let weights =
                    RandomWeights { out, input, seed: 7 + out as u64, codes: &codes, scale: 0.0103, bf16 };
                let made = rows(&device, &dev::random_weights(&device, &weights).unwrap(), out, input);
                let expected: Vec<f32> = match bf16 {
                    false => weights.codes().iter().map(|code| fp8::decode(*code) * weights.scale).collect(),
                    true => {
                        weights.halves(&weights.codes()).iter().map(|bits| fp8::bf16_value(*bits)).collect()
                    }
                };
                assert_eq!(made, expected, "{}: [{out}, {input}], bf16: {bf16}", dev::name(&device));
            }
        }
    }
}
