//! From a checkpoint to the ranks' models: what `plan` decided, read by `stream`, put together.

use std::path::Path;

use super::config::ModelConfig;
use super::error::LoadError;
use super::plan::{LayerPlan, NormPlan, Plan, Product};
use super::{Layer, Linear, Model, Precision, Shard, stream};
use crate::device::{Device, Norm, Rope, upload_floats};

/// How far loading has got.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadProgress<'a> {
    /// Bytes of the files read and taken in.
    pub done: u64,
    /// Bytes that have to be: what the ranks that are loaded have between them, once.
    pub total: u64,
    /// The tensor of which a piece has just been taken in.
    pub tensor: &'a str,
}

impl<D: Device> Model<D> {
    /// Loads every rank's part of the weights of a Hugging Face directory, each onto its device, all at the same time.
    /// What several ranks have parts of is read once. `config` is the whole model's.
    ///
    /// # Errors
    /// The first that anything meets; then nothing more is read.
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

/// Loads one rank's part.
pub(super) fn load<D: Device>(
    dir: &Path,
    config: &ModelConfig,
    (shard, precision): (Shard, Precision),
    device: &D,
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Model<D>, LoadError> {
    let mut models = load_ranks(dir, config, precision, &[(shard, device)], progress)?;
    Ok(models.remove(0))
}

/// Loads some of a group's ranks; at least one.
fn load_ranks<D: Device>(
    dir: &Path,
    config: &ModelConfig,
    precision: Precision,
    ranks: &[(Shard, &D)],
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Vec<Model<D>>, LoadError> {
    let share = config.share(ranks[0].0.ranks).map_err(|message| LoadError::file(dir, message))?;
    let (shards, devices): (Vec<_>, Vec<_>) = ranks.iter().copied().unzip();
    let plan = Plan::new(dir, config, &shards, precision)?;
    let matrices = stream::run(&plan, &devices, progress)?;
    let assemble = |(matrices, (shard, device)): (Vec<D::Matrix>, &(Shard, &D))| {
        let mut parts = Parts { device: *device, config, products: &plan.products, matrices: Vec::new() };
        parts.matrices.extend(matrices.into_iter().map(Some));
        Ok(Model {
            layers: plan.layers.iter().map(|layer| parts.layer(layer)).collect::<Result<_, _>>()?,
            final_norm: parts.norm(&plan.final_norm)?,
            embedding: parts.linear(plan.embedding),
            head: plan.head.map(|head| parts.linear(head)),
            config: share.clone(),
            shard: *shard,
            vocab: config.vocab,
            rope: Rope { inv_freq: config.inv_freq.clone() },
        })
    };
    matrices.into_iter().zip(ranks).map(assemble).collect()
}

/// What a rank's model is put together from.
struct Parts<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    products: &'a [Product],
    /// By product, each taken once.
    matrices: Vec<Option<D::Matrix>>,
}

impl<D: Device> Parts<'_, D> {
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

    fn linear(&mut self, product: usize) -> Linear<D::Matrix> {
        let matrix = self.matrices[product].take().expect("a product is in one place of the model");
        Linear { matrix, quant: self.products[product].quant }
    }

    fn norm(&self, plan: &NormPlan) -> Result<Norm<D>, LoadError> {
        let upload = |values: &Vec<f32>| upload_floats(self.device, values.len(), values);
        let weight = upload(&plan.weight)?;
        let bias = plan.bias.as_ref().map(upload).transpose()?;
        Ok(Norm { kind: self.config.norm, weight, bias, eps: self.config.norm_eps })
    }
}
