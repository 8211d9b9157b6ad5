//! The buffers of a forward pass, allocated once at start-up for the largest step.

use super::batch::{Batch, BatchBytes, acts_bytes, at_buffer};
use super::bytes::{product, sum};
use super::two_batches::{SecondBatch, second_rows};
use super::{Model, ModelConfig, Precision};
use crate::comm::{Communicator, GroupBuffers};
use crate::device::{Device, DeviceError, FloatType, Floats, Layout, PACKET_ROWS, SHORTLIST, StepCapacity};

/// Maximum rows of logits computed at a time. It limits the size of the widest buffer, whatever the number of
/// sequences or of scored prompt tokens.
pub const LOGIT_ROWS: usize = 64;

/// Maximum rows that one product with a rank's share of the LM head computes. With a step's rows in one
/// product, the head is read once.
pub(crate) const HEAD_ROWS: usize = 256;

/// Rows that one product with the LM head computes, in steps of at most `rows` tokens. `config` is one rank's
/// share. One rank alone computes all logits into the widest buffer.
fn head_rows(config: &ModelConfig, ranks: usize, rows: usize) -> usize {
    if is_divided(config, ranks) { rows.clamp(LOGIT_ROWS, HEAD_ROWS) } else { LOGIT_ROWS }
}

/// Whether each rank computes the logits of its share of the vocabulary.
fn is_divided(config: &ModelConfig, ranks: usize) -> bool {
    ranks > 1 && config.reward.is_none()
}

/// The buffers of a forward pass.
#[derive(Debug)]
pub struct Workspace<D: Device> {
    /// The rows of a step; with two batches, its first rows while layers run and all of them afterwards.
    pub(crate) first: Batch<D>,
    /// The rest of the rows of steps that are divided.
    pub(super) second: Option<SecondBatch<D>>,
    /// Rows that one product with the LM head computes.
    pub(crate) head_rows: usize,
    /// Rows selected for logits \[head_rows, hidden\].
    pub(super) selected: Floats<D>,
    pub(super) last: D::Acts,
    /// This rank's logits of the rows of one product, where they are sampled in pieces \[head_rows, share of
    /// the vocabulary\]; `None` with one rank or a reward head.
    pub(super) head_logits: Option<Floats<D>>,
    /// This rank's logits of the rows that are sampled at a time \[LOGIT_ROWS, share of the vocabulary\];
    /// `None` with one rank or a reward head.
    pub(super) part: Option<Floats<D>>,
    /// The largest logits; `None` with one rank or a reward head.
    pub(crate) shortlists: Option<Shortlists<D>>,
    /// Logits \[LOGIT_ROWS, vocab\], a little wider if the ranks' shares are padded; or the values of the
    /// reward head \[LOGIT_ROWS, width\].
    pub logits: Floats<D>,
}

/// Columns of [`Workspace::logits`]. `config` is one rank's share.
fn output_cols(config: &ModelConfig, ranks: usize) -> usize {
    config.reward.as_ref().map_or(config.vocab * ranks, |head| head.width)
}

/// The largest logits of each rank, in the format of [`Device::shortlist`].
#[derive(Debug)]
pub(crate) struct Shortlists<D: Device> {
    /// This rank's shortlists \[LOGIT_ROWS, 2 × SHORTLIST\].
    pub(super) own: Floats<D>,
    /// Shortlists of all ranks \[LOGIT_ROWS, ranks × 2 × SHORTLIST\].
    pub(crate) all: Floats<D>,
}

impl<D: Device> Shortlists<D> {
    fn new(device: &D, ranks: usize) -> Result<Self, DeviceError> {
        let own = device.floats(LOGIT_ROWS, 2 * SHORTLIST)?;
        Ok(Self { own, all: device.floats(LOGIT_ROWS, ranks * 2 * SHORTLIST)? })
    }
}

/// Steps that may be sampled before the tokens of the first of them are read back.
const STEPS_AHEAD: usize = 2;

/// Limit on sampling launches in flight. A step has one per [`LOGIT_ROWS`] rows, and one more because rows
/// sampled from shortlists and rows sampled from all logits are launched separately. A step with drafts,
/// which is alone in flight, may use all of them.
fn samples(slots: usize) -> usize {
    STEPS_AHEAD * (slots.div_ceil(LOGIT_ROWS) + 1)
}

/// The largest step that buffers must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRoom {
    /// Ranks that share the model.
    pub ranks: usize,
    /// Tokens per step.
    pub rows: usize,
    /// Sequences that run at once.
    pub slots: usize,
    /// Whether products with many rows use the deterministic kernels, on devices that also have others.
    pub deterministic: bool,
    /// Tokens from which a step is computed as two batches, if any is.
    pub two_batch_tokens: Option<usize>,
}

/// Bytes that steps need on each rank, without weights and KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBytes {
    /// Inputs and intermediate results of a step.
    pub activations: u64,
    /// Buffers that other ranks read or write, and the results gathered from them.
    pub communication: u64,
    /// Scratch memory of the device's operations.
    pub scratch: u64,
}

impl StepBytes {
    /// Bytes on a device with this layout, for weights of this precision; `config` is one rank's share.
    /// Covers what [`Workspace::new`] allocates and the scratch memory that operations grow to, except
    /// attention's, which depends on the KV cache.
    pub fn new(config: &ModelConfig, layout: &Layout, precision: Precision, room: &StepRoom) -> Self {
        let StepRoom { ranks, rows, slots, two_batch_tokens, .. } = *room;
        let hidden = config.hidden;
        let floats = |rows: usize, cols: usize| product(rows, 4 * cols);
        let result_bytes = layout.float_bytes(precision.results());
        let logits = floats(LOGIT_ROWS, output_cols(config, ranks));
        let head_rows = head_rows(config, ranks, rows);
        let head_logits = if is_divided(config, ranks) { floats(head_rows, config.vocab) } else { 0 };
        let first = BatchBytes::new(config, layout, result_bytes, ranks, rows);
        let second = match two_batch_tokens {
            Some(_) => BatchBytes::new(config, layout, result_bytes, ranks, second_rows(rows)),
            None => BatchBytes::default(),
        };
        let exchanged = sum([first.exchanged, second.exchanged]);
        let own = sum([
            first.own,
            second.own,
            floats(head_rows, hidden),
            acts_bytes(layout, head_rows, hidden),
            head_logits,
            product(slots, 4),
        ]);
        let shared = match &config.reward {
            Some(_) => 0,
            None => config.vocab + 2 * SHORTLIST * (1 + ranks),
        };
        let packets = match precision.results() {
            FloatType::Bf16 => product(layout.packet_sets * ranks * rows.min(PACKET_ROWS), 2 * hidden),
            FloatType::F32 => 0,
        };
        let part = sum([floats(LOGIT_ROWS, shared), layout.mailbox as u64, packets]);
        let (activations, communication) = match ranks {
            1 => (sum([own, exchanged, logits]), 0),
            _ => (own, sum([exchanged, logits, part])),
        };
        Self { activations, communication, scratch: scratch(config, layout, room) }
    }
}

/// Bytes of scratch memory of products, rotary embedding, sampling and quantisation.
fn scratch(config: &ModelConfig, layout: &Layout, room: &StepRoom) -> u64 {
    let shapes = config.linear_shapes();
    let [(_, hidden), (_, attended), _, (_, activated)] = shapes;
    let widest = shapes.into_iter().map(|(out, _)| out).chain([config.vocab]).max().unwrap_or(0);
    let tiles = widest.div_ceil(layout.outputs);
    let products = layout.product_scratch + tiles * layout.product_counter;
    let largest = shapes.into_iter().map(|(out, input)| out * input).max().unwrap_or(0);
    let library = if room.deterministic || layout.library_workspace == 0 {
        0
    } else {
        // Room for the largest matrix, and for the inputs of products with as many rows as are measured.
        let widest = shapes.into_iter().map(|(_, input)| input).max().unwrap_or(0);
        let inputs = product(room.rows.checked_next_power_of_two().unwrap_or(usize::MAX), widest);
        sum([largest as u64, inputs, layout.library_workspace as u64])
    };
    let head_rows = head_rows(config, room.ranks, room.rows);
    let stage = product(room.rows, hidden.max(attended).max(activated)).max((head_rows * hidden) as u64);
    let stage = stage.saturating_mul(layout.act_stage as u64);
    let vocab = output_cols(config, room.ranks);
    let logits = vocab * layout.sample_logit + vocab.div_ceil(32) * layout.sample_word;
    let results = product(samples(room.slots), layout.sample_result);
    let sample = sum([layout.sample_row as u64, results, logits as u64]).saturating_mul(LOGIT_ROWS as u64);
    let queries = product(room.rows, attended * layout.rope_query);
    let rope = sum([(config.heads.head_dim / 2 * layout.rope_pair) as u64, queries]);
    let selected = product(room.rows, layout.select_row);
    sum([products as u64, library, stage, sample, rope, selected])
}

impl<D: Device> Workspace<D> {
    /// Allocates the buffers for steps of at most `rows` tokens of at most `slots` sequences.
    pub fn new(device: &D, model: &Model<D>, rows: usize, slots: usize) -> Result<Self, DeviceError> {
        let (config, ranks) = (&model.config, model.shard.ranks);
        let (vocab, divided) = (output_cols(config, ranks), is_divided(config, ranks));
        let (head_rows, hidden) = (head_rows(config, ranks, rows), config.hidden);
        let capacity = StepCapacity {
            rows,
            max_positions: config.max_positions,
            slots,
            samples: samples(slots),
            sampled_rows: LOGIT_ROWS,
            vocab,
        };
        let floats = |buffer, rows, cols| {
            device.floats(rows, cols).map_err(|error| at_buffer(error, buffer, [rows, cols]))
        };
        let last = device.acts(head_rows, hidden);
        let listed = |error| at_buffer(error, "shortlists", [LOGIT_ROWS, ranks * 2 * SHORTLIST]);
        Ok(Self {
            first: Batch::new(device, model, capacity)?,
            second: None,
            head_rows,
            selected: floats("selected", head_rows, hidden)?,
            last: last.map_err(|error| at_buffer(error, "last", [head_rows, hidden]))?,
            head_logits: divided.then(|| floats("head_logits", head_rows, config.vocab)).transpose()?,
            part: divided.then(|| floats("part", LOGIT_ROWS, config.vocab)).transpose()?,
            shortlists: divided.then(|| Shortlists::new(device, ranks)).transpose().map_err(listed)?,
            logits: floats("logits", LOGIT_ROWS, vocab)?,
        })
    }

    /// Adds buffers to compute steps of at least `least_tokens` tokens as two batches. `rows` is that of
    /// [`Self::new`].
    pub fn with_second_batch(
        self,
        device: &D,
        model: &Model<D>,
        rows: usize,
        least_tokens: usize,
    ) -> Result<Self, DeviceError> {
        let second = SecondBatch::new(device, model, rows, least_tokens)?;
        Ok(Self { second: Some(second), ..self })
    }

    /// Registers the buffers that operations of the group take, and waits for the other ranks to do the same.
    pub(crate) fn register<C: Communicator<D>>(&self, comm: &C) -> Result<(), DeviceError> {
        let second = self.second.as_ref().map(|second| &second.batch);
        let batches = || [Some(&self.first), second].into_iter().flatten();
        let mut floats: Vec<_> = batches().flat_map(Batch::exchanged).collect();
        floats.extend(&self.part);
        floats.extend(self.shortlists.as_ref().map(|lists| &lists.own));
        let acts: Vec<_> = batches().map(|batch| &batch.hidden).collect();
        comm.register(GroupBuffers { floats: &floats, acts: &acts })
    }
}
