//! Quantisation error: the difference between the quantised weights and the stored ones.

use serde_json::{Map, Value, json};

use super::granularity::Granularity;
use crate::device::fp8;

/// Error sums over the elements of a weight, or of some of its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ErrorSums {
    /// Sum of the squares of the stored elements.
    square: f64,
    /// Sum of the squares of the differences.
    square_error: f64,
    /// Largest absolute difference.
    max_abs_error: f64,
    /// Elements stored as ±448, the largest code.
    saturated: u64,
    /// Elements other than 0 stored as 0.
    zeroed: u64,
}

/// Quantisation error of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorReport {
    /// Name of the weight.
    pub name: String,
    /// Rows and columns.
    pub shape: Vec<usize>,
    /// RMS of the differences divided by the RMS of the weight; 0 for a weight of zeros.
    pub relative_rms_error: f64,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// Elements stored as ±448, the largest code; at least one for each scale.
    pub saturated: u64,
    /// Elements other than 0 stored as 0.
    pub zeroed: u64,
}

impl ErrorSums {
    /// Adds a row, its codes and its scale. The order of additions does not depend on the number of threads,
    /// so a report always has the same bytes.
    pub(super) fn add_row(&mut self, row: &[f32], codes: &[u8], scale: f32) {
        // In units of the scale no square overflows or underflows. Sums of 512 elements in F32 lanes are
        // exact enough.
        const LANES: usize = 8;
        let inverse = 1.0 / scale;
        let (mut square, mut square_error, mut max) = (0.0f64, 0.0f64, 0.0f32);
        for (row, codes) in row.chunks(512).zip(codes.chunks(512)) {
            let mut squares = [0.0f32; LANES];
            let mut errors = [0.0f32; LANES];
            let mut maxima = [0.0f32; LANES];
            let mut counts = [[0u32; LANES]; 2];
            for (row, codes) in row.chunks(LANES).zip(codes.chunks(LANES)) {
                for (lane, (x, code)) in row.iter().zip(codes).enumerate() {
                    let scaled = x * inverse;
                    let error = (scaled - fp8::decode(*code)).abs();
                    squares[lane] += scaled * scaled;
                    errors[lane] += error * error;
                    maxima[lane] = maxima[lane].max(error);
                    counts[0][lane] += u32::from(code & 0x7F == 0x7E);
                    counts[1][lane] += u32::from((code & 0x7F == 0) & (*x != 0.0));
                }
            }
            square += f64::from(squares.iter().sum::<f32>());
            square_error += f64::from(errors.iter().sum::<f32>());
            max = maxima.iter().fold(max, |a, b| a.max(*b));
            self.saturated += u64::from(counts[0].iter().sum::<u32>());
            self.zeroed += u64::from(counts[1].iter().sum::<u32>());
        }
        let scale = f64::from(scale);
        self.square += square * scale * scale;
        self.square_error += square_error * scale * scale;
        self.max_abs_error = self.max_abs_error.max(f64::from(max) * scale);
    }

    /// Adds the sums of the rows that follow.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            square: self.square + other.square,
            square_error: self.square_error + other.square_error,
            max_abs_error: self.max_abs_error.max(other.max_abs_error),
            saturated: self.saturated + other.saturated,
            zeroed: self.zeroed + other.zeroed,
        }
    }

    /// Returns the fields as integers for the journal, because decimal text could lose a bit.
    pub(super) fn bits(&self) -> [u64; 5] {
        let Self { square, square_error, max_abs_error, saturated, zeroed } = *self;
        [square.to_bits(), square_error.to_bits(), max_abs_error.to_bits(), saturated, zeroed]
    }

    /// Restores sums from [`Self::bits`].
    pub(super) fn from_bits([square, square_error, max_abs_error, saturated, zeroed]: [u64; 5]) -> Self {
        Self {
            square: f64::from_bits(square),
            square_error: f64::from_bits(square_error),
            max_abs_error: f64::from_bits(max_abs_error),
            saturated,
            zeroed,
        }
    }
}

impl TensorReport {
    pub(super) fn new(name: &str, shape: &[usize], errors: &ErrorSums) -> Self {
        let ratio = if errors.square > 0.0 { errors.square_error / errors.square } else { 0.0 };
        Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
            relative_rms_error: ratio.sqrt(),
            max_abs_error: errors.max_abs_error,
            saturated: errors.saturated,
            zeroed: errors.zeroed,
        }
    }
}

/// Returns the contents of `quantization_report.json`.
pub(super) fn json(granularity: Granularity, reports: &[TensorReport]) -> Value {
    let tensor = |report: &TensorReport| {
        let fields = json!({
            "shape": report.shape,
            "relative_rms_error": report.relative_rms_error,
            "max_abs_error": report.max_abs_error,
            "saturated": report.saturated,
            "zeroed": report.zeroed,
        });
        (report.name.clone(), fields)
    };
    let tensors: Map<String, Value> = reports.iter().map(tensor).collect();
    json!({ "scheme": granularity.strategy(), "tensors": tensors })
}
