//! Weights in host memory, on their way from a checkpoint to a device.

use std::ops::Range;

/// Shape and element type of a weight matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixShape {
    /// Output features.
    pub out: usize,
    /// Input features.
    pub input: usize,
    /// Whether elements are BF16, rather than E4M3 with a scale per output.
    pub bf16: bool,
}

/// A matrix \[out, in\], row-major.
#[derive(Debug, Clone, Copy)]
pub struct HostMatrix<'a> {
    /// Output features.
    pub out: usize,
    /// Input features.
    pub input: usize,
    /// The elements.
    pub data: MatrixData<'a>,
}

/// The elements of a matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub enum MatrixData<'a> {
    /// BF16 bit patterns.
    Bf16(&'a [u16]),
    /// E4M3 codes, none of them NaN, and one F32 scale per output row: weight = code × scale.
    Fp8 {
        /// out × in codes.
        codes: &'a [u8],
        /// out scales.
        scales: &'a [f32],
    },
}

/// Consecutive rows of a matrix inside a wider row-major array, such as a rank's columns of a tensor in a
/// file.
#[derive(Debug, Clone, Copy)]
pub struct HostRows<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements per row: the matrix's input features.
    pub input: usize,
    /// Elements from the start of one row to the start of the next, at least `input`.
    pub stride: usize,
    /// The elements from the first row's first on; for E4M3 also one scale per row.
    pub data: MatrixData<'a>,
}

impl HostRows<'_> {
    /// Some of the rows, which exist.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let start = rows.start * self.stride;
        let data = match self.data {
            MatrixData::Bf16(values) => MatrixData::Bf16(&values[start..]),
            MatrixData::Fp8 { codes, scales } => {
                MatrixData::Fp8 { codes: &codes[start..], scales: &scales[rows.clone()] }
            }
        };
        Self { rows: rows.len(), data, ..*self }
    }

    /// Checks that `data` holds all elements of every row.
    ///
    /// # Panics
    /// If elements are missing, the number of scales is not `rows`, or `input` exceeds `stride`.
    pub fn check(&self) {
        let Self { rows, input, stride, data } = *self;
        let least = if rows == 0 { 0 } else { (rows - 1) * stride + input };
        let elements = match data {
            MatrixData::Bf16(values) => values.len(),
            MatrixData::Fp8 { codes, scales } => {
                assert_eq!(scales.len(), rows, "scales of {rows} rows");
                codes.len()
            }
        };
        assert!(input <= stride, "rows of {input} elements with a stride of {stride}");
        assert!(
            elements >= least,
            "{elements} elements for {rows} rows of {input} with a stride of {stride}, which take {least}"
        );
    }
}
