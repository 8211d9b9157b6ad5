//! The operations of the residual stream and of the MLP. Buffers hold zeros, since the time of these kernels
//! does not depend on the values.

use std::sync::Arc;

use super::bytes;
use super::measured::{Kernel, KernelTime};
use super::timer::Timer;
use crate::device::{
    ActQuant, Device, DeviceError, EmbeddingTable, FloatType, Floats, Norm, RewardWeights, Segment,
    StepInputs, Token, upload_floats,
};
use crate::model::{LOGIT_ROWS, ModelConfig, Precision};

/// Most parts that the kernel adds at once: those of the other seven of eight ranks.
const MOST_PARTS: usize = 7;

/// Weights and shapes of the operations.
pub(super) struct LayerOperations<'a, D: Device> {
    pub(super) device: &'a D,
    pub(super) timer: &'a Timer<D>,
    /// One rank's share of the model.
    pub(super) share: &'a ModelConfig,
    pub(super) ranks: usize,
}

impl<D: Device> LayerOperations<'_, D> {
    /// A buffer with `rows` rows of zeros.
    fn zeros(&self, float_type: FloatType, rows: usize, cols: usize) -> Result<Floats<D>, DeviceError> {
        let mut floats = self.device.floats_of(float_type, rows, cols)?;
        self.device.write(&vec![0.0; rows * cols], &mut floats)?;
        Ok(floats)
    }

    /// A norm that neither scales nor shifts.
    fn neutral_norm(&self) -> Result<Norm<D>, DeviceError> {
        let ModelConfig { hidden, norm: kind, norm_eps: eps, .. } = *self.share;
        let upload = |value: f32| upload_floats(self.device, hidden, &vec![value; hidden]);
        let bias = if kind.has_bias() { Some(upload(0.0)?) } else { None };
        Ok(Norm { kind, weight: upload(kind.neutral_weight())?, bias, eps })
    }

    /// Times the embedding of tokens of this rank's share of the vocabulary.
    pub(super) fn embed(
        &self,
        table: &D::Matrix,
        step: &mut D::Step,
        rows: usize,
    ) -> anyhow::Result<KernelTime> {
        let ModelConfig { hidden, vocab, .. } = *self.share;
        let segment = |first| Segment { first, len: 1, position: 0, blocks: Arc::from([0]) };
        let inputs = StepInputs {
            tokens: (0..rows).map(|row| Token::Id((row * 7919 % vocab) as u32)).collect(),
            segments: (0..rows).map(segment).collect(),
            graph_rows: 0,
        };
        self.device.begin_step(&inputs, step)?;
        let mut out = self.device.floats(rows, hidden)?;
        let time = self.timer.graph(self.device, || {
            let table = EmbeddingTable { matrix: table, first: 0 };
            self.device.embed(step, table, &mut out)
        })?;
        let kernel = Kernel { rows, bytes: bytes::embed(rows, hidden), ..Kernel::of("embed") };
        Ok(kernel.timed([rows, hidden], time))
    }

    /// Times the norm of a sum of the residual stream and a BF16 delta, to E4M3.
    pub(super) fn norm(&self, rows: usize) -> anyhow::Result<KernelTime> {
        let hidden = self.share.hidden;
        let mut residual = self.zeros(FloatType::F32, rows, hidden)?;
        let delta = self.zeros(Precision::Fp8.results(), rows, hidden)?;
        let norm = self.neutral_norm()?;
        let mut out = self.device.acts(rows, hidden)?;
        let time = self.timer.graph(self.device, || {
            self.device.norm(&mut residual, Some(&delta), &norm, ActQuant::Fp8PerToken, &mut out)
        })?;
        let kernel = Kernel { rows, bytes: bytes::norm(rows, hidden), ..Kernel::of("norm") };
        Ok(kernel.timed([rows, hidden], time))
    }

    /// Times the activation between the products of the MLP, from BF16 to E4M3, as an operation of its own.
    /// Steps on CUDA run another kernel, which takes the rows' maxima from MLP up.
    pub(super) fn activation(&self, rows: usize) -> anyhow::Result<KernelTime> {
        let [_, _, (input, _), (_, ffn)] = self.share.linear_shapes();
        let h = self.zeros(Precision::Fp8.results(), rows, input)?;
        let mut out = self.device.acts(rows, ffn)?;
        let time = self.timer.graph(self.device, || {
            self.device.activation(self.share.activation, &h, ActQuant::Fp8PerToken, &mut out)
        })?;
        let kernel = Kernel { rows, bytes: bytes::activation(rows, input, ffn), ..Kernel::of("activation") };
        Ok(kernel.timed([rows, input], time))
    }

    /// Times the sum of the BF16 parts of all ranks; with one rank, the sum of two parts.
    pub(super) fn add(&self, rows: usize) -> anyhow::Result<KernelTime> {
        let (hidden, float_type) = (self.share.hidden, Precision::Fp8.results());
        let count = (self.ranks - 1).clamp(1, MOST_PARTS);
        let parts: Result<Vec<Floats<D>>, DeviceError> =
            (0..count).map(|_| self.zeros(float_type, rows, hidden)).collect();
        let (parts, mut x) = (parts?, self.zeros(float_type, rows, hidden)?);
        let time = self.timer.graph(self.device, || self.device.add(&parts, &mut x))?;
        let kernel = Kernel { rows, bytes: bytes::add(rows * hidden, count), ..Kernel::of("add") };
        Ok(kernel.timed([count + 1, rows, hidden], time))
    }

    /// Times the selection of rows of the residual stream, in reverse order.
    pub(super) fn select(&self, rows: usize) -> anyhow::Result<KernelTime> {
        let hidden = self.share.hidden;
        let from = self.zeros(FloatType::F32, rows, hidden)?;
        let mut out = self.device.floats(rows, hidden)?;
        let indices: Vec<u32> = (0..rows as u32).rev().collect();
        let time = self.timer.queue(
            self.device,
            &mut out,
            |out| Ok(self.device.select(&from, &indices, out, 0)?),
            |_, _| Ok(()),
        )?;
        let kernel = Kernel { rows, bytes: bytes::select(rows, hidden), ..Kernel::of("select") };
        Ok(kernel.timed([rows, hidden], time))
    }

    /// Times a reward head of `width` values after the final norm, for at most [`LOGIT_ROWS`] rows at a time.
    pub(super) fn reward_head(&self, rows: usize, width: usize) -> anyhow::Result<KernelTime> {
        let hidden = self.share.hidden;
        let mut selected = self.zeros(FloatType::F32, rows.min(LOGIT_ROWS), hidden)?;
        let head = RewardWeights {
            weight: self.zeros(FloatType::F32, width, hidden)?,
            bias: self.zeros(FloatType::F32, 1, width)?,
        };
        let norm = self.neutral_norm()?;
        let mut out = self.device.floats(rows.min(LOGIT_ROWS), width)?;
        let pieces = || (0..rows).step_by(LOGIT_ROWS).map(|first| (rows - first).min(LOGIT_ROWS));
        let time = self.timer.graph(self.device, || {
            pieces().try_for_each(|rows| {
                selected.set_rows(rows);
                self.device.reward_head(&selected, &norm, &head, &mut out)
            })
        })?;
        let bytes = pieces().map(|rows| bytes::reward_head(rows, hidden, width)).sum();
        let kernel = Kernel { rows, launches: pieces().count(), bytes, ..Kernel::of("reward_head") };
        Ok(kernel.timed([rows, hidden, width], time))
    }
}
