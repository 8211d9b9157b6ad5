//! Prometheus metrics in vLLM's names, so that its dashboards, autoscalers and gateways read them as they are.
//!
//! [`names`] is the table of all of them, [`exposition`] how they are written, `keys` the counters by key, `tracker` what
//! is measured of one request. Gauges and the scheduler's totals are read from the engine's last snapshot when scraped,
//! and the steps' histograms are atomics of the engine's thread: a scrape waits for no step, and no step for a scrape.
//! What only the front end sees is counted as it happens. Latencies and lengths are counted per choice.

mod engine;
pub mod exposition;
mod keys;
pub mod names;
mod tracker;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry,
};

use super::error::ApiError;
use super::status::ServerStatus;
use super::system::unix_time;
use crate::engine::{BLOCK_TOKENS, EngineHandle, KeyCounters, Stats};
use crate::generation::{Generation, Refusal};
use crate::request::Reject;
pub use engine::engine_metrics;
use exposition::Format;
use keys::Keys;
use tracker::RequestMetrics;
pub use tracker::{Admitted, Tracker};

/// Of HTTP: to the head of the response, which for a stream comes when the scheduler has taken the request.
const HTTP: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];
/// Ticks per second of the times in `/proc`, on all of Linux's 64-bit architectures.
const TICKS: f64 = 100.0;

/// All metrics of one server, in a registry of its own.
pub struct Metrics {
    registry: Registry,
    /// Held by a scrape until it has gathered, so that what it shows is of one moment. Only scrapes wait for it.
    copied: Mutex<Copied>,
    requests: Arc<RequestMetrics>,
    http: IntCounterVec,
    http_time: HistogramVec,
    errors: IntCounterVec,
    admissions: IntCounterVec,
    keys: Keys,
    reading: Gauge,
    /// Of the text of the last scrape.
    length: AtomicUsize,
}

/// What is copied from elsewhere when scraped.
struct Copied {
    running: Gauge,
    waiting: Gauge,
    waiting_by_reason: GaugeVec,
    lora: Gauge,
    kv_usage: Gauge,
    blocks: GaugeVec,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    preemptions: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    cached: IntCounter,
    steps: IntCounter,
    startup: GaugeVec,
    memory: Gauge,
    cpu: Counter,
}

/// Makes metrics of the table and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<M: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("the name is valid");
        self.0.register(Box::new(metric.clone())).expect("each name is registered once");
        metric
    }

    fn options(name: &str) -> (Opts, &'static [&'static str]) {
        let known = names::find(name).expect("the table has every name");
        (Opts::new(known.name, known.help), known.labels)
    }

    fn gauge(&self, name: &str) -> Gauge {
        self.keep(Gauge::with_opts(Self::options(name).0))
    }

    fn gauges(&self, name: &str) -> GaugeVec {
        let (options, labels) = Self::options(name);
        self.keep(GaugeVec::new(options, labels))
    }

    fn counter(&self, name: &str) -> IntCounter {
        self.keep(IntCounter::with_opts(Self::options(name).0))
    }

    fn counters(&self, name: &str) -> IntCounterVec {
        let (options, labels) = Self::options(name);
        self.keep(IntCounterVec::new(options, labels))
    }

    fn histogram(&self, name: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::from(Self::options(name).0).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(options))
    }
}

impl Metrics {
    /// `model` is the value of the label `model_name` on all of them.
    pub fn new(model: &str, engine: &EngineHandle) -> Self {
        let common = [("model_name", model), ("engine", "0")];
        let common = common.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let labels = HashMap::from(common.clone());
        let registry = Registry::new_custom(None, Some(labels)).expect("the labels are valid");
        let make = Maker(&registry);
        let config = engine.config();
        let copied = Mutex::new(Copied::new(&make));
        let requests = Arc::new(RequestMetrics::new(&make, config.max_model_len));
        let (options, labels) = Maker::options("http_request_duration_seconds");
        let options = HistogramOpts::from(options).buckets(HTTP.to_vec());
        let http_time = make.keep(HistogramVec::new(options, labels));
        let caching = if config.prefix_caching { "True" } else { "False" };
        make.gauges("vllm:cache_config_info")
            .with_label_values(&[&BLOCK_TOKENS.to_string(), &config.num_blocks.to_string(), caching])
            .set(1.0);
        for never in ["vllm:cpu_cache_usage_perc", "vllm:num_requests_swapped"] {
            make.gauge(never).set(0.0);
        }
        make.gauge("process_start_time_seconds").set(unix_time() as f64);
        engine::register(&make, engine.metrics());
        let admissions = make.counters("octant_admissions_total");
        for decision in DECISIONS {
            admissions.with_label_values(&[decision]);
        }
        let errors = make.counters("octant_http_errors_total");
        for code in ApiError::LABELS {
            errors.with_label_values(&[code]);
        }
        let keys = Keys::new(common.to_vec());
        let reading = make.gauge("octant_requests_reading");
        let http = make.counters("http_requests_total");
        Self {
            registry,
            copied,
            requests,
            http,
            http_time,
            errors,
            admissions,
            keys,
            reading,
            length: AtomicUsize::new(0),
        }
    }

    /// Begins to measure an admitted request.
    pub fn track(&self, admitted: Admitted, generation: &Generation) -> Tracker {
        self.admissions.with_label_values(&["admitted"]).inc();
        Tracker::new(Arc::clone(&self.requests), admitted, generation)
    }

    /// So many bodies are on their way.
    pub fn reading(&self, bodies: usize) {
        self.reading.set(bodies as f64);
    }

    /// Counts a request that was refused.
    pub fn refused(&self, refusal: &Refusal) {
        self.admissions.with_label_values(&[decision(refusal)]).inc();
    }

    /// Has counters of a key of the operator's from now on, whatever users there will be.
    pub fn register_key(&self, label: &str) {
        self.keys.register(label);
    }

    /// The counters of a key or user, and the label that it has.
    pub fn payer(&self, key: &str) -> (String, Arc<KeyCounters>) {
        self.keys.payer(key)
    }

    /// Counts a response whose head took so long.
    pub fn http(&self, handler: &str, method: &str, status: u16, took: Duration) {
        let class = format!("{}xx", status / 100);
        self.http.with_label_values(&[handler, method, &class]).inc();
        self.http_time.with_label_values(&[handler, method]).observe(took.as_secs_f64());
    }

    /// Counts a response that is an error, by its label.
    pub fn error(&self, label: &str) {
        self.errors.with_label_values(&[label]).inc();
    }

    /// The text of a scrape.
    pub fn render(&self, stats: &Stats, status: &ServerStatus, format: Format) -> String {
        let families = {
            let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
            copied.set(stats, status);
            self.registry.gather()
        };
        // It grows little from one scrape to the next.
        let mut out = String::with_capacity(self.length.load(Ordering::Relaxed) + (4 << 10));
        exposition::write(&families, format, &mut out);
        self.keys.write(format, &mut out);
        exposition::write_end(format, &mut out);
        self.length.store(out.len(), Ordering::Relaxed);
        out
    }
}

/// What decides about a request, all of it.
const DECISIONS: [&str; 9] = [
    "admitted",
    "queue_full",
    "busy",
    "deadline_unmet",
    "draining",
    "engine_down",
    "too_long",
    "invalid",
    "internal",
];

/// What a refusal was decided by.
fn decision(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Rejected(Reject::QueueFull { .. } | Reject::QueueTokensFull { .. }) => "queue_full",
        Refusal::Rejected(Reject::Draining) => "draining",
        Refusal::Rejected(Reject::EngineDown(_)) => "engine_down",
        Refusal::TooLong { .. }
        | Refusal::TooManyBytes { .. }
        | Refusal::Rejected(Reject::TooLong { .. }) => "too_long",
        Refusal::Rejected(Reject::Busy { .. }) => "busy",
        Refusal::Rejected(Reject::DeadlineUnmet { .. }) => "deadline_unmet",
        Refusal::Internal(_) => "internal",
        _ => "invalid",
    }
}

impl Copied {
    fn new(make: &Maker<'_>) -> Self {
        let (cpu, _) = Maker::options("process_cpu_seconds_total");
        Self {
            running: make.gauge("vllm:num_requests_running"),
            waiting: make.gauge("vllm:num_requests_waiting"),
            waiting_by_reason: make.gauges("vllm:num_requests_waiting_by_reason"),
            lora: make.gauges("vllm:lora_requests_info").with_label_values(&["0", "", ""]),
            kv_usage: make.gauge("vllm:kv_cache_usage_perc"),
            blocks: make.gauges("octant_kv_blocks"),
            prompt_tokens: make.counter("vllm:prompt_tokens_total"),
            generation_tokens: make.counter("vllm:generation_tokens_total"),
            preemptions: make.counter("vllm:num_preemptions_total"),
            prefix_queries: make.counter("vllm:prefix_cache_queries_total"),
            prefix_hits: make.counter("vllm:prefix_cache_hits_total"),
            cached: make.counter("vllm:prompt_tokens_cached_total"),
            steps: make.counter("octant_steps_total"),
            startup: make.gauges("octant_startup_seconds"),
            memory: make.gauge("process_resident_memory_bytes"),
            cpu: make.keep(Counter::with_opts(cpu)),
        }
    }

    /// Callers take turns, so a total is never added twice.
    fn set(&self, stats: &Stats, status: &ServerStatus) {
        let counts = &stats.counts;
        self.running.set(counts.running as f64);
        self.waiting.set(counts.waiting as f64);
        self.waiting_by_reason.with_label_values(&["capacity"]).set(counts.waiting as f64);
        self.waiting_by_reason.with_label_values(&["deferred"]).set(0.0);
        self.lora.set(unix_time() as f64);
        self.kv_usage.set(counts.blocks_used as f64 / counts.blocks_total.max(1) as f64);
        // Free blocks are given before cached ones are.
        let free = counts.blocks_free.saturating_sub(counts.blocks_reserved);
        let rest = counts.blocks_reserved.saturating_sub(counts.blocks_free);
        let cached = counts.blocks_cached.saturating_sub(rest);
        let reserved = (counts.blocks_free - free) + (counts.blocks_cached - cached);
        let states =
            [("free", free), ("used", counts.blocks_used), ("cached", cached), ("reserved", reserved)];
        for (state, count) in states {
            self.blocks.with_label_values(&[state]).set(count as f64);
        }
        let totals = [
            (&self.prompt_tokens, counts.prompt_tokens),
            (&self.generation_tokens, counts.generated_tokens),
            (&self.preemptions, counts.preemptions),
            (&self.prefix_queries, counts.prefix_queries),
            (&self.prefix_hits, counts.prefix_hits),
            (&self.cached, counts.prefix_hits),
            (&self.steps, counts.steps),
        ];
        for (counter, total) in totals {
            // Two scrapes may take their snapshots in one order and get here in the other.
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        for (phase, took) in status.startup() {
            self.startup.with_label_values(&[phase]).set(took.as_secs_f64());
        }
        let (memory, cpu) = process();
        self.memory.set(memory);
        self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
    }
}

/// Bytes in RAM and seconds of processors, as the system counts them; 0 where it does not say.
fn process() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = resident.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, which may contain anything, ends with the last parenthesis; the two times are the 12th and 13th behind.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
    (kib * 1024.0, ticks / TICKS)
}
