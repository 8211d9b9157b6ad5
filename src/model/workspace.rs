//! The buffers of a forward pass, allocated once for the largest step.

use super::{Model, ModelConfig};
use crate::comm::Communicator;
use crate::device::{Device, DeviceError, DrawRoom, SHORTLIST};

/// Rows of logits computed at a time: bounds the widest buffer, whatever the number of sequences or of prompt tokens
/// to score.
pub const LOGIT_ROWS: usize = 64;

/// The buffers of a forward pass.
#[derive(Debug)]
pub struct Workspace<D: Device> {
    pub(super) step: D::Step,
    /// The residual stream, \[rows, hidden\].
    pub(super) residual: D::Floats,
    /// What attention adds to it, \[rows, hidden\]; or this rank's part of that.
    pub(super) attention_delta: D::Floats,
    /// What the MLP adds to it, \[rows, hidden\]; or this rank's part of that.
    pub(super) mlp_delta: D::Floats,
    /// The normalised input of a block, \[rows, hidden\].
    pub(super) hidden: D::Acts,
    pub(super) qkv: D::Floats,
    /// \[rows, q_heads × head_dim\].
    pub(super) attended: D::Acts,
    /// \[rows, ffn\], or twice that with a gate.
    pub(super) ffn: D::Floats,
    /// \[rows, ffn\].
    pub(super) activated: D::Acts,
    /// Rows whose logits are wanted, \[LOGIT_ROWS, hidden\].
    pub(super) selected: D::Floats,
    pub(super) last: D::Acts,
    /// This rank's logits, where there are other ranks, \[LOGIT_ROWS, share of the vocabulary\].
    pub(super) part: Option<D::Floats>,
    /// The largest of them, where there are other ranks.
    pub shortlists: Option<Shortlists<D>>,
    /// \[LOGIT_ROWS, vocab\], or a little wider where the ranks' shares are padded.
    pub logits: D::Floats,
    /// What sequences drew.
    pub draws: D::Draws,
}

/// The largest logits of ranks, as [`Device::shortlist`] has them.
#[derive(Debug)]
pub struct Shortlists<D: Device> {
    /// \[LOGIT_ROWS, 2 × SHORTLIST\].
    pub(super) own: D::Floats,
    /// Of all ranks, \[LOGIT_ROWS, ranks × 2 × SHORTLIST\].
    pub all: D::Floats,
}

impl<D: Device> Shortlists<D> {
    fn new<C: Communicator<D>>(device: &D, comm: &C) -> Result<Self, DeviceError> {
        let own = comm.floats(device, LOGIT_ROWS, 2 * SHORTLIST)?;
        Ok(Self { own, all: device.floats(LOGIT_ROWS, comm.size() * 2 * SHORTLIST)? })
    }
}

/// Steps whose tokens may be drawn before those of the first are asked for.
const STEPS_AHEAD: usize = 2;

impl<D: Device> Workspace<D> {
    /// For steps of at most `rows` tokens of `slots` sequences.
    pub fn new<C: Communicator<D>>(
        device: &D,
        comm: &C,
        model: &Model<D>,
        (rows, slots): (usize, usize),
    ) -> Result<Self, DeviceError> {
        let (config, ranks) = (&model.config, model.shard.ranks);
        let (vocab, divided) = (config.vocab * ranks, ranks > 1);
        // Rows that are drawn from shortlists, and others.
        let samples = STEPS_AHEAD * (slots.div_ceil(LOGIT_ROWS) + 1);
        let room = DrawRoom { samples, rows: LOGIT_ROWS, vocab };
        let [(qkv, hidden), (_, attended), (ffn, _), (_, activated)] = config.linear_shapes();
        Ok(Self {
            step: device.step(rows, config.max_positions)?,
            residual: comm.floats(device, rows, hidden)?,
            attention_delta: comm.floats(device, rows, hidden)?,
            mlp_delta: comm.floats(device, rows, hidden)?,
            hidden: comm.acts(device, rows, hidden)?,
            qkv: device.floats(rows, qkv)?,
            attended: device.acts(rows, attended)?,
            ffn: device.floats(rows, ffn)?,
            activated: device.acts(rows, activated)?,
            selected: device.floats(LOGIT_ROWS, hidden)?,
            last: device.acts(LOGIT_ROWS, hidden)?,
            part: divided.then(|| comm.floats(device, LOGIT_ROWS, config.vocab)).transpose()?,
            shortlists: divided.then(|| Shortlists::new(device, comm)).transpose()?,
            logits: device.floats(LOGIT_ROWS, vocab)?,
            draws: device.draws(slots, room)?,
        })
    }

    /// Bytes of these buffers on each of `ranks` ranks, `config` being the share of one.
    pub fn bytes(config: &ModelConfig, ranks: usize, rows: usize) -> u64 {
        let [(qkv, hidden), (_, attended), (ffn, _), (_, activated)] = config.linear_shapes();
        // Logits, and as many again that sampling works over.
        let logits = match ranks {
            1 => 2 * config.vocab,
            _ => (1 + 2 * ranks) * config.vocab + (1 + ranks) * 2 * SHORTLIST,
        };
        let floats = rows * (3 * hidden + qkv + ffn) + LOGIT_ROWS * (hidden + logits);
        let acts = rows * (hidden + attended + activated) + LOGIT_ROWS * hidden;
        (floats * 4 + acts * D::LAYOUT.act_bytes) as u64
    }
}
