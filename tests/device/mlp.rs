//! The first product of an MLP with its activation has the bits of the two operations.

use octant::device::{
    ActQuant, Activation, Device, FloatType, HostMatrix, MatrixData, QuantisedActivation, fp8, upload_matrix,
};

use super::{acts, noise, product, quantized};
use crate::dev;

/// A product [rows, outputs] with its activation.
struct Case {
    rows: usize,
    ffn: usize,
    kind: Activation,
    quant: ActQuant,
    float_type: FloatType,
}

/// Activations of inputs that are made in two ways: by two operations, and by one. Both are multiplied by the
/// same weights, so that their values and scales show. Returns the two results.
fn both(device: &dev::Dev, case: &Case, x: &[f32], w: &[f32], input: usize) -> [Vec<f32>; 2] {
    let &Case { rows, ffn, kind, quant, float_type } = case;
    let (codes, scales) = quantized(w, input);
    let data = MatrixData::Fp8 { codes: &codes, scales: &scales };
    let width = if kind.is_gated() { 2 * ffn } else { ffn };
    let matrix = upload_matrix(device, HostMatrix { out: width, input, data }).unwrap();
    let x = acts(device, x, input, ActQuant::Fp8PerToken);
    let mut h = device.floats_of(float_type, rows, width).unwrap();
    let mut out = device.acts(rows, ffn).unwrap();
    let next: Vec<u8> = noise(9, 24 * ffn).into_iter().map(fp8::encode).collect();
    let next = MatrixData::Fp8 { codes: &next, scales: &[1.0; 24] };
    let mut results = [vec![], vec![]];
    device.linear(&x, &matrix, &mut h).unwrap();
    device.activation(kind, &h, quant, &mut out).unwrap();
    results[0] = product(device, &out, rows, HostMatrix { out: 24, input: ffn, data: next });
    // Earlier contents of the buffers must not show.
    device.write(&vec![1e30; rows * width], &mut h).unwrap();
    device.activation(kind, &h, quant, &mut out).unwrap();
    let mut single = out;
    let activation = QuantisedActivation { kind, quant };
    device.linear_activation(&x, &matrix, activation, &mut h, &mut single).unwrap();
    results[1] = product(device, &single, rows, HostMatrix { out: 24, input: ffn, data: next });
    results
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    let bits = |x: &f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bits(a) == bits(b))
}

#[test]
fn product_and_activation_have_the_bits_of_two_operations() {
    let quants = [ActQuant::Fp8PerToken, ActQuant::Bf16, ActQuant::Fp8Static(0.01)];
    // Less than a tile of outputs, a tile and a part, whole tiles, and more than a block quantises.
    for (ffn, input, rows) in
        [(48, 64, 3), (144, 320, 9), (256, 144, 40), (3216, 16, 8), (1296, 48, 130), (144, 48, 700)]
    {
        let x = noise(1, rows * input);
        for device in dev::all() {
            for kind in [Activation::SquaredRelu, Activation::SwiGlu] {
                let w = noise(2, 2 * ffn * input);
                let w = &w[..if kind.is_gated() { 2 } else { 1 } * ffn * input];
                for quant in quants {
                    for float_type in [FloatType::Bf16, FloatType::F32] {
                        let case = Case { rows, ffn, kind, quant, float_type };
                        let [two, one] = both(&device, &case, &x, w, input);
                        let name = dev::name(&device);
                        let shape = format!("{kind:?} {quant:?} {float_type:?} [{rows}, {ffn}, {input}]");
                        assert!(two.iter().any(|x| *x != 0.0), "{name}: {shape}");
                        assert!(same_bits(&two, &one), "{name}: {shape}");
                    }
                }
            }
        }
    }
}

/// Changes to rows of positive inputs: none, the sign, all to zero, and one to NaN.
const SPECIAL: [fn(f32) -> f32; 4] = [|x| x, |x| -x, |_| 0.0, |_| f32::NAN];

/// Results of a product with positive weights and of its activation, for rows like [`SPECIAL`] with ordinary
/// rows between.
fn special_rows(device: &dev::Dev, kind: Activation) -> [Vec<f32>; 2] {
    let (rows, ffn, input) = (2 * SPECIAL.len(), 272, 48);
    let width = if kind.is_gated() { 2 * ffn } else { ffn };
    let mut w: Vec<f32> = noise(3, width * input).iter().map(|x| x.abs() + 0.1).collect();
    // The largest output is the last.
    w[(width - 1) * input..].iter_mut().for_each(|x| *x *= 40.0);
    let mut x: Vec<f32> = noise(4, rows * input).iter().map(|x| x.abs() + 0.1).collect();
    for (row, change) in x.chunks_exact_mut(input).step_by(2).zip(SPECIAL) {
        let len = if change(1.0).is_nan() { 1 } else { input };
        row[..len].iter_mut().for_each(|x| *x = change(*x));
    }
    let quant = ActQuant::Fp8PerToken;
    both(device, &Case { rows, ffn, kind, quant, float_type: FloatType::Bf16 }, &x, &w, input)
}

#[test]
fn maxima_of_rows_without_positive_outputs_and_with_nan() {
    for device in dev::all() {
        for kind in [Activation::SquaredRelu, Activation::SwiGlu] {
            let [two, one] = special_rows(&device, kind);
            let name = format!("{} {kind:?}", dev::name(&device));
            assert!(same_bits(&two, &one), "{name}");
            let row = |row: usize| &one[24 * row..24 * (row + 1)];
            let negative = row(2).iter().all(|x| *x == 0.0);
            assert_eq!(negative, !kind.is_gated(), "{name}: activation of negative outputs");
            assert!(row(4).iter().all(|x| *x == 0.0), "{name}: activation of zeros");
            assert!(row(6).iter().all(|x| x.is_nan()), "{name}: NaN is lost");
            for ordinary in [0, 1, 3, 5, 7] {
                assert!(row(ordinary).iter().all(|x| x.is_finite()), "{name}: row {ordinary}");
            }
        }
    }
}
