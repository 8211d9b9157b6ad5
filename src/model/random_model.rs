//! Builds a model with random weights, to measure speed without a checkpoint. Weights are normally
//! distributed and quantised like real ones. Every layer is different, so that no cache makes the result look
//! better.

use super::{Head, HeadDtype, Layer, Linear, LoadError, Model, ModelConfig, Precision, Shard};
use crate::device::{
    ActQuant, Device, DeviceError, LayerKv, MakeRandomMatrix, Norm, RandomWeights, RewardWeights, Rope, fp8,
    upload_floats,
};
use crate::random::Random;

/// Standard deviation of the E4M3 values. Real rows are scaled to a maximum of 448, about four standard
/// deviations.
const DEVIATION: f32 = 110.0;

/// Generates the matrices and norms of a model.
struct WeightGenerator<'a, D: Device> {
    device: &'a D,
    make_matrix: MakeRandomMatrix<D>,
    config: &'a ModelConfig,
    precision: Precision,
    /// E4M3 codes at 256 quantiles of a normal distribution.
    quantiles: [u8; 256],
    random: Random,
}

impl<D: Device> Model<D> {
    /// Builds a model of this architecture with random weights, which `make_matrix` makes on the device.
    /// `progress` is called with the number of finished layers.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn random(
        config: &ModelConfig,
        precision: Precision,
        device: &D,
        make_matrix: MakeRandomMatrix<D>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, LoadError> {
        let (quantiles, random) = (quantiles(), Random::new(1));
        let mut generator = WeightGenerator { device, make_matrix, config, precision, quantiles, random };
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(generator.layer(index)?);
            progress(index + 1);
        }
        Ok(Self {
            embedding: generator.table(HeadDtype::Bf16)?,
            final_norm: generator.norm()?,
            head: generator.head()?,
            layers,
            rope: Rope { inv_freq: config.inv_freq.clone() },
            shard: Shard::WHOLE,
            precision,
            vocab: config.vocab,
            config: config.clone(),
        })
    }
}

/// The E4M3 codes at the centres of 256 equally probable intervals of a normal distribution. Normal samples
/// are sums of twelve uniform ones.
fn quantiles() -> [u8; 256] {
    let mut random = Random::new(7);
    let mut sample =
        || (0..12).map(|_| (random.bits() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0;
    let mut samples: Vec<f32> = (0..256 * 64).map(|_| sample()).collect();
    samples.sort_by(f32::total_cmp);
    std::array::from_fn(|i| fp8::encode(samples[i * 64 + 32] * DEVIATION))
}

impl<D: Device> WeightGenerator<'_, D> {
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

    /// A norm that neither scales nor shifts.
    fn norm(&self) -> Result<Norm<D>, DeviceError> {
        let hidden = self.config.hidden;
        let kind = self.config.norm;
        let upload = |value: f32| upload_floats(self.device, hidden, &vec![value; hidden]);
        let weight = upload(kind.neutral_weight())?;
        let bias = if kind.has_bias() { Some(upload(0.0)?) } else { None };
        Ok(Norm { kind, weight, bias, eps: self.config.norm_eps })
    }

    /// A linear weight whose outputs are about as large as its inputs.
    fn linear(&mut self, shape: (usize, usize)) -> Result<Linear<D::Matrix>, DeviceError> {
        let (out, input) = shape;
        let scale = 1.0 / (DEVIATION * (input as f32).sqrt());
        let bf16 = self.precision == Precision::None;
        let quant = if bf16 { ActQuant::Bf16 } else { ActQuant::Fp8PerToken };
        Ok(Linear { matrix: self.matrix(out, input, scale, bf16)?, quant })
    }

    /// The LM head, or a reward head whose values are all 0.
    fn head(&mut self) -> Result<Head<D>, DeviceError> {
        let (hidden, width) = (self.config.hidden, self.config.reward_width());
        let dtype = self.config.head_dtype;
        Ok(match (width, self.config.tied) {
            (0, true) if dtype == HeadDtype::Bf16 => Head::Embedding,
            (0, _) => Head::Own(self.table(dtype)?),
            _ => Head::Reward(RewardWeights {
                weight: upload_floats(self.device, hidden, &vec![0.0; width * hidden])?,
                bias: upload_floats(self.device, width, &vec![0.0; width])?,
            }),
        })
    }

    /// An embedding or LM head.
    fn table(&mut self, dtype: HeadDtype) -> Result<Linear<D::Matrix>, DeviceError> {
        let bf16 = dtype == HeadDtype::Bf16;
        let matrix = self.matrix(self.config.vocab, self.config.hidden, 1.0 / DEVIATION, bf16)?;
        Ok(Linear { matrix, quant: ActQuant::Bf16 })
    }

    /// The next random matrix; each call uses a new seed.
    fn matrix(&mut self, out: usize, input: usize, scale: f32, bf16: bool) -> Result<D::Matrix, DeviceError> {
        let seed = self.random.bits();
        let weights = RandomWeights { out, input, seed, codes: &self.quantiles, scale, bf16 };
        (self.make_matrix)(self.device, &weights)
    }
}
