//! Loads a checkpoint into the ranks' models: makes the load plan, reads the weights, assembles the models.

use std::path::Path;

use super::config::ModelConfig;
use super::error::LoadError;
use super::load_plan::{HeadPlan, LayerPlan, LoadPlan, MatrixPlan, NormPlan};
use super::weight_reader::{self, LoadProgress};
use super::{Head, Layer, Linear, Model, Precision, Shard};
use crate::device::{Device, Norm, RewardWeights, Rope, upload_floats};

impl<D: Device> Model<D> {
    /// Loads the weights of a Hugging Face directory for all ranks, each onto its device, at the same time.
    /// Tensors that several ranks share are read once. `config` is that of the whole model.
    ///
    /// # Errors
    /// The first problem met; reading stops then.
    pub fn load_all(
        dir: &Path,
        config: &ModelConfig,
        precision: Precision,
        devices: &[D],
        progress: &mut dyn FnMut(LoadProgress<'_>),
    ) -> Result<Vec<Self>, LoadError> {
        let ranks: Vec<_> = Shard::all(devices.len()).zip(devices).collect();
        load_ranks(dir, config, precision, &ranks, progress)
    }
}

/// Loads one rank's part of the model.
pub(super) fn load<D: Device>(
    dir: &Path,
    config: &ModelConfig,
    shard: Shard,
    precision: Precision,
    device: &D,
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Model<D>, LoadError> {
    let mut models = load_ranks(dir, config, precision, &[(shard, device)], progress)?;
    Ok(models.remove(0))
}

/// Loads some ranks of a group, at least one.
fn load_ranks<D: Device>(
    dir: &Path,
    config: &ModelConfig,
    precision: Precision,
    ranks: &[(Shard, &D)],
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Vec<Model<D>>, LoadError> {
    let share = config.share(ranks[0].0.ranks).map_err(|error| LoadError::file(dir, error.to_string()))?;
    let (shards, devices): (Vec<_>, Vec<_>) = ranks.iter().copied().unzip();
    let plan = LoadPlan::new(dir, config, &shards, precision)?;
    let matrices = weight_reader::run(&plan, &devices, progress)?;
    let assemble = |(matrices, (shard, device)): (Vec<D::Matrix>, &(Shard, &D))| {
        let mut parts = ModelParts { device: *device, config, plans: &plan.matrices, matrices: Vec::new() };
        parts.matrices.extend(matrices.into_iter().map(Some));
        Ok(Model {
            layers: plan.layers.iter().map(|layer| parts.layer(layer)).collect::<Result<_, _>>()?,
            final_norm: parts.norm(&plan.final_norm)?,
            embedding: parts.linear(plan.embedding),
            head: parts.head(&plan.head)?,
            config: share.clone(),
            shard: *shard,
            precision,
            vocab: config.vocab,
            rope: Rope { inv_freq: config.inv_freq.clone() },
        })
    };
    matrices.into_iter().zip(ranks).map(assemble).collect()
}

/// The parts that a rank's model is assembled from.
struct ModelParts<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    plans: &'a [MatrixPlan],
    /// The matrices, indexed as in the load plan. Each is taken once.
    matrices: Vec<Option<D::Matrix>>,
}

impl<D: Device> ModelParts<'_, D> {
    fn layer(&mut self, plan: &LayerPlan) -> Result<Layer<D>, LoadError> {
        Ok(Layer {
            input_norm: self.norm(&plan.input_norm)?,
            qkv: self.linear(plan.qkv),
            kv: plan.kv,
            output: self.linear(plan.output),
            mlp_norm: self.norm(&plan.mlp_norm)?,
            up: self.linear(plan.up),
            down: self.linear(plan.down),
        })
    }

    fn linear(&mut self, index: usize) -> Linear<D::Matrix> {
        let matrix = self.matrices[index].take().expect("the model uses each matrix once");
        Linear { matrix, quant: self.plans[index].quant }
    }

    fn head(&mut self, plan: &HeadPlan) -> Result<Head<D>, LoadError> {
        Ok(match plan {
            HeadPlan::Embedding => Head::Embedding,
            HeadPlan::Matrix(index) => Head::Own(self.linear(*index)),
            HeadPlan::Reward { weight, bias } => Head::Reward(RewardWeights {
                weight: upload_floats(self.device, self.config.hidden, weight)?,
                bias: upload_floats(self.device, bias.len(), bias)?,
            }),
        })
    }

    fn norm(&self, plan: &NormPlan) -> Result<Norm<D>, LoadError> {
        let upload = |values: &Vec<f32>| upload_floats(self.device, values.len(), values);
        let weight = upload(&plan.weight)?;
        let bias = plan.bias.as_ref().map(upload).transpose()?;
        Ok(Norm { kind: self.config.norm, weight, bias, eps: self.config.norm_eps })
    }
}
