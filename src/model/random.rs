//! A model of random weights, for measuring speed without a checkpoint: normally distributed, quantised as real ones
//! are, and different in every layer, so that no cache flatters the result.

use super::{Layer, Linear, LoadError, Model, ModelConfig, Precision, Shard};
use crate::device::{ActQuant, Device, DeviceError, LayerKv, Norm, NormKind, RandomWeights, Rope, fp8};
use crate::random::Random;

/// Standard deviation of the codes, in units of E4M3: real rows reach 448 at about four of them.
const DEVIATION: f32 = 110.0;

/// Weights in the making.
struct Source<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    precision: Precision,
    /// E4M3 codes by the quantile of a normal distribution.
    quantiles: [u8; 256],
    random: Random,
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
        let mut source = Source { device, config, precision, quantiles: quantiles(), random: Random::new(1) };
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
            shard: Shard::WHOLE,
            vocab: config.vocab,
            config: config.clone(),
        })
    }
}

/// The code at each of 256 equally probable steps of a normal distribution, by the central limit of twelve.
fn quantiles() -> [u8; 256] {
    let mut random = Random::new(7);
    let mut sample =
        || (0..12).map(|_| (random.bits() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0;
    let mut samples: Vec<f32> = (0..256 * 64).map(|_| sample()).collect();
    samples.sort_by(f32::total_cmp);
    std::array::from_fn(|i| fp8::encode(samples[i * 64 + 32] * DEVIATION))
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

    /// A product whose outputs are about as large as its inputs.
    fn linear(&mut self, (out, input): (usize, usize)) -> Result<Linear<D::Matrix>, DeviceError> {
        let scale = 1.0 / (DEVIATION * (input as f32).sqrt());
        let bf16 = self.precision == Precision::None;
        let quant = if bf16 { ActQuant::Bf16 } else { ActQuant::Fp8PerToken };
        Ok(Linear { matrix: self.matrix((out, input), scale, bf16)?, quant })
    }

    /// An embedding or a head.
    fn table(&mut self) -> Result<Linear<D::Matrix>, DeviceError> {
        let matrix = self.matrix((self.config.vocab, self.config.hidden), 1.0 / DEVIATION, true)?;
        Ok(Linear { matrix, quant: ActQuant::Bf16 })
    }

    /// The next matrix, unlike any before it.
    fn matrix(
        &mut self,
        (out, input): (usize, usize),
        scale: f32,
        bf16: bool,
    ) -> Result<D::Matrix, DeviceError> {
        let seed = self.random.bits();
        self.device.random_weights(&RandomWeights { out, input, seed, codes: &self.quantiles, scale, bf16 })
    }
}
