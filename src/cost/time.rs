//! The time of a step, broken down by cause.

use std::iter::Sum;

/// The time of a step in seconds, by cause. See [`crate::cost`] for the letters in the formulas.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct StepTime {
    /// Reading the layers' weights: L × bytes / `read`, once per 256 rows where blocks share a product's
    /// chunks, and once in all where they compute whole tiles.
    pub weights: f64,
    /// Copying weights and inputs from L2 to the multiprocessors: per chunk of 128 bytes of 128 outputs,
    /// 16 KiB and 128 bytes per row, or 64 bytes per row in whole tiles, of which two share the inputs.
    pub staging: f64,
    /// Multiplying by the weights: 2 × rows of the kernel variants × L × elements / `products`, at half
    /// that rate if inputs are BF16.
    pub products: f64,
    /// Time of products beyond the longest of these three: parts of unequal size, sums of tiles that are
    /// cut between blocks, launches, and launches that another of the three limits.
    pub cuts: f64,
    /// Reading the LM head, which is BF16 or E4M3, once per 256 rows of logits if ranks share it, else once
    /// per 64.
    pub head_weights: f64,
    /// Multiplying by the LM head, at half of `products`, since its inputs are BF16.
    pub head_products: f64,
    /// Reading keys and values: L × positions of whole blocks × 2 × KV heads × head_dim × bytes per
    /// element / `read`.
    pub kv: f64,
    /// Attention's arithmetic: L × 4 × head_dim × query rows of the kernels' tiles × positions of whole
    /// splits / `attention`, or the longest tile where the others have less to do.
    pub attention: f64,
    /// Writing and reading intermediate results that do not fit the cache.
    pub activations: f64,
    /// 2 L + 1 sums between ranks, by the all-reduce table: without what products send while they run,
    /// without the time that the products after them save by reading weights meanwhile, and with reading the
    /// sent parts from L2.
    pub reduce: f64,
    /// Gathering logits from all ranks.
    pub gather: f64,
    /// Launches and other small costs: `step_overhead` + L × `layer_overhead`, less what norms of few rows
    /// save because several multiprocessors compute a row.
    pub overhead: f64,
}

impl StepTime {
    /// The step's time in seconds. Reading overlaps with the arithmetic on the same data; everything else is
    /// sequential.
    pub fn total(&self) -> f64 {
        self.parts().into_iter().map(|(_, seconds)| seconds).sum()
    }

    /// The name of the largest part, which limits the step.
    pub fn bound(&self) -> &'static str {
        self.parts().into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or("nothing", |(name, _)| name)
    }

    /// The sequential parts. Where two terms overlap, the part is the longer one.
    fn parts(&self) -> [(&'static str, f64); 8] {
        let larger = |(a, x): (&'static str, f64), (b, y)| if x >= y { (a, x) } else { (b, y) };
        [
            larger(larger(("weights", self.weights), ("staging", self.staging)), ("products", self.products)),
            ("cuts", self.cuts),
            larger(("head", self.head_weights), ("head", self.head_products)),
            larger(("kv", self.kv), ("attention", self.attention)),
            ("activations", self.activations),
            ("reduce", self.reduce),
            ("gather", self.gather),
            ("overhead", self.overhead),
        ]
    }
}

/// Adds each term over several steps. The total of this sum is at most the sum of the steps' totals; it is
/// less if the steps are limited by different terms.
impl Sum for StepTime {
    fn sum<I: Iterator<Item = Self>>(steps: I) -> Self {
        steps.fold(Self::default(), |a, b| Self {
            weights: a.weights + b.weights,
            staging: a.staging + b.staging,
            products: a.products + b.products,
            cuts: a.cuts + b.cuts,
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
