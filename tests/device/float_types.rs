//! Rows in BF16: products round to them, and operations read them as they read F32 rows of the same values.

use crate::dev::{self, Dev};
use octant::device::{
    ActQuant, Activation, AttentionLayer, CacheSpec, Device, FloatType, Floats, HeadShape, HostMatrix,
    KvDtype, LayerKv, MatrixData, Norm, NormKind, Rope, Segment, StepCapacity, StepInputs, Token, fp8,
    upload_floats, upload_matrix,
};

use super::{acts, bf16, bf16_matrix, noise, product, quantized, seen};

const TYPES: [FloatType; 2] = [FloatType::F32, FloatType::Bf16];

/// The nearest BF16 values.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| fp8::bf16_value(fp8::bf16_bits(*x))).collect()
}

/// Rows of `cols` values on the device.
fn rows_of(device: &Dev, float_type: FloatType, x: &[f32], cols: usize) -> Floats<Dev> {
    let mut floats = device.floats_of(float_type, x.len() / cols, cols).unwrap();
    device.write(x, &mut floats).unwrap();
    assert_eq!(floats.float_type(), float_type);
    floats
}

#[test]
fn bf16_rows_hold_the_nearest_values() {
    // Ties go to the value whose last bit is 0.
    let x = [257.0, 259.0, 258.9, -257.0, -259.0, 1.003, f32::MAX, f32::NEG_INFINITY];
    let nearest = [256.0, 260.0, 258.0, -256.0, -260.0, 1.0, f32::INFINITY, f32::NEG_INFINITY];
    for device in dev::all() {
        let got = device.read(&rows_of(&device, FloatType::Bf16, &x, 4)).unwrap();
        assert_eq!(got, nearest, "{}", dev::name(&device));
        assert_eq!(got, rounded(&x));
    }
}

/// (rows, out, in): outputs that are a multiple of eight and others, one row tile and several, tiles that
/// are cut along K, and enough rows that blocks compute whole tiles.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 24, 16),
    (2, 33, 48),
    (7, 136, 576),
    (17, 70, 192),
    (33, 129, 1536),
    (66, 260, 288),
    (130, 304, 1040),
    (300, 200, 576),
];

#[test]
fn a_product_is_rounded_to_the_nearest_bf16() {
    for device in dev::all() {
        for (rows, out, input) in SHAPES {
            let x = noise(1, rows * input);
            let w = noise(2, out * input);
            let ((codes, scales), halves) = (quantized(&w, input), bf16(&w));
            let data = MatrixData::Fp8 { codes: &codes, scales: &scales };
            let e4m3 = HostMatrix { out, input, data };
            let cases = [(e4m3, ActQuant::Fp8PerToken), (bf16_matrix(&halves, input), ActQuant::Bf16)];
            for (matrix, quant) in cases {
                let x = acts(&device, &x, input, quant);
                let exact = product(&device, &x, rows, matrix);
                let mut out = device.floats_of(FloatType::Bf16, rows, out).unwrap();
                device.linear(&x, &upload_matrix(&device, matrix).unwrap(), &mut out).unwrap();
                let got = device.read(&out).unwrap();
                let wrong = (0..got.len()).find(|i| got[*i] != rounded(&exact[*i..=*i])[0]);
                let name = dev::name(&device);
                assert!(wrong.is_none(), "{name} {quant:?} {rows} x {:?} x {input}: {wrong:?}", out.cols());
                assert!(got != exact, "{name}: a value must have been rounded");
            }
        }
    }
}

/// Calls `run` with rows of each type that hold the same values, and expects the same results.
fn check_both(device: &Dev, operation: &str, run: impl Fn(FloatType) -> Vec<f32>) {
    let [plain, halves] = TYPES.map(run);
    assert!(plain.iter().all(|x| x.is_finite()), "{operation}");
    assert!(plain == halves, "{}: {operation}", dev::name(device));
}

#[test]
fn norms_and_activations_read_both_types() {
    // One pass of a block, and several.
    for cols in [16, 48, 4112] {
        let rows = 3;
        let (x, delta) = (noise(1, rows * cols), rounded(&noise(2, rows * cols)));
        let (weight, h) = (noise(3, cols), rounded(&noise(4, rows * 2 * cols)));
        for device in dev::all() {
            for (kind, delta_quant) in
                [(NormKind::LayerNorm1p, ActQuant::Fp8PerToken), (NormKind::RmsNorm, ActQuant::Bf16)]
            {
                let bias = kind.has_bias().then(|| upload_floats(&device, cols, &noise(5, cols)).unwrap());
                let weight = upload_floats(&device, cols, &weight).unwrap();
                let norm = Norm { kind, weight, bias, eps: 1e-5 };
                check_both(&device, "norm", |float_type| {
                    let mut residual = rows_of(&device, FloatType::F32, &x, cols);
                    let delta = rows_of(&device, float_type, &delta, cols);
                    let mut out = device.acts(rows, cols).unwrap();
                    device.norm(&mut residual, Some(&delta), &norm, delta_quant, &mut out).unwrap();
                    let residual = device.read(&residual).unwrap();
                    let sums: Vec<f32> =
                        x.iter().zip(&device.read(&delta).unwrap()).map(|(x, d)| x + d).collect();
                    assert_eq!(residual, sums, "residual + delta");
                    [residual, seen(&device, &out, rows, cols)].concat()
                });
            }
            for kind in [Activation::SquaredRelu, Activation::SwiGlu] {
                let width = if kind.is_gated() { 2 * cols } else { cols };
                check_both(&device, "activation", |float_type| {
                    let h = rows_of(&device, float_type, &h[..rows * width], width);
                    let mut out = device.acts(rows, cols).unwrap();
                    device.activation(kind, &h, ActQuant::Fp8PerToken, &mut out).unwrap();
                    seen(&device, &out, rows, cols)
                });
            }
        }
    }
}

#[test]
fn add_takes_both_types() {
    let (rows, cols) = (3, 20);
    let values = [0, 1, 2].map(|seed| rounded(&noise(seed, rows * cols)));
    let sums: Vec<f32> = (0..rows * cols).map(|i| values[0][i] + values[1][i] + values[2][i]).collect();
    for device in dev::all() {
        for (of_x, of_parts) in TYPES.iter().flat_map(|x| TYPES.map(|parts| (*x, parts))) {
            let mut x = rows_of(&device, of_x, &values[0], cols);
            let parts = [1, 2].map(|part: usize| rows_of(&device, of_parts, &values[part], cols));
            device.add(&parts, &mut x).unwrap();
            let expected = if of_x == FloatType::Bf16 { rounded(&sums) } else { sums.clone() };
            let name = dev::name(&device);
            assert_eq!(device.read(&x).unwrap(), expected, "{name}: {of_x:?} += {of_parts:?}");
        }
    }
}

#[test]
fn attention_reads_both_types() {
    // Half of a head is rotated, and whole heads; the second has no multiple of eight anywhere.
    let shapes = [
        (HeadShape { q_heads: 4, kv_heads: 2, head_dim: 64 }, 16),
        (HeadShape { q_heads: 4, kv_heads: 1, head_dim: 12 }, 6),
    ];
    for (heads, half) in shapes {
        let (rows, width) = (70, (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim);
        let cols = heads.q_heads * heads.head_dim;
        let x = rounded(&noise(1, rows * width));
        let rope = Rope { inv_freq: (0..half).map(|i| 0.7f32.powi(i)).collect() };
        for device in dev::all() {
            for dtype in [KvDtype::Fp8, KvDtype::Bf16] {
                check_both(&device, "attention", |float_type| {
                    let capacity = StepCapacity { rows, max_positions: 128, ..Default::default() };
                    let mut step = device.step(capacity).unwrap();
                    let spec = CacheSpec { layers: 1, blocks: 2, heads, dtype };
                    let mut cache = device.cache(spec).unwrap();
                    let segments = vec![Segment { first: 0, len: rows, position: 0, blocks: [1, 0].into() }];
                    let tokens = vec![Token::Id(0); rows];
                    device.begin_step(&StepInputs { tokens, segments, graph_rows: 0 }, &mut step).unwrap();
                    let mut qkv = rows_of(&device, float_type, &x, width);
                    let mut out = device.acts(rows, cols).unwrap();
                    let kv = LayerKv { layer: 0, k_scale: 0.5, v_scale: 0.25 };
                    let layer = AttentionLayer { rope: &rope, kv, quant: ActQuant::Bf16 };
                    device.attention(&step, layer, &mut qkv, &mut cache, &mut out).unwrap();
                    seen(&device, &out, rows, cols)
                });
            }
        }
    }
}
