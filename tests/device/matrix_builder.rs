//! A matrix whose rows are written in pieces equals the matrix written at once: pieces of any size, in any
//! order, from several threads, and from rows with a stride.

use octant::device::{Device, HostMatrix, HostRows, MatrixData, MatrixShape, fp8, upload_matrix};

use super::random_weights::rows;
use super::{bf16, bf16_matrix, noise, quantized};
use crate::dev::{self, Dev};

/// Elements between the rows of the source.
const GAP: usize = 7;

/// Copies the rows with a gap of `filler` after each, which must not be read.
fn widened<T: Copy>(values: &[T], input: usize, filler: T) -> Vec<T> {
    let rows = values.chunks_exact(input);
    rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(filler, GAP))).collect()
}

/// Cuts `0..out` into pieces of different sizes, in shuffled order.
fn pieces(out: usize) -> Vec<std::ops::Range<usize>> {
    let mut pieces = Vec::new();
    let (mut start, mut size) = (0, 1);
    while start < out {
        let end = (start + size).min(out);
        pieces.push(start..end);
        (start, size) = (end, size * 5 % 47 + 1);
    }
    let len = pieces.len();
    // 7919 is a prime above the number of pieces, so each index occurs once.
    (0..len).map(|i| pieces[i * 7919 % len].clone()).collect()
}

/// Writes the rows below `end` from three threads.
fn built(device: &Dev, host: HostMatrix<'_>, end: usize) -> <Dev as Device>::Matrix {
    let (out, input, stride) = (host.out, host.input, host.input + GAP);
    let is_bf16 = matches!(host.data, MatrixData::Bf16(_));
    let (halves, codes, scales) = match host.data {
        MatrixData::Bf16(values) => (widened(values, input, 0x7FC0), Vec::new(), Vec::new()),
        MatrixData::Fp8 { codes, scales } => (Vec::new(), widened(codes, input, 0x7F), scales.to_vec()),
    };
    let builder = device.begin_matrix(MatrixShape { out, input, bf16: is_bf16 }).unwrap();
    let pieces = pieces(end);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (builder, pieces, halves, codes, scales) = (&builder, &pieces, &halves, &codes, &scales);
            scope.spawn(move || {
                for piece in pieces.iter().skip(thread).step_by(3) {
                    // The last row of a piece has no gap after it.
                    let range = piece.start * stride..piece.end * stride - GAP;
                    let data = match is_bf16 {
                        true => MatrixData::Bf16(&halves[range]),
                        false => MatrixData::Fp8 { codes: &codes[range], scales: &scales[piece.clone()] },
                    };
                    let rows = HostRows { rows: piece.len(), input, stride, data };
                    device.write_rows(builder, piece.start, rows).unwrap();
                }
            });
        }
    });
    device.finish_matrix(builder).unwrap()
}

#[test]
fn rows_may_be_written_in_pieces_by_several_threads() {
    for device in dev::all() {
        for (out, input) in [(1, 2), (31, 25), (128, 64), (133, 33), (250, 96)] {
            let input = input * dev::INPUTS;
            let w = noise(out as u64, out * input);
            let (codes, scales) = quantized(&w, input);
            let halves = bf16(&w);
            let hosts = [
                bf16_matrix(&halves, input),
                HostMatrix { out, input, data: MatrixData::Fp8 { codes: &codes, scales: &scales } },
            ];
            for host in hosts {
                let whole = rows(&device, &upload_matrix(&device, host).unwrap(), out, input);
                let expected: Vec<f32> = match host.data {
                    MatrixData::Bf16(values) => values.iter().map(|bits| fp8::bf16_value(*bits)).collect(),
                    MatrixData::Fp8 { .. } => {
                        codes.iter().enumerate().map(|(i, c)| fp8::decode(*c) * scales[i / input]).collect()
                    }
                };
                assert_eq!(whole, expected, "{}: [{out}, {input}] at once", dev::name(&device));
                for end in [out, out / 2] {
                    let got = rows(&device, &built(&device, host, end), out, input);
                    let (written, unwritten) = got.split_at(end * input);
                    let name = dev::name(&device);
                    assert_eq!(written, &expected[..end * input], "{name}: {end} of [{out}, {input}]");
                    assert!(
                        unwritten.iter().all(|x| *x == 0.0),
                        "{name}: rows from {end} on of [{out}, {input}]"
                    );
                }
            }
        }
    }
}
