//! The decoder: one struct for both model families, whose forward pass follows the papers' equations.
//!
//! - Nemotron-4 (arXiv 2402.16819): LayerNorm1p, squared ReLU without a gate, rotary embedding of half of
//!   each head.
//! - Llama (arXiv 2302.13971): RMSNorm, SwiGLU, rotary embedding of whole heads.
//!
//! The families differ in values of [`ModelConfig`], not in code paths.

mod checkpoint;
mod config;
mod config_keys;
mod convert;
mod direct_file;
mod directory;
mod error;
mod family;
mod generation_config;
mod inventory;
mod json;
mod key_rules;
mod load_plan;
mod random_model;
mod reward_head;
mod rope;
mod scheme;
mod shard;
mod tied_head;
mod weight_reader;
mod weights;
mod workspace;

use std::ops::Range;
use std::path::Path;

pub(crate) use checkpoint::{Checkpoint, Stored};
pub use config::{HeadDtype, ModelConfig};
pub(crate) use convert::{quantize_row, widen};
pub use direct_file::{DirectFile, ReadBuffer};
pub(crate) use directory::{check_directory, check_model_directory};
pub use error::LoadError;
pub(crate) use family::NEMOTRON_REWARD;
pub use generation_config::GenerationConfig;
pub(crate) use inventory::{Expected, is_optional, lm_head, tensors};
pub(crate) use json::Object;
pub use reward_head::RewardHead;
pub use scheme::{Fp8Scheme, Scheme};
pub use shard::Shard;
pub use weight_reader::LoadProgress;
pub(crate) use weight_reader::read_threads;
pub(crate) use workspace::HEAD_ROWS;
pub use workspace::{LOGIT_ROWS, StepBytes, StepRoom, Workspace};

use crate::comm::{Communicator, ResidualUpdate};
use crate::device::{
    ActQuant, AttentionLayer, Device, DeviceError, EmbeddingTable, FloatType, Graph, LayerKv, Norm,
    RewardWeights, Rope, SampleRow, StepInputs, Token,
};

/// Number format of the linear weights and of the inputs of their products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// E4M3 weights with a scale per output row, as stored or quantised on load. E4M3 inputs.
    Fp8,
    /// Weights as stored, F32 and F16 rounded to BF16. BF16 inputs.
    None,
}

impl Precision {
    /// Element type of the results of a layer's products.
    pub(crate) fn results(self) -> FloatType {
        match self {
            Self::Fp8 => FloatType::Bf16,
            Self::None => FloatType::F32,
        }
    }
}

/// A weight matrix, and the format of its product's input.
#[derive(Debug)]
struct Linear<M> {
    matrix: M,
    quant: ActQuant,
}

/// The weights of one decoder layer.
#[derive(Debug)]
struct Layer<D: Device> {
    input_norm: Norm<D>,
    /// Q, K and V, concatenated by outputs.
    qkv: Linear<D::Matrix>,
    kv: LayerKv,
    output: Linear<D::Matrix>,
    mlp_norm: Norm<D>,
    /// Up; with a gate, gate and up concatenated by outputs.
    up: Linear<D::Matrix>,
    down: Linear<D::Matrix>,
}

/// The weights after the final norm.
#[derive(Debug)]
enum Head<D: Device> {
    /// The embedding is the LM head.
    Embedding,
    /// An LM head of its own.
    Own(Linear<D::Matrix>),
    /// A reward head, of which every rank has all weights.
    Reward(RewardWeights<D>),
}

/// A decoder's weights on a device, or one rank's shard of them.
#[derive(Debug)]
pub struct Model<D: Device> {
    /// This rank's share of the architecture.
    config: ModelConfig,
    shard: Shard,
    precision: Precision,
    /// Vocabulary size of the whole model.
    vocab: usize,
    embedding: Linear<D::Matrix>,
    layers: Vec<Layer<D>>,
    final_norm: Norm<D>,
    head: Head<D>,
    rope: Rope,
}

/// Device, communicator and KV cache of a forward pass.
pub struct Pass<'a, D: Device, C: Communicator<D>> {
    /// The rank's device.
    pub device: &'a D,
    /// The rank's handle on the communicator group.
    pub comm: &'a C,
    /// The rank's KV cache.
    pub cache: &'a mut D::Cache,
}

/// Rows of the last forward pass whose logits are computed in one product.
pub(crate) struct HeadRows<'a> {
    /// Row indices into the residual stream.
    pub(crate) rows: &'a [u32],
    /// Whether the logits are used in pieces, of which there are several. A model of one rank has no pieces.
    pub(crate) in_pieces: bool,
}

/// The sampling parameters of rows whose logits a rank has a share of.
pub(crate) struct RowsToSample<'a> {
    /// One entry per row.
    pub(crate) sampling: &'a [SampleRow<'a>],
    /// Ids that may be sampled are below this.
    pub(crate) vocab: usize,
}

impl<D: Device> Model<D> {
    /// Loads one rank's shard of the weights of a Hugging Face directory onto its device. `config` is that of
    /// the whole model.
    ///
    /// # Errors
    /// The first problem met; no model is returned then.
    pub fn load(
        dir: &Path,
        config: &ModelConfig,
        shard: Shard,
        precision: Precision,
        device: &D,
        progress: &mut dyn FnMut(LoadProgress<'_>),
    ) -> Result<Self, LoadError> {
        weights::load(dir, config, shard, precision, device, progress)
    }

    /// This rank's share of the architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Vocabulary size of the whole model.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Runs all layers over a step. Fills the KV cache at the step's positions and leaves the residual stream
    /// in `space`, for [`Model::logits`] to select rows from.
    pub fn forward<C: Communicator<D>>(
        &self,
        inputs: &StepInputs,
        space: &mut Workspace<D>,
        pass: Pass<'_, D, C>,
    ) -> Result<(), DeviceError> {
        self.begin(inputs, space, pass.device)?;
        self.layers(space, pass)
    }

    /// Captures a graph of all layers over decode steps of `rows` rows. Requires a device that can capture.
    pub fn capture<C: Communicator<D>>(
        &self,
        rows: usize,
        space: &mut Workspace<D>,
        pass: Pass<'_, D, C>,
    ) -> Result<Graph, DeviceError> {
        let Pass { device, comm, cache } = pass;
        device.begin_step(&StepInputs { graph_rows: rows, ..StepInputs::default() }, &mut space.step)?;
        self.layers(space, Pass { device, comm, cache: &mut *cache })?;
        // Capturing must not begin while a kernel still waits for other ranks.
        device.read(&space.residual)?;
        device.capture(&mut || self.layers(space, Pass { device, comm, cache: &mut *cache }))
    }

    /// Replays a graph over a step. Returns `false`, having run nothing, if the graph does not fit the step.
    pub fn replay(
        &self,
        graph: &Graph,
        inputs: &StepInputs,
        space: &mut Workspace<D>,
        device: &D,
    ) -> Result<bool, DeviceError> {
        let fits = self.begin(inputs, space, device)?;
        if fits {
            graph()?;
            space.residual.set_rows(inputs.graph_rows);
        }
        Ok(fits)
    }

    /// Makes `inputs` the current step. Returns whether a graph of `graph_rows` rows can compute it.
    fn begin(&self, inputs: &StepInputs, space: &mut Workspace<D>, device: &D) -> Result<bool, DeviceError> {
        for token in &inputs.tokens {
            assert!(
                !matches!(token, Token::Id(id) if *id as usize >= self.vocab),
                "{token:?} of {}",
                self.vocab
            );
        }
        device.begin_step(inputs, &mut space.step)
    }

    fn layers<C: Communicator<D>>(
        &self,
        space: &mut Workspace<D>,
        pass: Pass<'_, D, C>,
    ) -> Result<(), DeviceError> {
        let Pass { device, comm, cache } = pass;
        let s = space;
        let table =
            EmbeddingTable { matrix: &self.embedding.matrix, first: self.shard.rank * self.config.vocab };
        device.embed(&s.step, table, &mut s.residual)?;
        comm.all_reduce(device, &mut s.residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            match index {
                0 => device.norm(&mut s.residual, None, &layer.input_norm, layer.qkv.quant, &mut s.hidden)?,
                _ => comm.reduce_norm(
                    device,
                    ResidualUpdate { residual: &mut s.residual, delta: &mut s.mlp_delta },
                    &layer.input_norm,
                    layer.qkv.quant,
                    &mut s.hidden,
                )?,
            }
            device.linear(&s.hidden, &layer.qkv.matrix, &mut s.qkv)?;
            let attention = AttentionLayer { rope: &self.rope, kv: layer.kv, quant: layer.output.quant };
            device.attention(&s.step, attention, &mut s.qkv, cache, &mut s.attended)?;
            comm.linear_part(device, &s.attended, &layer.output.matrix, &mut s.attention_delta)?;

            comm.reduce_norm(
                device,
                ResidualUpdate { residual: &mut s.residual, delta: &mut s.attention_delta },
                &layer.mlp_norm,
                layer.up.quant,
                &mut s.hidden,
            )?;
            device.linear(&s.hidden, &layer.up.matrix, &mut s.ffn)?;
            device.activation(self.config.activation, &s.ffn, layer.down.quant, &mut s.activated)?;
            comm.linear_part(device, &s.activated, &layer.down.matrix, &mut s.mlp_delta)?;
        }
        comm.reduce_add(device, ResidualUpdate { residual: &mut s.residual, delta: &mut s.mlp_delta })
    }

    /// Computes the logits of some rows of the last forward pass, at most [`LOGIT_ROWS`], into
    /// `space.logits`.
    pub fn logits<C: Communicator<D>>(
        &self,
        device: &D,
        comm: &C,
        rows: &[u32],
        space: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        self.lm_head(device, HeadRows { rows, in_pieces: false }, space)?;
        self.gather_logits(device, comm, space)
    }

    /// Computes this rank's logits of some rows of the last forward pass: at most `space.head_rows` if they
    /// are used in pieces, which [`Self::select_logits`] takes, else at most [`LOGIT_ROWS`].
    pub(crate) fn lm_head(
        &self,
        device: &D,
        HeadRows { rows, in_pieces }: HeadRows<'_>,
        space: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        let head = match &self.head {
            Head::Embedding => &self.embedding,
            Head::Own(head) => head,
            Head::Reward(_) => unreachable!("a model with a reward head has no logits"),
        };
        device.select(&space.residual, rows, &mut space.selected)?;
        device.norm(&mut space.selected, None, &self.final_norm, head.quant, &mut space.last)?;
        let own = match &mut space.head_logits {
            Some(all) if in_pieces => all,
            _ => space.part.as_mut().unwrap_or(&mut space.logits),
        };
        device.linear(&space.last, &head.matrix, own)
    }

    /// Takes a piece of the rows of [`Self::lm_head`], at most [`LOGIT_ROWS`], as this rank's part of the
    /// logits.
    pub(crate) fn select_logits(
        &self,
        device: &D,
        rows: Range<usize>,
        space: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        let Workspace { head_logits: Some(all), part: Some(part), .. } = space else {
            unreachable!("only a divided model computes more rows of logits than it samples at a time")
        };
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        device.select(all, &rows, part)
    }

    /// Gathers the parts of the logits of all ranks into `space.logits`, unless one rank has computed them.
    pub(crate) fn gather_logits<C: Communicator<D>>(
        &self,
        device: &D,
        comm: &C,
        space: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        match &space.part {
            None => Ok(()),
            Some(part) => comm.all_gather(device, part, &mut space.logits),
        }
    }

    /// Applies sampling parameters to this rank's part of the logits, and gathers only the largest of each
    /// rank into `space.shortlists`. Only for a sharded model.
    pub(crate) fn shortlists<C: Communicator<D>>(
        &self,
        device: &D,
        comm: &C,
        rows: &RowsToSample<'_>,
        space: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        let Workspace { part: Some(part), shortlists: Some(lists), .. } = space else {
            unreachable!("a divided model has buffers for a rank's part of the logits")
        };
        let ids = self.shard.ids(self.vocab);
        let ids = ids.start.min(rows.vocab) as u32..ids.end.min(rows.vocab) as u32;
        device.shortlist(part, ids, rows.sampling, &mut lists.own)?;
        comm.all_gather(device, &lists.own, &mut lists.all)
    }

    /// Computes the reward head after some rows of the last forward pass, at most [`LOGIT_ROWS`]. Returns its
    /// values row by row, after waiting for them. Every rank has the whole head and the same residual stream,
    /// so every rank returns the same bits.
    ///
    /// # Panics
    /// If the model has no reward head.
    pub fn rewards(
        &self,
        device: &D,
        rows: &[u32],
        space: &mut Workspace<D>,
    ) -> Result<Vec<f32>, DeviceError> {
        let Head::Reward(head) = &self.head else { panic!("a model with an LM head has no rewards") };
        device.select(&space.residual, rows, &mut space.selected)?;
        device.reward_head(&space.selected, &self.final_norm, head, &mut space.logits)?;
        device.read(&space.logits)
    }
}
