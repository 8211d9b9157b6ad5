//! What a step of a model takes on GPUs that need not be there: the roofline's terms, as pure arithmetic. The start-up
//! plan, `octant plan` and the simulated executor all count with this.

mod hardware;

pub use hardware::Hardware;

use crate::device::{HeadShape, KvDtype};
use crate::model::{ModelConfig, Precision};

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

/// What a step takes, in seconds, by what takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTime {
    /// Reading weights.
    pub weights: f64,
    /// Multiplying by them.
    pub products: f64,
    /// Reading keys and values.
    pub kv: f64,
    /// Attention's arithmetic.
    pub attention: f64,
    /// Adding up between ranks.
    pub reduce: f64,
    /// Launches and what is small.
    pub overhead: f64,
}

impl StepTime {
    /// Reading and arithmetic overlap; what is left is one after the other.
    pub fn total(&self) -> f64 {
        self.weights.max(self.products) + self.kv.max(self.attention) + self.reduce + self.overhead
    }
}

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
}

impl CostModel {
    /// # Errors
    /// The model cannot be divided so.
    pub fn new(
        model: &ModelConfig,
        ranks: usize,
        precision: Precision,
        kv: KvDtype,
        hardware: Hardware,
    ) -> Result<Self, String> {
        Ok(Self {
            share: model.share(ranks)?,
            hardware,
            ranks,
            element: if precision == Precision::Fp8 { 1.0 } else { 2.0 },
            kv_element: if kv == KvDtype::Fp8 { 1.0 } else { 2.0 },
        })
    }

    /// What a step of these rows takes.
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
        let (share, hardware) = (&self.share, &self.hardware);
        let layers = share.layers as f64;
        let HeadShape { q_heads, kv_heads, head_dim } = share.heads;
        let linear: f64 = share.linear_shapes().iter().map(|(out, input)| (out * input) as f64).sum();
        let head = (share.vocab * share.hidden) as f64;
        let message = tokens * (share.hidden * 2) as f64;
        let reduces = if self.ranks == 1 { 0.0 } else { 2.0 * layers };
        StepTime {
            weights: (layers * linear * self.element + head * 2.0) / hardware.read,
            products: (2.0 * tokens * layers * linear + 2.0 * logits * head) / hardware.products,
            kv: kv_tokens * layers * (2 * kv_heads * head_dim) as f64 * self.kv_element / hardware.read,
            attention: pairs * layers * (4 * q_heads * head_dim) as f64 / hardware.attention,
            reduce: reduces * hardware.all_reduce_seconds(message),
            overhead: hardware.step_overhead + layers * hardware.layer_overhead,
        }
    }
}
