//! What a step of a model takes on GPUs that need not be there: the roofline's terms, as pure arithmetic. `octant plan`
//! and the simulated executor count with this.
//!
//! A term is bytes over a rate, FLOP over a rate, or a time from a table; each one's formula is in [`StepTime`]. L is the
//! layers, h the width of the residual, t the tokens of a step, n the ranks. Left out, each being below a thousandth of a
//! step: scales and norms, the embedding's rows, and sampling.

mod hardware;
mod time;

pub use hardware::{Hardware, HardwareError};
pub use time::StepTime;

use crate::device::{HeadShape, KvDtype};
use crate::model::{LOGIT_ROWS, ModelConfig, Precision, Scheme, ShardError};

/// What one row of a step adds to its cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Tokens fed.
    pub tokens: u32,
    /// Positions before them.
    pub position: u32,
    /// Rows of logits.
    pub logits: u32,
}

/// The smallest message that the table's ways of an all-reduce for large ones have been measured with, in bytes: none of
/// them is quicker than with this.
const TWO_SHOT: f64 = 512e3;

/// Bytes that ranks exchange for an element of a result that they add up, as an all-reduce of so many bytes would:
/// every rank reads the others' F32; or each adds up its share, in F32, and passes it on as E4M3, of which an all-reduce
/// does the same in both halves, so that it is their mean.
const EVERYWHERE: f64 = 4.0;
const SHARED_OUT: f64 = (4.0 + 1.0) / 2.0;

/// The costs of a model on some GPUs.
#[derive(Debug, Clone)]
pub struct CostModel {
    hardware: Hardware,
    /// One rank's.
    share: ModelConfig,
    ranks: usize,
    /// Bytes of an element of a layer's weights.
    element: f64,
    /// Bytes of an element of the KV cache.
    kv_element: f64,
    /// FLOP per second of a layer's products.
    products: f64,
    /// Rows for which weights are read once.
    pass_rows: f64,
}

impl CostModel {
    /// Weights are read once a step, which is the roofline; see [`Self::in_passes_of`].
    ///
    /// # Errors
    /// The model cannot be divided so.
    pub fn new(
        model: &ModelConfig,
        ranks: usize,
        precision: Precision,
        kv: KvDtype,
        hardware: Hardware,
    ) -> Result<Self, ShardError> {
        let fp8 = precision == Precision::Fp8;
        Ok(Self {
            share: model.share(ranks)?,
            ranks,
            // Stored codes stay codes; what they are multiplied by need not.
            element: if fp8 || model.scheme != Scheme::None { 1.0 } else { 2.0 },
            kv_element: if kv == KvDtype::Fp8 { 1.0 } else { 2.0 },
            products: if fp8 { hardware.products } else { hardware.products / 2.0 },
            pass_rows: f64::INFINITY,
            hardware,
        })
    }

    /// The same, where products of more rows than these read the weights again for each so many, as those that are
    /// deterministic do.
    pub fn in_passes_of(self, rows: usize) -> Self {
        Self { pass_rows: rows as f64, ..self }
    }

    /// What a step of these rows takes. Nothing, without any.
    pub fn step(&self, rows: impl IntoIterator<Item = RowShape>) -> StepTime {
        let (mut tokens, mut logits, mut kv_tokens, mut pairs) = (0.0, 0.0, 0.0, 0.0);
        for row in rows {
            let (fed, before) = (f64::from(row.tokens), f64::from(row.position));
            tokens += fed;
            logits += f64::from(row.logits);
            kv_tokens += before + fed;
            // Each token sees those before the row and, of the row, those before it and itself.
            pairs += fed * before + fed * (fed + 1.0) / 2.0;
        }
        if tokens == 0.0 {
            return StepTime::default();
        }
        let (share, hardware) = (&self.share, &self.hardware);
        let layers = share.layers as f64;
        let HeadShape { q_heads, kv_heads, head_dim } = share.heads;
        let linear: f64 = share.linear_shapes().iter().map(|(out, input)| (out * input) as f64).sum();
        let head = (share.vocab * share.hidden) as f64;
        let passes = (tokens / self.pass_rows).ceil().max(1.0);
        StepTime {
            weights: passes * layers * linear * self.element / hardware.read,
            products: 2.0 * tokens * layers * linear / self.products,
            head_weights: (logits / LOGIT_ROWS as f64).ceil() * head * 2.0 / hardware.read,
            head_products: 2.0 * logits * head / (hardware.products / 2.0),
            kv: kv_tokens * layers * (2 * kv_heads * head_dim) as f64 * self.kv_element / hardware.read,
            attention: pairs * layers * (4 * q_heads * head_dim) as f64 / hardware.attention,
            activations: layers * self.spilled_bytes(tokens) / hardware.read,
            reduce: self.reduce_seconds(tokens),
            gather: self.gather_seconds(logits),
            overhead: hardware.step_overhead + layers * hardware.layer_overhead,
        }
    }

    /// The steps that take in a prompt after `done` tokens of it, `step_tokens` at a time, and draw its first token: each
    /// one's time.
    pub fn prompt(&self, done: u32, tokens: u32, step_tokens: u32) -> Vec<StepTime> {
        let each = step_tokens.max(1);
        let starts = (done..done + tokens).step_by(each as usize);
        let step = |position: u32| {
            let left = done + tokens - position;
            RowShape { tokens: left.min(each), position, logits: u32::from(left <= each) }
        };
        starts.map(|position| self.step([step(position)])).collect()
    }

    /// Bytes of a layer's intermediate results that the cache does not hold until they are read: each is written and
    /// read once, and what exceeds the cache goes to memory. F32 \[t, h\] of attention and of the MLP, \[t, qkv\] and
    /// \[t, ffn\].
    fn spilled_bytes(&self, tokens: f64) -> f64 {
        let [(qkv, hidden), _, (ffn, _), _] = self.share.linear_shapes();
        let spilled = |cols: usize| (tokens * (cols * 4) as f64 - self.hardware.cache).max(0.0);
        2.0 * [hidden, hidden, qkv, ffn].map(spilled).iter().sum::<f64>()
    }

    /// Seconds of all sums between ranks: two of each layer, of which a rank does all or its share, whichever is faster,
    /// but the last, after which every rank has all; and the embedding's.
    fn reduce_seconds(&self, tokens: f64) -> f64 {
        if self.ranks == 1 {
            return 0.0;
        }
        let elements = tokens * self.share.hidden as f64;
        let everywhere = self.hardware.all_reduce_seconds(EVERYWHERE * elements);
        let shared_out = self.hardware.all_reduce_seconds((SHARED_OUT * elements).max(TWO_SHOT));
        (2.0 * self.share.layers as f64 - 1.0) * everywhere.min(shared_out) + 2.0 * everywhere
    }

    /// Seconds of gathering the ranks' largest logits, [`LOGIT_ROWS`] rows at a time: a message of 512 bytes a row is
    /// latency alone, which is that of the smallest all-reduce.
    fn gather_seconds(&self, logits: f64) -> f64 {
        let times = if self.ranks == 1 { 0.0 } else { (logits / LOGIT_ROWS as f64).ceil() };
        times * self.hardware.all_reduce_seconds(0.0)
    }
}
