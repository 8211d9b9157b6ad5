//! Inputs of kernels, and how their results are read.

use octant::device::{
    ActQuant, Device, DeviceError, FloatType, Floats, HostMatrix, MatrixData, Norm, NormKind, fp8,
    upload_floats, upload_matrix,
};
use octant::random::Random;

/// Reproducible noise in [-2, 2], bell-shaped, with a standard deviation of 0.58.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut next = || (random.bits() >> 40) as f32 / (1u64 << 24) as f32;
    (0..len).map(|_| next() + next() + next() + next() - 2.0).collect()
}

/// The nearest values of a type.
pub(crate) fn rounded(float_type: FloatType, x: Vec<f32>) -> Vec<f32> {
    match float_type {
        FloatType::F32 => x,
        FloatType::Bf16 => x.into_iter().map(|x| fp8::bf16_value(fp8::bf16_bits(x))).collect(),
    }
}

/// The mean magnitude.
pub(crate) fn magnitude(x: &[f32]) -> f32 {
    let sum: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
    (sum / x.len() as f64) as f32
}

/// Rows of `cols` values of a type on a device.
pub(crate) fn rows_of<D: Device>(
    device: &D,
    float_type: FloatType,
    x: &[f32],
    cols: usize,
) -> Result<Floats<D>, DeviceError> {
    let mut floats = device.floats_of(float_type, x.len() / cols, cols)?;
    device.write(x, &mut floats)?;
    Ok(floats)
}

/// Quantises `x` as the input of a product. An RMSNorm with an epsilon far above the variance multiplies by
/// 2^-30, and its weights undo that exactly.
pub(crate) fn acts<D: Device>(
    device: &D,
    x: &[f32],
    cols: usize,
    quant: ActQuant,
) -> Result<D::Acts, DeviceError> {
    let mut residual = rows_of(device, FloatType::F32, x, cols)?;
    let weight = upload_floats(device, cols, &vec![(1u64 << 30) as f32; cols])?;
    let norm = Norm { kind: NormKind::RmsNorm, weight, bias: None, eps: (1u64 << 60) as f32 };
    let mut acts = device.acts(x.len() / cols, cols)?;
    device.norm(&mut residual, None, &norm, quant, &mut acts)?;
    Ok(acts)
}

/// A product, read as F32.
pub(crate) fn product<D: Device>(
    device: &D,
    x: &D::Acts,
    matrix: &D::Matrix,
    mut out: Floats<D>,
) -> Result<Vec<f32>, DeviceError> {
    device.linear(x, matrix, &mut out)?;
    device.read(&out)
}

/// Shows quantised rows: a product with it returns their values, since E4M3 holds 1 and 0 exactly.
pub(crate) struct Identity<D: Device> {
    matrix: D::Matrix,
    cols: usize,
}

impl<D: Device> Identity<D> {
    pub(crate) fn new(device: &D, cols: usize) -> Result<Self, DeviceError> {
        let mut codes = vec![0; cols * cols];
        codes.iter_mut().step_by(cols + 1).for_each(|code| *code = fp8::encode(1.0));
        let data = MatrixData::Fp8 { codes: &codes, scales: &vec![1.0; cols] };
        Ok(Self { matrix: upload_matrix(device, HostMatrix { out: cols, input: cols, data })?, cols })
    }

    /// Elements of a row.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The values of quantised rows.
    pub(crate) fn show(&self, device: &D, acts: &D::Acts, rows: usize) -> Result<Vec<f32>, DeviceError> {
        product(device, acts, &self.matrix, device.floats(rows, self.cols)?)
    }
}
