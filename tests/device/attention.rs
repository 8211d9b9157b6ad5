//! Rotary embedding, paged cache and attention: agreement with F64, and the same bits however a sequence is
//! cut into steps.

use crate::dev::{self, Dev};
use octant::device::{
    ActQuant, AttentionLayer, CacheSpec, Device, HeadShape, KvDtype, LayerKv, Rope, Segment, StepCapacity,
    StepInputs, Token, fp8,
};

use super::{noise, seen};

const SHAPES: [HeadShape; 5] = [
    HeadShape { q_heads: 12, kv_heads: 1, head_dim: 16 },
    HeadShape { q_heads: 6, kv_heads: 2, head_dim: 24 },
    HeadShape { q_heads: 2, kv_heads: 1, head_dim: 192 },
    HeadShape { q_heads: 16, kv_heads: 1, head_dim: 128 },
    // Not a multiple of 4.
    HeadShape { q_heads: 8, kv_heads: 1, head_dim: 66 },
];

/// Shapes and caches of sequences of several splits. One has more heads than a tile of the decode kernel.
const LONG_CASES: [(HeadShape, KvDtype); 6] = [
    (HeadShape { q_heads: 12, kv_heads: 1, head_dim: 192 }, KvDtype::Fp8),
    (HeadShape { q_heads: 3, kv_heads: 1, head_dim: 192 }, KvDtype::Bf16),
    (HeadShape { q_heads: 4, kv_heads: 2, head_dim: 128 }, KvDtype::Fp8),
    (HeadShape { q_heads: 2, kv_heads: 1, head_dim: 128 }, KvDtype::Bf16),
    (HeadShape { q_heads: 18, kv_heads: 1, head_dim: 64 }, KvDtype::Fp8),
    (HeadShape { q_heads: 1, kv_heads: 1, head_dim: 64 }, KvDtype::Bf16),
];

/// A device with the parameters of one layer.
struct AttentionCase<'a> {
    device: &'a Dev,
    heads: HeadShape,
    dtype: KvDtype,
    kv: LayerKv,
    rope: Rope,
}

impl<'a> AttentionCase<'a> {
    fn new(device: &'a Dev, heads: HeadShape, dtype: KvDtype) -> Self {
        let half = heads.head_dim / 4;
        let inv_freq = (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect();
        Self {
            device,
            heads,
            dtype,
            kv: LayerKv { layer: 1, k_scale: 0.5, v_scale: 0.25 },
            rope: Rope { inv_freq },
        }
    }

    fn width(&self) -> usize {
        (self.heads.q_heads + 2 * self.heads.kv_heads) * self.heads.head_dim
    }

    fn cache(&self) -> <Dev as Device>::Cache {
        self.device.cache(CacheSpec { layers: 2, blocks: 12, heads: self.heads, dtype: self.dtype }).unwrap()
    }

    /// Runs a step of `segments` through attention and returns the output rows. `qkv` holds the
    /// rows of the step, in order.
    fn step(&self, cache: &mut <Dev as Device>::Cache, segments: Vec<Segment>, qkv: &[f32]) -> Vec<f32> {
        let rows = qkv.len() / self.width();
        let columns = self.heads.q_heads * self.heads.head_dim;
        let mut step =
            self.device.step(StepCapacity { rows, max_positions: 12 * 64, ..Default::default() }).unwrap();
        self.device
            .begin_step(
                &StepInputs { tokens: vec![Token::Id(0); rows], segments, ..Default::default() },
                &mut step,
            )
            .unwrap();
        let mut floats = self.device.floats(rows, self.width()).unwrap();
        self.device.write(qkv, &mut floats).unwrap();
        let mut out = self.device.acts(rows, columns).unwrap();
        let layer = AttentionLayer { rope: &self.rope, kv: self.kv, quant: ActQuant::Bf16 };
        self.device.attention(&step, layer, &mut floats, cache, &mut out).unwrap();
        seen(self.device, &out, rows, columns)
    }

    /// The value that the cache returns after storing `x`.
    fn stored(&self, x: f64, scale: f32) -> f64 {
        match self.dtype {
            KvDtype::Fp8 => f64::from(fp8::round(x as f32 / scale)) * f64::from(scale),
            KvDtype::Bf16 => f64::from(fp8::bf16_value(fp8::bf16_bits(x as f32))),
        }
    }

    /// Rotates a head by its position, in F64.
    fn rotate(&self, head: &[f32], position: usize) -> Vec<f64> {
        let half = self.rope.inv_freq.len();
        let mut out: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
        for i in 0..half {
            let (sin, cos) = (position as f64 * f64::from(self.rope.inv_freq[i])).sin_cos();
            let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
            (out[i], out[i + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
        out
    }

    /// Attention of one sequence in F64, \[rows, q_heads × head_dim\].
    fn exact(&self, qkv: &[f32]) -> Vec<f64> {
        let HeadShape { q_heads, kv_heads, head_dim } = self.heads;
        let (k_scale, v_scale) = (self.kv.k_scale, self.kv.v_scale);
        let rows: Vec<&[f32]> = qkv.chunks_exact(self.width()).collect();
        let head = |row: usize, index: usize| &rows[row][index * head_dim..(index + 1) * head_dim];
        let mut out = Vec::new();
        for row in 0..rows.len() {
            for q_head in 0..q_heads {
                let q = self.rotate(head(row, q_head), row);
                let kv_head = q_head / (q_heads / kv_heads);
                let score = |t: usize| {
                    let k = self.rotate(head(t, q_heads + kv_head), t);
                    let terms = q.iter().zip(k).map(|(q, k)| q * self.stored(k, k_scale));
                    terms.sum::<f64>() / (head_dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=row).map(score).collect();
                let largest = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let value = |t: usize| {
                        let v = head(t, q_heads + kv_heads + kv_head)[d];
                        self.stored(f64::from(v), v_scale)
                    };
                    out.push(weights.iter().enumerate().map(|(t, w)| w * value(t)).sum::<f64>() / total);
                }
            }
        }
        out
    }
}

fn segment(first: usize, len: usize, position: usize, blocks: &[u32]) -> Segment {
    Segment { first, len, position, blocks: blocks.into() }
}

#[test]
fn attention_agrees_with_f64() {
    for device in dev::all() {
        for heads in SHAPES {
            for dtype in [KvDtype::Fp8, KvDtype::Bf16] {
                let mut case = AttentionCase::new(&device, heads, dtype);
                if dtype == KvDtype::Bf16 {
                    (case.kv.k_scale, case.kv.v_scale) = (1.0, 1.0);
                }
                let qkv = noise(1, 70 * case.width());
                let got = case.step(&mut case.cache(), vec![segment(0, 70, 0, &[7, 2])], &qkv);
                for (i, (got, exact)) in got.iter().zip(case.exact(&qkv)).enumerate() {
                    // The output is BF16. A stored K near a rounding boundary may round differently in F32
                    // and F64.
                    let bound = exact.abs() / 128.0 + 0.02;
                    let error = (f64::from(*got) - exact).abs();
                    assert!(
                        error <= bound,
                        "{:?} {heads:?} {dtype:?} element {i}: {got} {exact}",
                        dev::name(&device)
                    );
                }
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_any_chunks_blocks_and_batch() {
    for device in dev::all() {
        for heads in SHAPES {
            let case = AttentionCase::new(&device, heads, KvDtype::Fp8);
            let (width, columns) = (case.width(), heads.q_heads * heads.head_dim);
            let (a, b) = (noise(2, 135 * width), noise(3, 20 * width));
            let expected = case.step(&mut case.cache(), vec![segment(0, 135, 0, &[0, 1, 2])], &a);

            // The same sequence in other blocks: in chunks beside another sequence, then token by token.
            let mut cache = case.cache();
            let mut got = Vec::new();
            for (start, end) in [(0, 40), (40, 41), (41, 100), (100, 130)] {
                let rows = [&b[..20 * width], &a[start * width..end * width]].concat();
                let segments = vec![segment(0, 20, 0, &[4]), segment(20, end - start, start, &[9, 3, 11])];
                got.extend(&case.step(&mut cache, segments, &rows)[20 * columns..]);
            }
            for t in 130..135 {
                got.extend(case.step(
                    &mut cache,
                    vec![segment(0, 1, t, &[9, 3, 11])],
                    &a[t * width..(t + 1) * width],
                ));
            }
            assert!(got == expected, "{:?} {heads:?}", dev::name(&device));
        }
    }
}

/// Three splits of 256 positions: in one step, and cut so that steps end within a split, at its end and after
/// its first token. Segments of up to four rows are computed split by split, longer ones in tiles.
#[test]
fn a_sequence_of_several_splits_has_the_same_bits_in_any_chunks() {
    let cuts = [0, 250, 254, 255, 256, 257, 300, 304, 505, 509, 513, 540, 541];
    for device in dev::all() {
        for (heads, dtype) in LONG_CASES {
            let case = AttentionCase::new(&device, heads, dtype);
            let width = case.width();
            let qkv = noise(5, 541 * width);
            let blocks: Vec<u32> = (0..9).collect();
            let expected = case.step(&mut case.cache(), vec![segment(0, 541, 0, &blocks)], &qkv);
            let mut cache = case.cache();
            let blocks: Vec<u32> = (2..11).rev().collect();
            let mut got = Vec::new();
            for cut in cuts.windows(2) {
                let (start, end) = (cut[0], cut[1]);
                let rows = &qkv[start * width..end * width];
                got.extend(case.step(&mut cache, vec![segment(0, end - start, start, &blocks)], rows));
            }
            assert!(got == expected, "{:?} {heads:?} {dtype:?}", dev::name(&device));
        }
    }
}

#[test]
fn stale_contents_of_a_block_do_not_affect_attention() {
    for device in dev::all() {
        for dtype in [KvDtype::Fp8, KvDtype::Bf16] {
            let case = AttentionCase::new(&device, SHAPES[0], dtype);
            let qkv = noise(4, 5 * case.width());
            let clean = case.step(&mut case.cache(), vec![segment(0, 5, 0, &[6])], &qkv);
            let mut cache = case.cache();
            let poison = vec![f32::NAN; 64 * case.width()];
            case.step(&mut cache, vec![segment(0, 64, 0, &[6])], &poison);
            let got = case.step(&mut cache, vec![segment(0, 5, 0, &[6])], &qkv);
            assert!(got == clean, "{:?} {dtype:?}", dev::name(&device));
        }
    }
}
