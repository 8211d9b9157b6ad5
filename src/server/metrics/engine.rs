//! Metrics that the engine's thread writes, with their names from the table.

use prometheus::{Counter, Histogram, HistogramOpts, IntCounter};

use super::factory::MetricFactory;
use crate::engine::EngineMetrics;

/// Buckets of host times, in seconds.
const HOST: [f64; 14] = [5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1];
/// Buckets of step times, in seconds.
const STEP: [f64; 16] =
    [5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
/// Buckets of the measured over the predicted step time.
const RATIO: [f64; 13] = [0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0];
/// Buckets of tokens per step, the same as vLLM's.
const TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Makes the engine's metrics for [`crate::engine::EngineOptions::metrics`]. [`super::Metrics::new`]
/// registers them.
pub fn engine_metrics() -> EngineMetrics {
    let histogram = |name: &str, buckets: &[f64]| {
        let options = HistogramOpts::from(MetricFactory::options(name).0).buckets(buckets.to_vec());
        Histogram::with_opts(options).expect("the name and the buckets are valid")
    };
    let counter = |name: &str| Counter::with_opts(MetricFactory::options(name).0).expect("the name is valid");
    let integer =
        |name: &str| IntCounter::with_opts(MetricFactory::options(name).0).expect("the name is valid");
    EngineMetrics {
        host: histogram("octant_step_host_seconds", &HOST),
        idle: histogram("octant_step_device_idle_seconds", &HOST),
        step: histogram("octant_step_seconds", &STEP),
        ratio: histogram("octant_step_prediction_ratio", &RATIO),
        tokens: histogram("vllm:iteration_tokens_total", &TOKENS),
        prefill: counter("octant_prefill_seconds_total"),
        decode: counter("octant_decode_seconds_total"),
        kv_block_seconds: counter("octant_kv_block_seconds_total"),
        late_masks: integer("octant_grammar_late_steps_total"),
        mask_wait: counter("octant_grammar_wait_seconds_total"),
        recomputed: integer("vllm:prompt_tokens_recomputed_total"),
    }
}

/// Registers the engine's metrics.
pub(super) fn register(make: &MetricFactory<'_>, metrics: &EngineMetrics) {
    let m = metrics.clone();
    for histogram in [m.host, m.idle, m.step, m.ratio, m.tokens] {
        make.register(Ok(histogram));
    }
    for counter in [m.prefill, m.decode, m.kv_block_seconds, m.mask_wait] {
        make.register(Ok(counter));
    }
    for counter in [m.late_masks, m.recomputed] {
        make.register(Ok(counter));
    }
}
