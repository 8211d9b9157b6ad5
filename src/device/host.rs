//! Weights on the host, on their way from a checkpoint to a device.

/// A matrix \[out, in\], row-major.
#[derive(Debug, Clone, Copy)]
pub struct HostMatrix<'a> {
    /// Output features.
    pub out: usize,
    /// Input features.
    pub input: usize,
    /// Elements.
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

/// Consecutive rows of a matrix, or the same columns of each: what a file's piece has of it.
#[derive(Debug, Clone, Copy)]
pub struct HostRows<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements of a row, as many as the matrix has input features.
    pub input: usize,
    /// Elements from the beginning of one row to that of the next; what lies between is none of the matrix's.
    pub stride: usize,
    /// Elements from the first row's first on, and of E4M3 a scale for each row.
    pub data: MatrixData<'a>,
}

impl<'a> From<HostMatrix<'a>> for HostRows<'a> {
    fn from(host: HostMatrix<'a>) -> Self {
        Self { rows: host.out, input: host.input, stride: host.input, data: host.data }
    }
}

impl HostRows<'_> {
    /// Checks that the elements of every row are there.
    ///
    /// # Panics
    /// If not.
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
        assert!(input <= stride, "rows of {input} elements, each {stride} after the one before");
        assert!(
            elements >= least,
            "{rows} rows of {input}, each {stride} after the one before, in {elements}"
        );
    }
}
