//! Cost model: computes the time of a model's step on given GPUs from the terms of the roofline, without a
//! device. `octant plan` and the simulated executor use it.
//!
//! Each term is bytes over a rate, FLOP over a rate, or a time from a table; the formulas are in
//! [`StepTime`]. Letters: L layers, h width of the residual stream, t tokens of the step, n ranks. The cost
//! model neglects scales and norms, the rows of the embedding, and sampling, because each takes less than a
//! thousandth of a step.

mod attention;
mod figures;
mod hardware;
mod linear;
mod time;
mod two_batches;

use attention::AttentionWork;
pub(crate) use figures::TermOrigin;
pub use figures::{Efficiency, Figure, Kernel, Limit, Origin, Source};
pub use hardware::Hardware;
use linear::{Operands, Product, ProductTime};
pub use time::StepTime;

use crate::device::product_tiles::PARTS;
use crate::device::{KvDtype, PACKET_ROWS, ROW_SLICES};
use crate::model::{HEAD_ROWS, HeadDtype, LOGIT_ROWS, LoadError, ModelConfig, Precision, Scheme};

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

/// Bytes per element of what ranks send one another, and of a layer's results. A one-shot sum takes as long
/// as an all-reduce of the parts, which every rank reads. In a two-shot sum, each rank first gets the parts
/// of its share, adds them up and then passes the result on. Each of the two phases is half of an
/// all-reduce's traffic, so a two-shot sum takes as long as an all-reduce with the mean of both sizes, less
/// what passes while the product that sends the parts still runs ([`Product::hidden`]). A rank then reads the
/// parts from its own L2 cache; what does not fit there counts as an intermediate result.
#[derive(Debug, Clone, Copy)]
struct ElementBytes {
    /// Results of products, and so the parts of sums.
    result: f64,
    /// Inputs of products, which the norms of two-shot sums make.
    input: f64,
}

impl ElementBytes {
    fn new(precision: Precision) -> Self {
        match precision {
            Precision::Fp8 => Self { result: 2.0, input: 1.0 },
            Precision::None => Self { result: 4.0, input: 2.0 },
        }
    }
}

/// Bytes of an element of the residual stream, and of queries.
const F32_BYTES: f64 = 4.0;

/// Threads that compute a row alone, of one group each of eight elements at a time.
const ROW_THREADS: usize = 512;

/// The two sums between ranks of a layer, after attention and after the MLP, each with a norm.
#[derive(Default)]
struct LayerSums {
    /// Seconds of both.
    seconds: f64,
    /// Seconds that the products after them take less because they read weights meanwhile.
    ahead: f64,
    /// Seconds that the norms take less than `layer_overhead` counts.
    saved: f64,
}

impl LayerSums {
    fn total(&self) -> f64 {
        self.seconds - self.ahead - self.saved
    }
}

/// The cost of a model's steps on given GPUs.
#[derive(Debug, Clone)]
pub struct CostModel {
    hardware: Hardware,
    /// One rank's share of the model.
    share: ModelConfig,
    ranks: usize,
    /// The products of a layer: QKV, attention output, MLP up, MLP down.
    products: [Product; 4],
    /// Bytes per element of the LM head.
    head_element: f64,
    /// Bytes per element of the KV cache.
    kv_element: f64,
    bytes: ElementBytes,
    /// Whether cuBLASLt computes the products of many rows where it is faster, except for parts of sums.
    library: bool,
    /// Tokens from which a step is computed as two batches, if any is.
    two_batch_tokens: Option<usize>,
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
            bytes: ElementBytes::new(precision),
            kv_element: if kv == KvDtype::Fp8 { 1.0 } else { 2.0 },
            library: false,
            two_batch_tokens: None,
            hardware,
        })
    }

    /// The same cost model, but cuBLASLt computes the products of many rows where it is faster, as with
    /// `--deterministic false`.
    pub fn with_library(self) -> Self {
        Self { library: true, ..self }
    }

    /// The same cost model, but steps of at least `tokens` tokens are computed as two batches, as with
    /// `--two-batch-tokens`. One rank alone has no sums to hide.
    pub fn with_two_batches(self, tokens: Option<usize>) -> Self {
        let two_batch_tokens = tokens.filter(|_| self.ranks > 1);
        Self { two_batch_tokens, ..self }
    }

    /// The time of a step of these rows; 0 without rows.
    pub fn step(&self, rows: impl IntoIterator<Item = RowShape>) -> StepTime {
        let (share, hardware) = (&self.share, &self.hardware);
        let (mut tokens, mut logits, mut count, mut decodes) = (0.0, 0.0, 0, 0);
        let mut attention = AttentionWork::default();
        for row in rows.into_iter().filter(|row| row.tokens > 0) {
            count += row.tokens as usize;
            decodes += usize::from(row.tokens == 1);
            tokens += f64::from(row.tokens);
            logits += f64::from(row.logits);
            attention.add(row, share.heads);
        }
        if tokens == 0.0 {
            return StepTime::default();
        }
        let layers = share.layers as f64;
        let head = (share.vocab * share.hidden) as f64;
        let linear: ProductTime = self.product_times(&self.products, count).into_iter().sum();
        let head_rows = if self.ranks > 1 { HEAD_ROWS } else { LOGIT_ROWS };
        let of_head = |limit| hardware.share(Kernel::Linear, limit, (logits as usize).min(head_rows));
        let kv_rate = hardware.read * hardware.share(Kernel::Attention, Limit::Memory, count);
        let attention_rate = hardware.attention * hardware.share(Kernel::Attention, Limit::Arithmetic, count);
        let rows_rate = hardware.read * hardware.share(Kernel::Rows, Limit::Memory, count);
        let sums = self.layer_sums(count);
        let time = StepTime {
            weights: linear.weights,
            staging: linear.staging,
            products: linear.products,
            cuts: linear.cuts(),
            head_weights: (logits / head_rows as f64).ceil() * head * self.head_element
                / (hardware.read * of_head(Limit::Memory)),
            head_products: 2.0 * logits * head / (hardware.products / 2.0 * of_head(Limit::Arithmetic)),
            kv: layers * attention.reading(self.kv_element, kv_rate),
            attention: layers * attention.multiplying(attention_rate),
            activations: layers * self.spilled_bytes(tokens) / rows_rate,
            reduce: self.reduce_seconds(count, sums.seconds) - layers * sums.ahead,
            gather: self.gather_seconds(logits),
            overhead: hardware.step_overhead + layers * (hardware.layer_overhead - sums.saved),
        };
        match self.two_batch_rows(count, decodes) {
            Some(rows) => self.as_two_batches(time, rows),
            None => time,
        }
    }

    /// The times of the four products of a layer for `rows` rows, summed over the layers.
    fn product_times(&self, products: &[Product; 4], rows: usize) -> [ProductTime; 4] {
        let is_part = [false, true, false, true];
        std::array::from_fn(|index| {
            // The library cannot store parts in other ranks' memory.
            let library = self.library && !(is_part[index] && self.ranks > 1);
            products[index].time(rows, self.share.layers, &self.hardware, library)
        })
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
    /// except for the part that fits in the cache. The results are \[t, h\] of attention and of the MLP,
    /// \[t, qkv\], \[t, ffn\], and the queries, which are F32.
    fn spilled_bytes(&self, tokens: f64) -> f64 {
        let [(qkv, hidden), (_, queries), (ffn, _), _] = self.share.linear_shapes();
        let spilled = |cols: usize, each: f64| (tokens * cols as f64 * each - self.hardware.cache).max(0.0);
        let results = [hidden, hidden, qkv, ffn].map(|cols| spilled(cols, self.bytes.result));
        2.0 * (results.iter().sum::<f64>() + spilled(queries, F32_BYTES))
    }

    /// The sums of a layer. They are one-shot or two-shot, whichever takes less with the norms and the
    /// products after them.
    fn layer_sums(&self, rows: usize) -> LayerSums {
        if self.ranks == 1 {
            return LayerSums::default();
        }
        let (elements, hardware) = ((rows * self.share.hidden) as f64, &self.hardware);
        let result = self.bytes.result;
        let one_shot = hardware.all_reduce_seconds(result * elements);
        let [qkv, attention, up, mlp] = &self.products;
        let sums = |seconds: [f64; 2], saved: f64, busy: usize| {
            // The blocks that read start after those of the sum.
            let ahead = |(sum, product): (&f64, &Product)| {
                product.saved_by_reading_ahead(rows, busy, hardware).min((sum - hardware.launch).max(0.0))
            };
            let products = [up, qkv];
            let ahead = seconds.iter().zip(products).map(ahead).sum();
            LayerSums { seconds: seconds.iter().sum(), ahead, saved }
        };
        let sliced = self.bytes.result < F32_BYTES && rows <= PACKET_ROWS;
        let saved = if sliced { self.sliced_seconds() } else { 0.0 };
        let one_shots = sums([one_shot; 2], saved, if sliced { rows * ROW_SLICES } else { rows });
        // A rank computes its share of the rows.
        let two_shots = sums(
            [attention, mlp].map(|product| self.two_shot_seconds(product, rows)),
            0.0,
            rows.div_ceil(self.ranks),
        );
        if one_shots.total() <= two_shots.total() { one_shots } else { two_shots }
    }

    /// Seconds of the two-shot sum of the results of `product` that do not pass while it runs.
    fn two_shot_seconds(&self, product: &Product, rows: usize) -> f64 {
        let (elements, hardware) = ((rows * self.share.hidden) as f64, &self.hardware);
        let ElementBytes { result, input } = self.bytes;
        let seconds = |each: f64| hardware.all_reduce_seconds((each * elements).max(TWO_SHOT_MIN));
        // The last results and their signal take the latency of a phase.
        let sending = (seconds(result) - hardware.all_reduce_seconds(TWO_SHOT_MIN)) / 2.0;
        let reading = result * elements / hardware.l2;
        seconds((result + input) / 2.0) + reading - product.hidden(sending, rows, hardware)
    }

    /// Seconds that the two norms of a layer take less if a cluster of blocks computes a row.
    /// `layer_overhead` counts that the parts of all ranks come to one multiprocessor; a block of a cluster
    /// reads its slice of them. Shorter passes over shared memory and exchanges between blocks are taken as
    /// equal (`kernels/README.md`).
    fn sliced_seconds(&self) -> f64 {
        let Hardware { l2, layer_overhead, .. } = self.hardware;
        let hidden = self.share.hidden;
        let slice = (hidden / 8).div_ceil(ROW_THREADS) * (ROW_THREADS / ROW_SLICES) * 8;
        let elements = self.ranks * hidden.saturating_sub(slice);
        let bytes = self.bytes.result * elements as f64;
        (2.0 * bytes * PARTS as f64 / l2).min(layer_overhead)
    }

    /// Seconds of all sums between ranks; `layer` is the time of those of a layer. The sums of the embedding
    /// and of the last layer are F32 on every rank.
    fn reduce_seconds(&self, rows: usize, layer: f64) -> f64 {
        if self.ranks == 1 {
            return 0.0;
        }
        let elements = (rows * self.share.hidden) as f64;
        let seconds = |each: f64| self.hardware.all_reduce_seconds(each * elements);
        let (first, last) = (seconds(F32_BYTES), seconds((self.bytes.result + F32_BYTES) / 2.0));
        (self.share.layers as f64 - 0.5) * layer + first + last
    }

    /// Seconds of gathering the largest logits of each rank, [`LOGIT_ROWS`] rows at a time. A row's message
    /// has 512 bytes, so the time is pure latency: that of the smallest all-reduce.
    fn gather_seconds(&self, logits: f64) -> f64 {
        let times = if self.ranks == 1 { 0.0 } else { (logits / LOGIT_ROWS as f64).ceil() };
        times * self.hardware.all_reduce_seconds(0.0)
    }
}
