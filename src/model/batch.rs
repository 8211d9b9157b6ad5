//! The buffers of a layer.

use super::bytes::{padded, product, sum};
use super::{Model, ModelConfig};
use crate::device::{BLOCK_TOKENS, Device, DeviceError, Floats, Layout, SPLIT_BLOCKS, StepCapacity};

/// Buffers of the layers for the rows of a step, or for some of them. The results of a layer's products are
/// BF16 if their inputs are E4M3.
#[derive(Debug)]
pub(crate) struct Batch<D: Device> {
    /// The current step, and sampled tokens by slot.
    pub(crate) step: D::Step,
    /// Residual stream \[rows, hidden\], in F32.
    pub(super) residual: Floats<D>,
    /// Output of attention \[rows, hidden\], or this rank's part of the sum; or the parts of all ranks for
    /// the rows that this rank sums. The number of rows is padded to a multiple of the ranks.
    pub(super) attention_delta: Floats<D>,
    /// The same for the output of the MLP.
    pub(super) mlp_delta: Floats<D>,
    /// Normalised input of attention or MLP \[rows, hidden\].
    pub(super) hidden: D::Acts,
    pub(super) qkv: Floats<D>,
    /// Attention output by heads \[rows, q_heads × head_dim\].
    pub(super) attended: D::Acts,
    /// Memory for the product of the up projection, \[rows, ffn\], or \[rows, 2 × ffn\] with a gate.
    pub(super) ffn: Floats<D>,
    /// Output of the activation \[rows, ffn\].
    pub(super) activated: D::Acts,
}

/// Adds the name and the shape of a buffer to an error.
pub(super) fn at_buffer(error: DeviceError, buffer: &str, shape: [usize; 2]) -> DeviceError {
    error.at(&format!("workspace `{buffer}` [{}, {}]", shape[0], shape[1]))
}

impl<D: Device> Batch<D> {
    /// Allocates the buffers for steps of this capacity.
    pub(super) fn new(device: &D, model: &Model<D>, capacity: StepCapacity) -> Result<Self, DeviceError> {
        let (config, ranks, rows) = (&model.config, model.shard.ranks, capacity.rows);
        let [(qkv, hidden), (_, attended), (ffn, _), (_, activated)] = config.linear_shapes();
        let results = |buffer, rows, cols| {
            let floats = device.floats_of(model.precision.results(), rows, cols);
            floats.map_err(|error| at_buffer(error, buffer, [rows, cols]))
        };
        let delta = |buffer| results(buffer, padded(rows, ranks), hidden);
        let acts =
            |buffer, cols| device.acts(rows, cols).map_err(|error| at_buffer(error, buffer, [rows, cols]));
        let shape = [rows, config.max_positions];
        let residual = device.floats(rows, hidden);
        Ok(Self {
            step: device.step(capacity).map_err(|error| at_buffer(error, "step", shape))?,
            residual: residual.map_err(|error| at_buffer(error, "residual", [rows, hidden]))?,
            attention_delta: delta("attention_delta")?,
            mlp_delta: delta("mlp_delta")?,
            hidden: acts("hidden", hidden)?,
            qkv: results("qkv", rows, qkv)?,
            attended: acts("attended", attended)?,
            ffn: results("ffn", rows, ffn)?,
            activated: acts("activated", activated)?,
        })
    }

    /// The buffers that operations of the group take.
    pub(super) fn exchanged(&self) -> [&Floats<D>; 3] {
        [&self.residual, &self.attention_delta, &self.mlp_delta]
    }
}

/// Bytes of a [`Batch`].
#[derive(Default)]
pub(super) struct BatchBytes {
    /// Bytes of the buffers that other ranks read or write.
    pub(super) exchanged: u64,
    /// Bytes of the others.
    pub(super) own: u64,
}

impl BatchBytes {
    pub(super) fn new(
        config: &ModelConfig,
        layout: &Layout,
        result_bytes: usize,
        ranks: usize,
        rows: usize,
    ) -> Self {
        let [(qkv, hidden), (_, attended), (ffn, _), (_, activated)] = config.linear_shapes();
        let acts = |cols: usize| acts_bytes(layout, rows, cols);
        // The residual stream, the outputs of attention and MLP, and the normalised input.
        let deltas = product(padded(rows, ranks), 2 * hidden * result_bytes);
        let tables = step_tables(layout, rows, config.max_positions);
        Self {
            exchanged: sum([product(rows, 4 * hidden), deltas, acts(hidden)]),
            own: sum([tables, product(rows, (qkv + ffn) * result_bytes), acts(attended), acts(activated)]),
        }
    }
}

/// Bytes of the inputs of a product, with a scale per row.
pub(super) fn acts_bytes(layout: &Layout, rows: usize, cols: usize) -> u64 {
    let [padded_rows, padded_cols] = layout.acts;
    let values = product(padded(rows, padded_rows), cols.next_multiple_of(padded_cols) * layout.act_bytes);
    sum([values, product(rows, 4)])
}

/// Bytes of a step's tables.
fn step_tables(layout: &Layout, rows: usize, max_positions: usize) -> u64 {
    let [fixed, row, split, block] = layout.step;
    let blocks = max_positions.div_ceil(BLOCK_TOKENS);
    let of_row = sum([row as u64, product(blocks.div_ceil(SPLIT_BLOCKS), split), product(blocks, block)]);
    (rows as u64).saturating_mul(of_row).saturating_add(fixed as u64)
}
