//! The matrix product: agreement with F64 up to F32 rounding, and the same bits of a row for any number of
//! rows.

use crate::dev::{self, Dev};
use octant::device::{
    ActQuant, Device, EmbeddingTable, HostMatrix, MatrixData, SampleRow, SampleSource, StepCapacity, Token,
    fp8, upload_matrix,
};

use super::sample::row as greedy;
use super::{acts, bf16, bf16_matrix, noise, product, quantized};

/// (rows, out, in): full and partial panels and tiles, row tiles of various sizes, shapes of the demo model,
/// few and many rows, one and several chunks of inputs.
const SHAPES: [(usize, usize, usize); 15] = [
    (1, 1, 2),
    (1, 200, 64),
    (2, 33, 50),
    (3, 64, 8),
    (5, 95, 130),
    (8, 96, 576),
    (9, 31, 258),
    (17, 70, 192),
    (1, 5, 48),
    (40, 160, 576),
    (66, 260, 288),
    (130, 300, 1040),
    (16, 129, 1536),
    (2, 520, 4096),
    (270, 130, 272),
];

/// The values of the rows after quantisation, in F64.
fn rounded(x: &[f32], cols: usize, quant: ActQuant) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks_exact(cols) {
        let scale = match quant {
            ActQuant::Bf16 => {
                out.extend(row.iter().map(|x| f64::from(fp8::bf16_value(fp8::bf16_bits(*x)))));
                continue;
            }
            ActQuant::Fp8PerToken => fp8::scale_for(fp8::amax(row)),
            ActQuant::Fp8Static(scale) => scale,
        };
        let inverse = 1.0 / scale;
        out.extend(row.iter().map(|x| f64::from(fp8::round(x * inverse)) * f64::from(scale)));
    }
    out
}

/// Compares with a sum in F64. The bound is a share of the sum of absolute terms: [`dev::rounding`].
fn check(device: &Dev, shape: (usize, usize, usize), quant: ActQuant) {
    let (rows, out, input) = shape;
    let x = noise(1, rows * input);
    let w = noise(2, out * input);
    let (codes, scales) = quantized(&w, input);
    let halves = bf16(&w);
    let matrices = [
        bf16_matrix(&halves, input),
        HostMatrix { out, input, data: MatrixData::Fp8 { codes: &codes, scales: &scales } },
    ];
    let exact = [
        halves.iter().map(|w| f64::from(fp8::bf16_value(*w))).collect::<Vec<_>>(),
        codes
            .iter()
            .enumerate()
            .map(|(i, c)| f64::from(fp8::decode(*c)) * f64::from(scales[i / input]))
            .collect(),
    ];
    let quantised = acts(device, &x, input, quant);
    let x = rounded(&x, input, quant);
    for (matrix, w) in matrices.into_iter().zip(exact) {
        if !dev::takes(&matrix, quant) {
            continue;
        }
        let got = product(device, &quantised, rows, matrix);
        let bound = dev::rounding(&matrix, quant);
        for m in 0..rows {
            for n in 0..out {
                let terms = (0..input).map(|k| x[m * input + k] * w[n * input + k]);
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t: f64| (s + t, a + t.abs()));
                let error = (f64::from(got[m * out + n]) - sum).abs();
                assert!(
                    error <= bound * size + 1e-9,
                    "{:?} {shape:?} {quant:?} [{m}, {n}]: error {error} of {size}",
                    dev::name(device)
                );
            }
        }
    }
}

#[test]
fn linear_agrees_with_f64() {
    for device in dev::all() {
        for shape in SHAPES.into_iter().filter(|shape| shape.2 % dev::INPUTS == 0) {
            for quant in [ActQuant::Bf16, ActQuant::Fp8PerToken, ActQuant::Fp8Static(0.01)] {
                check(&device, shape, quant);
            }
        }
    }
}

/// A product whose rows must have the same bits whatever their number.
struct Invariance {
    out: usize,
    input: usize,
    rows: usize,
    /// Numbers of rows that are computed alone, the last of all rows.
    alone: &'static [usize],
}

/// The first covers the row tiles of the CPU and the smaller kernels. For the 300 rows of the second and
/// third, blocks of the GPU compute whole tiles, which are cut along K: two tiles, and one without a second
/// of its pair. In the fourth some parts have more chunks than others. In the fifth a cluster of blocks
/// computes several pairs of tiles.
const INVARIANCE: [Invariance; 5] = [
    Invariance { out: 200, input: 576, rows: 41, alone: &[1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 32, 33, 40] },
    Invariance { out: 200, input: 576, rows: 300, alone: &[1, 44, 64, 65, 128, 129, 256, 257] },
    Invariance { out: 72, input: 2560, rows: 300, alone: &[1, 7, 20, 100, 256, 299] },
    Invariance { out: 520, input: 4096, rows: 20, alone: &[1, 9] },
    Invariance { out: 5900, input: 128, rows: 300, alone: &[20, 128] },
];

#[test]
fn a_row_has_the_same_bits_with_any_number_of_rows_and_threads() {
    for Invariance { out, input, rows, alone } in INVARIANCE {
        let x = noise(3, rows * input);
        let (codes, scales) = quantized(&noise(4, out * input), input);
        let matrix = HostMatrix { out, input, data: MatrixData::Fp8 { codes: &codes, scales: &scales } };
        let halves = bf16(&noise(5, out * input));
        for device in dev::all() {
            let other = dev::other(&device);
            for (matrix, quant) in [
                (matrix, ActQuant::Fp8PerToken),
                (matrix, ActQuant::Bf16),
                (bf16_matrix(&halves, input), ActQuant::Bf16),
            ] {
                let all = product(&device, &acts(&device, &x, input, quant), rows, matrix);
                for &count in alone {
                    let first = rows - count;
                    let part = acts(&other, &x[first * input..], input, quant);
                    let got = product(&other, &part, count, matrix);
                    let name = dev::name(&device);
                    assert!(got == all[first * out..], "{name}: the last {count} of {rows} rows alone");
                }
            }
        }
    }
}

#[test]
fn every_e4m3_weight_is_multiplied_exactly() {
    // One input is 1 and the others are 0, so that each output is one weight.
    let codes: Vec<u8> = (0..=255u8).map(|c| if fp8::is_nan(c) { 0 } else { c }).collect();
    for device in dev::all() {
        let matrix =
            HostMatrix { out: 16, input: 16, data: MatrixData::Fp8 { codes: &codes, scales: &[1.0; 16] } };
        for k in 0..16 {
            let x: Vec<f32> = (0..16).map(|i| if i == k { 1.0 } else { 0.0 }).collect();
            for quant in [ActQuant::Bf16, ActQuant::Fp8Static(1.0)] {
                let got = product(&device, &acts(&device, &x, 16, quant), 1, matrix);
                let expected: Vec<f32> = (0..16).map(|n| fp8::decode(codes[n * 16 + k])).collect();
                assert_eq!(got, expected, "{} input {k}", dev::name(&device));
            }
        }
    }
}

#[test]
fn embedding_reads_back_the_packed_rows() {
    let (vocab, cols) = (75, 48);
    let w = bf16(&noise(6, vocab * cols));
    for device in dev::all() {
        let table = upload_matrix(&device, bf16_matrix(&w, cols)).unwrap();
        let capacity =
            StepCapacity { rows: 3, max_positions: 64, slots: 2, samples: 1, sampled_rows: 1, vocab: 3 };
        let mut step = device.step(capacity).unwrap();
        let segment = octant::device::Segment { first: 0, len: 3, position: 0, blocks: [0].into() };
        let inputs = octant::device::StepInputs {
            tokens: vec![Token::Id(74), Token::Last { slot: 1 }, Token::Id(33)],
            segments: vec![segment],
            ..Default::default()
        };
        device.begin_step(&inputs, &mut step).unwrap();
        let mut out = device.floats(3, cols).unwrap();
        // The second token of the step is the one sampled here: id 2 of 3.
        let mut logits = device.floats(1, 3).unwrap();
        device.write(&[0.0, 1.0, 2.0], &mut logits).unwrap();
        let source = SampleSource::Logits { logits: &logits, vocab: 3 };
        device.sample(source, &[SampleRow { slot: 1, ..greedy() }], &mut step).unwrap();
        device.embed(&step, EmbeddingTable { matrix: &table, first: 0 }, &mut out).unwrap();
        let expected: Vec<f32> = [74usize, 2, 33]
            .iter()
            .flat_map(|t| w[t * cols..(t + 1) * cols].iter().map(|x| fp8::bf16_value(*x)))
            .collect();
        assert_eq!(device.read(&out).unwrap(), expected, "{:?}", dev::name(&device));
        // A rank whose table begins at id 33: it does not have the second of the three tokens.
        device.embed(&step, EmbeddingTable { matrix: &table, first: 33 }, &mut out).unwrap();
        let only: Vec<f32> =
            [expected_row(&w, 41, cols), vec![0.0; cols], expected_row(&w, 0, cols)].concat();
        assert_eq!(device.read(&out).unwrap(), only);
    }
}

fn expected_row(w: &[u16], row: usize, cols: usize) -> Vec<f32> {
    w[row * cols..(row + 1) * cols].iter().map(|x| fp8::bf16_value(*x)).collect()
}
