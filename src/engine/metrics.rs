//! What the engine's thread counts as it goes: histograms and counters in atomics, which a scrape reads without its
//! noticing. The server gives them their labels and shows them.

use prometheus::{Counter, Histogram, HistogramOpts, IntCounter};

use crate::request::Cost;

/// From a few microseconds to what nobody should see.
const HOST: [f64; 14] = [5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1];
/// Of a step of any model.
const STEP: [f64; 16] =
    [5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
/// Around 1, where the prediction was right.
const RATIO: [f64; 13] = [0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0];
/// vLLM's.
const TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// The steps' histograms. Clones count together.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    /// Seconds from a step's results to the end of the next launch: what the host takes.
    pub host: Histogram,
    /// Seconds for which a launch found the device without a step although there was work; 0 where it had one, which it may
    /// have ended unseen.
    pub idle: Histogram,
    /// Seconds of the device for each step.
    pub step: Histogram,
    /// What a step took over what it was expected to take when it was launched, by the executor or by the steps before it.
    pub ratio: Histogram,
    /// Tokens of each step.
    pub tokens: Histogram,
    /// Seconds of the device for prefill rows, in all.
    pub prefill: Counter,
    /// The same for decode rows.
    pub decode: Counter,
    /// KV blocks held times seconds, in all.
    pub kv_block_seconds: Counter,
    /// Tokens fed again after preemptions.
    pub recomputed: IntCounter,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            host: histogram("octant_step_host_seconds", &HOST),
            idle: histogram("octant_step_device_idle_seconds", &HOST),
            step: histogram("octant_step_seconds", &STEP),
            ratio: histogram("octant_step_prediction_ratio", &RATIO),
            tokens: histogram("vllm:iteration_tokens_total", &TOKENS),
            prefill: counter("octant_prefill_seconds_total"),
            decode: counter("octant_decode_seconds_total"),
            kv_block_seconds: counter("octant_kv_block_seconds_total"),
            recomputed: IntCounter::new("vllm:prompt_tokens_recomputed_total", "see the table of names")
                .expect("the name is valid"),
        }
    }
}

/// What the server's table of names says of a metric is what is shown, so that its help is given there alone.
fn histogram(name: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, "see the table of names").buckets(buckets.to_vec());
    Histogram::with_opts(options).expect("name and buckets are valid")
}

fn counter(name: &str) -> Counter {
    Counter::new(name, "see the table of names").expect("the name is valid")
}

/// Whoever pays for requests: the counters of one key. Charged once for each request, when it ends or its client leaves.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is the field of the same name of a cost, in all")]
pub struct KeyCounters {
    pub requests: IntCounter,
    pub queue: Counter,
    pub prefill: Counter,
    pub decode: Counter,
    pub kv_block_seconds: Counter,
    pub prompt_tokens: IntCounter,
    pub cached_tokens: IntCounter,
    pub computed_tokens: IntCounter,
    pub recomputed_tokens: IntCounter,
    pub generated_tokens: IntCounter,
}

impl KeyCounters {
    /// A request of so many prompt tokens has cost this and drawn so many tokens.
    pub fn charge(&self, cost: &Cost, prompt: u64, generated: u64) {
        self.requests.inc();
        self.queue.inc_by(cost.queue);
        self.prefill.inc_by(cost.prefill);
        self.decode.inc_by(cost.decode);
        self.kv_block_seconds.inc_by(cost.kv_block_seconds);
        self.prompt_tokens.inc_by(prompt);
        self.cached_tokens.inc_by(cost.cached_tokens);
        self.computed_tokens.inc_by(cost.computed_tokens);
        self.recomputed_tokens.inc_by(cost.recomputed_tokens);
        self.generated_tokens.inc_by(generated);
    }
}
