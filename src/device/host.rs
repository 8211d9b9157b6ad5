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
