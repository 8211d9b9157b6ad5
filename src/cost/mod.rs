//! Cost model: computes the time of a model's step on given GPUs from the terms of the roofline, without a
//! device. `octant plan` and the simulated executor use it.
//!
//! Each term is bytes over a rate, FLOP over a rate, or a time from a table; the formulas are in
//! [`StepTime`]. Letters: L layers, h width of the residual stream, t tokens of the step, n ranks. The cost
//! model neglects scales and norms, the rows of the embedding, and sampling, because each takes less than a
//! thousandth of a step.

mod figures;
mod hardware;
mod linear;
mod time;

pub(crate) use figures::TermOrigin;
pub use figures::{Efficiency, Figure, Kernel, Limit, Origin, Source};
pub use hardware::Hardware;
use linear::{Operands, Product, ProductTime};
pub use time::StepTime;

use crate::device::{HeadShape, KvDtype};
use crate::model::{HeadDtype, LOGIT_ROWS, LoadError, ModelConfig, Precision, Scheme};

/// A row's contribution to the cost of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Tokens fed.
    pub tokens: u32,
    /// Positions before the tokens fed.
    pub position: u32,
    /// Rows of logits computed.
    pub logits: u32,
}

/// The smallest message in bytes for which the table has a time of a two-shot all-reduce. The cost model
/// assumes that a two-shot all-reduce of a smaller message takes as long as one of this size.
const TWO_SHOT_MIN: f64 = 512e3;

/// Bytes per element of the all-reduce that takes as long as a sum between ranks. In a one-shot sum, every
/// rank reads the F32 values (4 bytes) of all others. In a two-shot sum, each rank first adds up the F32
/// values of its share and then passes the result on as E4M3 (1 byte). Each of the two phases is half of an
/// all-reduce's traffic, so a two-shot sum has the mean of 4 and 1.
const ONE_SHOT_BYTES: f64 = 4.0;
const TWO_SHOT_BYTES: f64 = (4.0 + 1.0) / 2.0;

/// The cost of a model's steps on given GPUs.
#[derive(Debug, Clone)]
pub struct CostModel {
    hardware: Hardware,
    /// One rank's share of the model.
    share: ModelConfig,
    ranks: usize,
    /// The products of a layer.
    products: [Product; 4],
    /// Bytes per element of the LM head.
    head_element: f64,
    /// Bytes per element of the KV cache.
    kv_element: f64,
    /// Whether cuBLASLt computes the products of many rows where it is faster.
    library: bool,
}

impl CostModel {
    /// Creates a cost model with deterministic products; see [`Self::with_library`].
    ///
    /// # Errors
    /// The model cannot be divided between `ranks`.
    pub fn new(
        model: &ModelConfig,
        ranks: usize,
        precision: Precision,
        kv: KvDtype,
        hardware: Hardware,
    ) -> Result<Self, LoadError> {
        let share = model.share(ranks)?;
        let operands = match (precision, &model.scheme) {
            (Precision::Fp8, _) => Operands::Fp8,
            (_, Scheme::None) => Operands::Bf16,
            // Weights stored as E4M3 stay E4M3, even if the products take BF16 inputs.
            _ => Operands::Widened,
        };
        let fp8_head = model.head_dtype == HeadDtype::Fp8;
        Ok(Self {
            head_element: if fp8_head { 1.0 } else { 2.0 },
            products: share.linear_shapes().map(|(out, input)| Product::new(out, input, operands)),
            share,
            ranks,
            kv_element: if kv == KvDtype::Fp8 { 1.0 } else { 2.0 },
            library: false,
            hardware,
        })
    }

    /// The same cost model, but cuBLASLt computes the products of many rows where it is faster, as with
    /// `--deterministic false`.
    pub fn with_library(self) -> Self {
        Self { library: true, ..self }
    }

    /// The time of a step of these rows; 0 without rows.
    pub fn step(&self, rows: impl IntoIterator<Item = RowShape>) -> StepTime {
        let (mut tokens, mut logits, mut kv_tokens, mut pairs) = (0.0, 0.0, 0.0, 0.0);
        let mut count = 0;
        for row in rows {
            count += row.tokens as usize;
            let (fed, before) = (f64::from(row.tokens), f64::from(row.position));
            tokens += fed;
            logits += f64::from(row.logits);
            kv_tokens += before + fed;
            // A token attends to the positions before the row, to the tokens before it in the row, and to
            // itself.
            pairs += fed * before + fed * (fed + 1.0) / 2.0;
        }
        if tokens == 0.0 {
            return StepTime::default();
        }
        let (share, hardware) = (&self.share, &self.hardware);
        let layers = share.layers as f64;
        let HeadShape { q_heads, kv_heads, head_dim } = share.heads;
        let head = (share.vocab * share.hidden) as f64;
        let linear: ProductTime = self
            .products
            .iter()
            .map(|product| product.time(count, share.layers, hardware, self.library))
            .sum();
        let of_head = |limit| hardware.share(Kernel::Linear, limit, LOGIT_ROWS);
        let kv_rate = hardware.read * hardware.share(Kernel::Attention, Limit::Memory, count);
        let kv_bytes = kv_tokens * layers * (2 * kv_heads * head_dim) as f64 * self.kv_element;
        let attention = hardware.attention * hardware.share(Kernel::Attention, Limit::Arithmetic, count);
        let rows_rate = hardware.read * hardware.share(Kernel::Rows, Limit::Memory, count);
        StepTime {
            weights: linear.weights,
            staging: linear.staging,
            products: linear.products,
            cuts: linear.cuts(),
            head_weights: (logits / LOGIT_ROWS as f64).ceil() * head * self.head_element
                / (hardware.read * of_head(Limit::Memory)),
            head_products: 2.0 * logits * head / (hardware.products / 2.0 * of_head(Limit::Arithmetic)),
            kv: kv_bytes / kv_rate,
            attention: pairs * layers * (4 * q_heads * head_dim) as f64 / attention,
            activations: layers * self.spilled_bytes(tokens) / rows_rate,
            reduce: self.reduce_seconds(tokens),
            gather: self.gather_seconds(logits),
            overhead: hardware.step_overhead + layers * hardware.layer_overhead,
        }
    }

    /// The times of the steps that prefill `tokens` prompt tokens after `done` earlier ones, at most
    /// `step_tokens` per step. The last step computes the logits of the first output token.
    pub fn prompt(&self, done: u32, tokens: u32, step_tokens: u32) -> Vec<StepTime> {
        let each = step_tokens.max(1);
        let starts = (done..done + tokens).step_by(each as usize);
        let step = |position: u32| {
            let left = done + tokens - position;
            RowShape { tokens: left.min(each), position, logits: u32::from(left <= each) }
        };
        starts.map(|position| self.step([step(position)])).collect()
    }

    /// Bytes of a layer's intermediate results that go to memory: each result is written and read once,
    /// except for the part that fits in the cache. The results are F32: \[t, h\] of attention and of the MLP,
    /// \[t, qkv\] and \[t, ffn\].
    fn spilled_bytes(&self, tokens: f64) -> f64 {
        let [(qkv, hidden), _, (ffn, _), _] = self.share.linear_shapes();
        let spilled = |cols: usize| (tokens * (cols * 4) as f64 - self.hardware.cache).max(0.0);
        2.0 * [hidden, hidden, qkv, ffn].map(spilled).iter().sum::<f64>()
    }

    /// Seconds of all sums between ranks. Each layer has two sums; each is one-shot or two-shot, whichever is
    /// faster. The last layer's second sum and the sum of the embedding are one-shot, because every rank
    /// needs the whole result.
    fn reduce_seconds(&self, tokens: f64) -> f64 {
        if self.ranks == 1 {
            return 0.0;
        }
        let elements = tokens * self.share.hidden as f64;
        let one_shot = self.hardware.all_reduce_seconds(ONE_SHOT_BYTES * elements);
        let two_shot = self.hardware.all_reduce_seconds((TWO_SHOT_BYTES * elements).max(TWO_SHOT_MIN));
        (2.0 * self.share.layers as f64 - 1.0) * one_shot.min(two_shot) + 2.0 * one_shot
    }

    /// Seconds of gathering the largest logits of each rank, [`LOGIT_ROWS`] rows at a time. A row's message
    /// has 512 bytes, so the time is pure latency: that of the smallest all-reduce.
    fn gather_seconds(&self, logits: f64) -> f64 {
        let times = if self.ranks == 1 { 0.0 } else { (logits / LOGIT_ROWS as f64).ceil() };
        times * self.hardware.all_reduce_seconds(0.0)
    }
}
