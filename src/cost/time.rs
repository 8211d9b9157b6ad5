//! What a step takes, by what takes it.

use std::iter::Sum;

/// What a step takes, in seconds, by what takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct StepTime {
    /// Reading the layers' weights: passes × L × elements × bytes of one / `read`.
    pub weights: f64,
    /// Multiplying by them: 2 × t × L × elements / `products`, and at half that rate where inputs are BF16.
    pub products: f64,
    /// Reading the head, which is BF16, once for each 64 rows of logits.
    pub head_weights: f64,
    /// Multiplying by it, at half of `products`.
    pub head_products: f64,
    /// Reading keys and values: tokens seen × L × 2 × KV heads × elements of a head × bytes of one / `read`.
    pub kv: f64,
    /// Attention's arithmetic: pairs of tokens × L × 4 × query heads × elements of a head / `attention`.
    pub attention: f64,
    /// Writing and reading intermediate results that the cache does not hold.
    pub activations: f64,
    /// Adding up between ranks, by the table of all-reduces: 2 L + 1 times.
    pub reduce: f64,
    /// Gathering logits from ranks.
    pub gather: f64,
    /// Launches and what is small: `step_overhead` + L × `layer_overhead`.
    pub overhead: f64,
}

impl StepTime {
    /// Reading and arithmetic overlap; what is left is one after the other.
    pub fn total(&self) -> f64 {
        self.parts().into_iter().map(|(_, seconds)| seconds).sum()
    }

    /// What most of it is, and so what would have to be less for the step to be quicker.
    pub fn bound(&self) -> &'static str {
        self.parts().into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or("nothing", |(name, _)| name)
    }

    /// What is one after the other, each by the name of the term that holds.
    fn parts(&self) -> [(&'static str, f64); 7] {
        let larger = |(a, x): (&'static str, f64), (b, y)| if x >= y { (a, x) } else { (b, y) };
        [
            larger(("weights", self.weights), ("products", self.products)),
            larger(("head", self.head_weights), ("head", self.head_products)),
            larger(("kv", self.kv), ("attention", self.attention)),
            ("activations", self.activations),
            ("reduce", self.reduce),
            ("gather", self.gather),
            ("overhead", self.overhead),
        ]
    }
}

/// The terms of several steps. The total of the sum is at most the sum of the totals, and less where what bounds them
/// differs.
impl Sum for StepTime {
    fn sum<I: Iterator<Item = Self>>(steps: I) -> Self {
        steps.fold(Self::default(), |a, b| Self {
            weights: a.weights + b.weights,
            products: a.products + b.products,
            head_weights: a.head_weights + b.head_weights,
            head_products: a.head_products + b.head_products,
            kv: a.kv + b.kv,
            attention: a.attention + b.attention,
            activations: a.activations + b.activations,
            reduce: a.reduce + b.reduce,
            gather: a.gather + b.gather,
            overhead: a.overhead + b.overhead,
        })
    }
}
