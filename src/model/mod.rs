//! The decoder: one struct for both model families, whose forward pass follows the papers' equations.
//!
//! - Nemotron-4 (arXiv 2402.16819): LayerNorm1p, squared ReLU without a gate, rotary embedding of half of
//!   each head.
//! - Llama (arXiv 2302.13971): RMSNorm, SwiGLU, rotary embedding of whole heads.
//!
//! The families differ in values of [`ModelConfig`], not in code paths.

mod batch;
mod bytes;
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
mod two_batches;
mod weight_reader;
mod weights;
mod workspace;

use std::ops::Range;
use std::path::Path;

pub(crate) use checkpoint::{Checkpoint, Stored};
pub use config::{HeadDtype, ModelConfig};
pub(crate) use convert::{quantize_row, widen};
pub(crate) use direct_file::SMALL_FILE;
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
pub(crate) use two_batches::{LEAST_TOKENS as LEAST_TWO_BATCH_TOKENS, batch_rows};
pub use weight_reader::LoadProgress;
pub(crate) use weight_reader::read_threads;
pub(crate) use workspace::HEAD_ROWS;
pub use workspace::{LOGIT_ROWS, StepBytes, StepRoom, Workspace};

use batch::Batch;

use crate::comm::{Communicator, ResidualUpdate};
use crate::device::{
    ActQuant, AttentionLayer, Device, DeviceError, EmbeddingTable, FloatType, Graph, LayerKv, Norm,
    QuantisedActivation, RewardWeights, Rope, SampleRow, StepInputs, Token,
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
    /// Up; with a gate, gate and up in the order of [`GatedRows`](crate::device::GatedRows).
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
        let (first, device) = (&mut space.first, pass.device);
        let second = space.second.as_mut();
        let divided = second.and_then(|second| Some((second.first_row(inputs)?, &mut second.batch)));
        let Some((at, second)) = divided else {
            self.begin(inputs, first, device)?;
            return self.layers(&mut [first], pass);
        };
        let [inputs, rest] = two_batches::divided(inputs, at);
        self.begin(&inputs, first, device)?;
        self.begin(&rest, second, device)?;
        self.layers(&mut [first, second], pass)?;
        let rows: Vec<u32> = (0..rest.tokens.len() as u32).collect();
        device.select(&second.residual, &rows, &mut first.residual, at)
    }

    /// Captures a graph of all layers over decode steps of `rows` rows. Requires a device that can capture.
    pub fn capture<C: Communicator<D>>(
        &self,
        rows: usize,
        space: &mut Workspace<D>,
        pass: Pass<'_, D, C>,
    ) -> Result<Graph, DeviceError> {
        let Pass { device, comm, cache } = pass;
        let batch = &mut space.first;
        device.begin_step(&StepInputs { graph_rows: rows, ..StepInputs::default() }, &mut batch.step)?;
        self.layers(&mut [batch], Pass { device, comm, cache: &mut *cache })?;
        // Capturing must not begin while a kernel still waits for other ranks.
        device.read(&batch.residual)?;
        device.capture(&mut || self.layers(&mut [batch], Pass { device, comm, cache: &mut *cache }))
    }

    /// Replays a graph over a step. Returns `false`, having run nothing, if the graph does not fit the step.
    pub fn replay(
        &self,
        graph: &Graph,
        inputs: &StepInputs,
        space: &mut Workspace<D>,
        device: &D,
    ) -> Result<bool, DeviceError> {
        let fits = self.begin(inputs, &mut space.first, device)?;
        if fits {
            graph()?;
            space.first.residual.set_rows(inputs.graph_rows);
        }
        Ok(fits)
    }

    /// Makes `inputs` the current step. Returns whether a graph of `graph_rows` rows can compute it.
    fn begin(&self, inputs: &StepInputs, batch: &mut Batch<D>, device: &D) -> Result<bool, DeviceError> {
        for token in &inputs.tokens {
            assert!(
                !matches!(token, Token::Id(id) if *id as usize >= self.vocab),
                "{token:?} of {}",
                self.vocab
            );
        }
        device.begin_step(inputs, &mut batch.step)
    }

    /// Makes the input of the first layer.
    fn embed<C: Communicator<D>>(
        &self,
        batch: &mut Batch<D>,
        device: &D,
        comm: &C,
    ) -> Result<(), DeviceError> {
        let table =
            EmbeddingTable { matrix: &self.embedding.matrix, first: self.shard.rank * self.config.vocab };
        device.embed(&batch.step, table, &mut batch.residual)?;
        comm.all_reduce(device, &mut batch.residual)?;
        match self.layers.first() {
            Some(Layer { input_norm, qkv, .. }) => {
                device.norm(&mut batch.residual, None, input_norm, qkv.quant, &mut batch.hidden)
            }
            None => Ok(()),
        }
    }

    /// Runs all layers over one batch, or over two whose sums run beside the operations of the other.
    fn layers<C: Communicator<D>>(
        &self,
        batches: &mut [&mut Batch<D>],
        pass: Pass<'_, D, C>,
    ) -> Result<(), DeviceError> {
        let Pass { device, comm, cache } = pass;
        let alone = batches.len() == 1;
        let reduce_norm = |number, update: ResidualUpdate<'_, D>, norm, quant, out: &mut D::Acts| {
            let ResidualUpdate { residual, delta } = update;
            let mut sum = || comm.reduce_norm(device, ResidualUpdate { residual, delta }, norm, quant, out);
            if alone { sum() } else { device.beside(number, &mut sum) }
        };
        for batch in batches.iter_mut() {
            self.embed(batch, device, comm)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            for (number, batch) in batches.iter_mut().enumerate() {
                device.join(number)?;
                device.linear(&batch.hidden, &layer.qkv.matrix, &mut batch.qkv)?;
                let attention = AttentionLayer { rope: &self.rope, kv: layer.kv, quant: layer.output.quant };
                device.attention(&batch.step, attention, &mut batch.qkv, cache, &mut batch.attended)?;
                comm.linear_part(device, &batch.attended, &layer.output.matrix, &mut batch.attention_delta)?;
                let Batch { residual, attention_delta: delta, hidden, .. } = &mut **batch;
                let update = ResidualUpdate { residual, delta };
                reduce_norm(number, update, &layer.mlp_norm, layer.up.quant, hidden)?;
            }
            for (number, batch) in batches.iter_mut().enumerate() {
                device.join(number)?;
                let Batch { hidden, ffn, activated, .. } = &mut **batch;
                let activation =
                    QuantisedActivation { kind: self.config.activation, quant: layer.down.quant };
                device.linear_activation(hidden, &layer.up.matrix, activation, ffn, activated)?;
                comm.linear_part(device, &batch.activated, &layer.down.matrix, &mut batch.mlp_delta)?;
                let Some(next) = self.layers.get(index + 1) else { continue };
                let Batch { residual, mlp_delta: delta, hidden, .. } = &mut **batch;
                let update = ResidualUpdate { residual, delta };
                reduce_norm(number, update, &next.input_norm, next.qkv.quant, hidden)?;
            }
        }
        for batch in batches {
            let Batch { residual, mlp_delta: delta, .. } = &mut **batch;
            comm.reduce_add(device, ResidualUpdate { residual, delta })?;
        }
        Ok(())
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
        device.select(&space.first.residual, rows, &mut space.selected, 0)?;
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
        device.select(all, &rows, part, 0)
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
        device.select(&space.first.residual, rows, &mut space.selected, 0)?;
        device.reward_head(&space.selected, &self.final_norm, head, &mut space.logits)?;
        device.read(&space.logits)
    }
}
