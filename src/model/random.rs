//! A model of random weights, for measuring speed without a checkpoint: normally distributed, quantised as real ones
//! are, and different in every layer, so that no cache flatters the result.

use super::{Layer, Linear, LoadError, Model, ModelConfig, Precision};
use crate::device::{
    ActQuant, Device, DeviceError, HostMatrix, LayerKv, MatrixData, Norm, NormKind, Rope, fp8,
};

/// Standard deviation of the codes, in units of E4M3: real rows reach 448 at about four of them.
const DEVIATION: f32 = 110.0;

/// Weights in the making.
struct Source<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    precision: Precision,
    /// E4M3 codes by the quantile of a normal distribution.
    quantiles: [u8; 256],
    state: u64,
}

impl<D: Device> Model<D> {
    /// A model of this architecture with random weights. `progress` is told of each layer.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn random(
        config: &ModelConfig,
        precision: Precision,
        device: &D,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, LoadError> {
        let mut source = Source { device, config, precision, quantiles: quantiles(), state: 1 };
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(source.layer(index)?);
            progress(index + 1);
        }
        Ok(Self {
            embedding: source.table()?,
            final_norm: source.norm()?,
            head: if config.tied { None } else { Some(source.table()?) },
            layers,
            rope: Rope { inv_freq: config.inv_freq.clone() },
            config: config.clone(),
        })
    }
}

/// The code at each of 256 equally probable steps of a normal distribution, by the central limit of twelve.
fn quantiles() -> [u8; 256] {
    let mut state = 7;
    let mut sample =
        || (0..12).map(|_| (next(&mut state) >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0;
    let mut samples: Vec<f32> = (0..256 * 64).map(|_| sample()).collect();
    samples.sort_by(f32::total_cmp);
    std::array::from_fn(|i| fp8::encode(samples[i * 64 + 32] * DEVIATION))
}

/// Splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl<D: Device> Source<'_, D> {
    fn layer(&mut self, index: usize) -> Result<Layer<D>, DeviceError> {
        let [qkv, output, up, down] = self.config.linear_shapes();
        Ok(Layer {
            input_norm: self.norm()?,
            qkv: self.linear(qkv)?,
            kv: LayerKv { layer: index, k_scale: 1.0, v_scale: 1.0 },
            output: self.linear(output)?,
            mlp_norm: self.norm()?,
            up: self.linear(up)?,
            down: self.linear(down)?,
        })
    }

    /// A norm that neither stretches nor shifts.
    fn norm(&self) -> Result<Norm<D::Vector>, DeviceError> {
        let hidden = self.config.hidden;
        let plus_one = self.config.norm == NormKind::LayerNorm1p;
        let weight = self.device.vector(&vec![if plus_one { 0.0 } else { 1.0 }; hidden])?;
        let bias = if plus_one { Some(self.device.vector(&vec![0.0; hidden])?) } else { None };
        Ok(Norm { kind: self.config.norm, weight, bias, eps: self.config.norm_eps })
    }

    fn codes(&mut self, count: usize) -> Vec<u8> {
        let mut codes = vec![0; count];
        for chunk in codes.chunks_mut(8) {
            let bytes = next(&mut self.state).to_le_bytes();
            chunk.iter_mut().zip(bytes).for_each(|(code, byte)| *code = self.quantiles[usize::from(byte)]);
        }
        codes
    }

    /// A product whose outputs are about as large as its inputs.
    fn linear(&mut self, (out, input): (usize, usize)) -> Result<Linear<D::Matrix>, DeviceError> {
        let codes = self.codes(out * input);
        let scale = 1.0 / (DEVIATION * (input as f32).sqrt());
        let (data, quant) = match self.precision {
            Precision::Fp8 => {
                (MatrixData::Fp8 { codes: &codes, scales: &vec![scale; out] }, ActQuant::Fp8PerToken)
            }
            Precision::None => (MatrixData::Bf16(&halves(&codes, scale)), ActQuant::Bf16),
        };
        Ok(Linear { matrix: self.device.matrix(HostMatrix { out, input, data })?, quant })
    }

    /// An embedding or a head.
    fn table(&mut self) -> Result<Linear<D::Matrix>, DeviceError> {
        let (out, input) = (self.config.vocab, self.config.hidden);
        let halves = halves(&self.codes(out * input), 1.0 / DEVIATION);
        let matrix = self.device.matrix(HostMatrix { out, input, data: MatrixData::Bf16(&halves) })?;
        Ok(Linear { matrix, quant: ActQuant::Bf16 })
    }
}

fn halves(codes: &[u8], scale: f32) -> Vec<u16> {
    codes.iter().map(|code| fp8::bf16_bits(fp8::decode(*code) * scale)).collect()
}
