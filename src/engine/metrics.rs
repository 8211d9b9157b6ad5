//! Histograms and counters that the engine's thread writes. They are atomics: a scrape reads them without a
//! lock. The server makes them with the names of its table and shows them; the engine does not know the
//! names.

use prometheus::{Counter, Histogram, HistogramOpts, IntCounter};

use crate::request::Cost;

/// Metrics of steps. Clones share their values.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    /// Host time of a step, in seconds: from its results to the end of the next launch.
    pub host: Histogram,
    /// Seconds for which a launch found the device without a step although work was pending; 0 where a step
    /// was in flight, even if the device had already ended it.
    pub idle: Histogram,
    /// Device time of a step, in seconds.
    pub step: Histogram,
    /// Device time of a step divided by the time expected at its launch, by the executor or else by earlier
    /// steps.
    pub ratio: Histogram,
    /// Tokens fed by a step.
    pub tokens: Histogram,
    /// Total device time of prefill rows, in seconds.
    pub prefill: Counter,
    /// Total device time of decode rows, in seconds.
    pub decode: Counter,
    /// Total of KV blocks held times seconds.
    pub kv_block_seconds: Counter,
    /// Steps for which the device had to wait because a mask of a grammar was late.
    pub late_masks: IntCounter,
    /// Total time of these waits, in seconds.
    pub mask_wait: Counter,
    /// Total of tokens fed again after preemptions.
    pub recomputed: IntCounter,
}

impl Default for EngineMetrics {
    /// Metrics of an engine whose metrics no server shows, with the histograms' default buckets.
    fn default() -> Self {
        let help = "metrics of an engine without a server";
        let histogram =
            |name: &str| Histogram::with_opts(HistogramOpts::new(name, help)).expect("a valid name");
        let counter = |name: &str| Counter::new(name, help).expect("a valid name");
        Self {
            host: histogram("host_seconds"),
            idle: histogram("idle_seconds"),
            step: histogram("step_seconds"),
            ratio: histogram("prediction_ratio"),
            tokens: histogram("step_tokens"),
            prefill: counter("prefill_seconds"),
            decode: counter("decode_seconds"),
            kv_block_seconds: counter("kv_block_seconds"),
            late_masks: IntCounter::new("late_masks", help).expect("a valid name"),
            mask_wait: counter("mask_wait_seconds"),
            recomputed: IntCounter::new("recomputed_tokens", help).expect("a valid name"),
        }
    }
}

/// Counters of one key's requests. Each request is charged once, when it ends or its client leaves.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is the sum of the field of the same name of `Cost`")]
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
    /// Adds the cost of one request with `prompt` prompt tokens and `generated` generated tokens.
    pub fn charge(&self, cost: &Cost, prompt: u64, generated: u64) {
        // All fields are named, so that a new counter or cost cannot be forgotten here.
        let Self {
            requests,
            queue,
            prefill,
            decode,
            kv_block_seconds,
            prompt_tokens,
            cached_tokens,
            computed_tokens,
            recomputed_tokens,
            generated_tokens,
        } = self;
        let Cost {
            queue: queued,
            prefill: prefilled,
            decode: decoded,
            kv_block_seconds: held,
            cached_tokens: cached,
            computed_tokens: computed,
            recomputed_tokens: recomputed,
        } = *cost;
        requests.inc();
        queue.inc_by(queued);
        prefill.inc_by(prefilled);
        decode.inc_by(decoded);
        kv_block_seconds.inc_by(held);
        prompt_tokens.inc_by(prompt);
        cached_tokens.inc_by(cached);
        computed_tokens.inc_by(computed);
        recomputed_tokens.inc_by(recomputed);
        generated_tokens.inc_by(generated);
    }
}
