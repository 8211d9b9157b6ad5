//! Row operations against F64: norm, activation, quantisation, add and select.

use crate::dev::{self, Dev};
use octant::device::{
    ActQuant, Activation, Device, GatedRows, Norm, NormKind, StepCapacity, fp8, upload_floats,
};

use super::{noise, seen};

/// Normalises rows of 48 elements on the device, with fixed random weights. `norm` is the kind and the
/// epsilon.
fn normed(
    device: &Dev,
    x: &[f32],
    delta: Option<&[f32]>,
    norm: (NormKind, f32),
    quant: ActQuant,
) -> Vec<f32> {
    let (rows, cols) = (x.len() / 48, 48);
    let floats = |values: &[f32]| {
        let mut floats = device.floats(rows, cols).unwrap();
        device.write(values, &mut floats).unwrap();
        floats
    };
    let (weight, bias) = (noise(8, cols), noise(9, cols));
    let norm = Norm {
        kind: norm.0,
        weight: upload_floats(device, cols, &weight).unwrap(),
        bias: norm.0.has_bias().then(|| upload_floats(device, cols, &bias).unwrap()),
        eps: norm.1,
    };
    let mut out = device.acts(rows, cols).unwrap();
    let delta = delta.map(floats);
    device.norm(&mut floats(x), delta.as_ref(), &norm, quant, &mut out).unwrap();
    seen(device, &out, rows, cols)
}

/// Computes [`normed`] in F64, without quantisation.
fn exact(x: &[f32], delta: Option<&[f32]>, (kind, eps): (NormKind, f32)) -> Vec<f64> {
    let (weight, bias) = (noise(8, 48), noise(9, 48));
    let sums: Vec<f64> =
        x.iter().enumerate().map(|(i, x)| f64::from(*x + delta.map_or(0.0, |delta| delta[i]))).collect();
    let mut out = Vec::new();
    for row in sums.chunks_exact(48) {
        let mean = match kind {
            NormKind::LayerNorm1p => row.iter().sum::<f64>() / 48.0,
            NormKind::RmsNorm => 0.0,
        };
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 48.0;
        let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
        out.extend(row.iter().enumerate().map(|(i, x)| match kind {
            NormKind::LayerNorm1p => (x - mean) * inverse * (1.0 + f64::from(weight[i])) + f64::from(bias[i]),
            NormKind::RmsNorm => x * inverse * f64::from(weight[i]),
        }));
    }
    out
}

#[test]
fn both_norms_agree_with_f64_to_bf16() {
    let (x, delta) = (noise(1, 5 * 48), noise(2, 5 * 48));
    for device in dev::all() {
        for kind in [NormKind::LayerNorm1p, NormKind::RmsNorm] {
            for delta in [None, Some(&delta[..])] {
                let got = normed(&device, &x, delta, (kind, 1e-5), ActQuant::Bf16);
                for (got, expected) in got.iter().zip(exact(&x, delta, (kind, 1e-5))) {
                    // Half a unit of BF16's 8 bits.
                    let bound = expected.abs() / 256.0 + 1e-6;
                    assert!(
                        (f64::from(*got) - expected).abs() <= bound,
                        "{:?} {kind:?}: {got} {expected}",
                        dev::name(&device)
                    );
                }
            }
        }
    }
}

#[test]
fn layer_norm_1p_adds_one_to_the_weight_in_f32() {
    // The row has mean 0 and variance 1, so that it is its own normalisation: two elements of ±255/128, the
    // others such that the variance is 1.
    let high = 255.0f32 / 128.0;
    let low = ((48.0 - 2.0 * high * high) / 46.0).sqrt();
    let x: Vec<f32> =
        (0..48).map(|i| if i < 2 { high } else { low } * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    for device in dev::all() {
        let norm = Norm {
            kind: NormKind::LayerNorm1p,
            weight: upload_floats(&device, 48, &[0.003; 48]).unwrap(),
            bias: None,
            eps: 0.0,
        };
        let mut floats = device.floats(1, 48).unwrap();
        device.write(&x, &mut floats).unwrap();
        let mut out = device.acts(1, 48).unwrap();
        device.norm(&mut floats, None, &norm, ActQuant::Bf16, &mut out).unwrap();
        // 1.992 × 1.003 = 1.998 rounds to 2. In BF16, 1 + weight would round to 1 and the result would be
        // 1.992.
        assert_eq!(seen(&device, &out, 1, 48)[..2], [2.0, -2.0], "{}", dev::name(&device));
    }
}

#[test]
fn e4m3_rounds_to_within_half_a_unit() {
    let x = noise(3, 5 * 48);
    for device in dev::all() {
        let got = normed(&device, &x, None, (NormKind::RmsNorm, 1e-5), ActQuant::Fp8PerToken);
        let exact = exact(&x, None, (NormKind::RmsNorm, 1e-5));
        for (got, exact) in got.chunks_exact(48).zip(exact.chunks_exact(48)) {
            let amax = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (got, exact) in got.iter().zip(exact) {
                // Half a unit of 4 significant bits, or half of the subnormal step, which is 2^-9 of the
                // scale.
                let bound = (exact.abs() / 16.0).max(amax / 448.0 / 1024.0) * 1.001;
                assert!((f64::from(*got) - exact).abs() <= bound, "{:?}: {got} {exact}", dev::name(&device));
            }
        }
        let coarse = normed(&device, &x, None, (NormKind::RmsNorm, 1e-5), ActQuant::Fp8Static(1e-4));
        let largest = coarse.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(
            (largest - 448.0 * 1e-4).abs() < 1e-6,
            "{:?}: a static scale saturates at 448 × scale",
            dev::name(&device)
        );
    }
}

#[test]
fn activations_agree_with_f64() {
    let (rows, ffn) = (3, 48);
    let mut h = noise(4, rows * 2 * ffn);
    h.iter_mut().step_by(7).for_each(|x| *x *= 60.0);
    for device in dev::all() {
        for kind in [Activation::SquaredRelu, Activation::SwiGlu] {
            let width = if kind.is_gated() { 2 * ffn } else { ffn };
            let h = &h[..rows * width];
            let mut input = device.floats(rows, width).unwrap();
            device.write(h, &mut input).unwrap();
            let mut out = device.acts(rows, ffn).unwrap();
            device.activation(kind, &input, ActQuant::Bf16, &mut out).unwrap();
            let got = seen(&device, &out, rows, ffn);
            for (i, got) in got.iter().enumerate() {
                let (row, col) = (i / ffn, i % ffn);
                let h = |output: usize| f64::from(h[row * width + output]);
                let [x, expected] = match kind {
                    Activation::SquaredRelu => [h(col), h(col).max(0.0).powi(2)],
                    Activation::SwiGlu => {
                        let [x, up] = [GatedRows::Gate, GatedRows::Up].map(|which| h(which.row(col, ffn)));
                        [x, x / (1.0 + (-x).exp()) * up]
                    }
                };
                let bound = expected.abs() / 255.0 + 1e-12;
                assert!(
                    (f64::from(*got) - expected).abs() <= bound,
                    "{:?} {kind:?} {x}: {got} {expected}",
                    dev::name(&device)
                );
            }
        }
    }
}

#[test]
fn squared_relu_exceeds_the_range_of_f16() {
    for device in dev::all() {
        let mut h = device.floats(1, 16).unwrap();
        device.write(&[&[300.0, 1000.0, 4000.0, -300.0][..], &[1.0; 12]].concat(), &mut h).unwrap();
        let mut out = device.acts(1, 16).unwrap();
        for quant in [ActQuant::Bf16, ActQuant::Fp8PerToken] {
            device.activation(Activation::SquaredRelu, &h, quant, &mut out).unwrap();
            let got = seen(&device, &out, 1, 16);
            // The largest F16 is 65504. The bound is half a unit of E4M3's 4 significant bits, or half of the
            // row's subnormal step.
            for (got, x) in got.iter().zip([300.0f32, 1000.0, 4000.0]) {
                let bound = (x * x / 16.0).max(4000.0 * 4000.0 / 448.0 / 1024.0);
                assert!((got - x * x).abs() <= bound, "{:?} {quant:?}: {got}", dev::name(&device));
            }
            assert_eq!(got[3], 0.0);
        }
    }
}

#[test]
fn activation_and_quantisation_keep_nan() {
    for device in dev::all() {
        let mut h = device.floats(2, 16).unwrap();
        let mut values = [1.0f32; 32];
        values[3] = f32::NAN;
        device.write(&values, &mut h).unwrap();
        let mut out = device.acts(2, 16).unwrap();
        for quant in [ActQuant::Bf16, ActQuant::Fp8PerToken, ActQuant::Fp8Static(1.0)] {
            device.activation(Activation::SquaredRelu, &h, quant, &mut out).unwrap();
            let got = seen(&device, &out, 2, 16);
            assert!(got[3].is_nan(), "{:?} {quant:?}", dev::name(&device));
            assert!(got[16..].iter().all(|x| *x == 1.0), "{:?} {quant:?}: the other row", dev::name(&device));
        }
    }
}

#[test]
fn add_sums_the_parts_in_order() {
    let (rows, cols) = (3, 20);
    for device in dev::all() {
        for count in [0, 1, 3, 7] {
            let values: Vec<Vec<f32>> = (0..=count as u64).map(|i| noise(i, rows * cols)).collect();
            let floats = |values: &[f32]| {
                let mut floats = device.floats(rows + 1, cols).unwrap();
                device.write(values, &mut floats).unwrap();
                floats
            };
            let parts: Vec<_> = values[1..].iter().map(|part| floats(part)).collect();
            let mut x = floats(&values[0]);
            device.add(&parts, &mut x).unwrap();
            let sum = |i: usize| values[1..].iter().fold(values[0][i], |sum, part| sum + part[i]);
            let expected: Vec<f32> = (0..rows * cols).map(sum).collect();
            assert_eq!(device.read(&x).unwrap(), expected, "{}: {count} parts", dev::name(&device));
        }
    }
}

#[test]
fn select_copies_the_chosen_rows() {
    for device in dev::all() {
        let x = noise(5, 4 * 6);
        let mut residual = device.floats(4, 6).unwrap();
        device.write(&x, &mut residual).unwrap();
        let mut out = device.floats(2, 6).unwrap();
        // The CUDA device allocates the list of selected rows with the step.
        let _step = device.step(StepCapacity { rows: 4, max_positions: 64, ..Default::default() }).unwrap();
        device.select(&residual, &[3, 1], &mut out, 0).unwrap();
        assert_eq!(device.read(&out).unwrap(), [&x[18..24], &x[6..12]].concat());
        assert_eq!(fp8::MAX, 448.0);
    }
}
