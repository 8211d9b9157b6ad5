//! How far quantised weights are from the stored ones.

use serde_json::{Map, Value, json};

use super::{Granularity, Item};
use crate::device::fp8;

/// Sums over a weight's elements, or some of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Errors {
    /// Sum of the squares of what is stored.
    square: f64,
    /// Sum of the squares of the differences.
    square_error: f64,
    max_abs_error: f64,
    saturated: u64,
    zeroed: u64,
}

/// How far one quantised weight is from the stored one.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorReport {
    /// The weight.
    pub name: String,
    /// Rows and columns.
    pub shape: Vec<usize>,
    /// Root of the mean square of the differences, over that of the weight; 0 for a weight of zeros.
    pub relative_rms_error: f64,
    /// The largest difference.
    pub max_abs_error: f64,
    /// Elements stored as ±448, the largest code; each scale is such that there is one at least.
    pub saturated: u64,
    /// Elements other than 0 stored as 0.
    pub zeroed: u64,
}

impl Errors {
    /// Adds a row and its codes. Sums run in one order whatever the threads, so that a report has the same bytes always.
    pub(super) fn add_row(&mut self, row: &[f32], codes: &[u8], scale: f32) {
        // In units of the scale, where no square can overflow or vanish; short sums in F32, in lanes, are exact enough.
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

    /// These and those of the rows after.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            square: self.square + other.square,
            square_error: self.square_error + other.square_error,
            max_abs_error: self.max_abs_error.max(other.max_abs_error),
            saturated: self.saturated + other.saturated,
            zeroed: self.zeroed + other.zeroed,
        }
    }

    /// For the journal, where text could lose a bit.
    pub(super) fn bits(&self) -> [u64; 5] {
        let Self { square, square_error, max_abs_error, saturated, zeroed } = *self;
        [square.to_bits(), square_error.to_bits(), max_abs_error.to_bits(), saturated, zeroed]
    }

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
    pub(super) fn new(item: &Item, errors: &Errors) -> Self {
        let ratio = if errors.square > 0.0 { errors.square_error / errors.square } else { 0.0 };
        Self {
            name: item.name.clone(),
            shape: item.shape.clone(),
            relative_rms_error: ratio.sqrt(),
            max_abs_error: errors.max_abs_error,
            saturated: errors.saturated,
            zeroed: errors.zeroed,
        }
    }
}

/// The contents of `quantization_report.json`.
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

#[cfg(test)]
mod tests {
    use super::Errors;
    use crate::device::fp8;

    #[test]
    fn errors_are_what_they_say() {
        // 448 and -448 fit; 17 lies between 16 and 18 and goes to the even code; 2^-11 is less than half the least code.
        let row = [448.0, -448.0, 17.0, 0.0004882, 0.0, 1.0];
        let codes = row.map(fp8::encode);
        let mut errors = Errors::default();
        errors.add_row(&row, &codes, 1.0);
        assert_eq!((errors.saturated, errors.zeroed), (2, 1));
        assert_eq!(errors.max_abs_error, 1.0);
        assert!((errors.square_error - 1.0).abs() < 1e-6, "{errors:?}");
        assert!((errors.square - (2.0 * 448.0 * 448.0 + 290.0)).abs() < 1.0, "{errors:?}");
        assert_eq!(Errors::from_bits(errors.bits()), errors);
    }

    #[test]
    fn neither_large_nor_small_weights_overflow() {
        for size in [1e-28f32, 1e30] {
            let row = [size, size * 0.37, size * 0.11];
            let mut codes = [0; 3];
            let scale = fp8::quantize_row(&row, &mut codes);
            let mut errors = Errors::default();
            errors.add_row(&row, &codes, scale);
            let relative = (errors.square_error / errors.square).sqrt();
            assert!(relative > 1e-4 && relative < 0.05, "{size}: {relative}");
        }
    }
}
