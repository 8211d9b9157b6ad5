//! Prometheus metrics, under vLLM's names so that dashboards, autoscalers and gateways made for vLLM can read
//! them.
//!
//! [`names`] is the table of all metrics, [`exposition`] writes them as text, `keys` has the counters by API
//! key or user, and `tracker` measures one request. A scrape copies gauges and the scheduler's totals from
//! the engine's last snapshot, and reads the step histograms from atomics that the engine's thread updates,
//! so scrapes and steps never wait for each other. The server counts HTTP requests and admissions itself, as
//! they happen. Latencies and lengths are counted per choice.

mod engine;
pub mod exposition;
mod factory;
mod keys;
pub mod names;
mod tracker;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Counter, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Registry,
};

use super::error::ApiError;
use super::status::ServerStatus;
use super::system::unix_time;
use crate::engine::{BLOCK_TOKENS, Counts, EngineHandle, KeyCounters, Stats};
use crate::generation::{Generation, Refusal};
use crate::request::Reject;
pub use engine::engine_metrics;
use exposition::Format;
use factory::MetricFactory;
use keys::KeyMetrics;
use tracker::RequestMetrics;
pub(crate) use tracker::{AdmittedRequest, Tracker};

/// Buckets in seconds for the time to the response head. The head of a stream is sent once the scheduler has
/// accepted the request.
const HTTP_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];
/// Clock ticks per second of the CPU times in `/proc`; the same on all 64-bit architectures of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// All metrics of one server, in a registry of its own.
pub struct Metrics {
    registry: Registry,
    /// Locked while a scrape copies and gathers, so that its values belong to one snapshot. Only scrapes take
    /// the lock.
    copied: Mutex<CopiedMetrics>,
    requests: Arc<RequestMetrics>,
    http: IntCounterVec,
    http_time: HistogramVec,
    errors: IntCounterVec,
    admissions: IntCounterVec,
    keys: KeyMetrics,
    reading: Gauge,
    /// Length of the last scrape's text, in bytes.
    length: AtomicUsize,
}

/// Metrics that a scrape copies from the engine's snapshot, the server's status and the operating system.
struct CopiedMetrics {
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
    draft_rows: IntCounter,
    drafts: IntCounter,
    accepted: IntCounter,
    /// By place.
    accepted_at: Vec<IntCounter>,
    steps: IntCounter,
    batch_requests: GaugeVec,
    batch_lines: IntCounterVec,
    startup: GaugeVec,
    dropped_log_lines: IntCounter,
    memory: Gauge,
    cpu: Counter,
}

impl Metrics {
    /// Creates and registers all metrics. `model` is the value of the label `model_name`, which every metric
    /// has.
    pub fn new(model: &str, engine: &EngineHandle) -> Self {
        let common = [("model_name", model), ("engine", "0")];
        let common = common.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let labels = HashMap::from(common.clone());
        let registry = Registry::new_custom(None, Some(labels)).expect("the labels are valid");
        let make = MetricFactory(&registry);
        let config = engine.config();
        let copied = Mutex::new(CopiedMetrics::new(&make, config.max_drafts));
        let requests = Arc::new(RequestMetrics::new(&make, config.max_model_len));
        let (options, labels) = MetricFactory::options("http_request_duration_seconds");
        let options = HistogramOpts::from(options).buckets(HTTP_BUCKETS.to_vec());
        let http_time = make.register(HistogramVec::new(options, labels));
        let caching = if config.prefix_caching { "True" } else { "False" };
        make.gauges("vllm:cache_config_info")
            .with_label_values(&[&BLOCK_TOKENS.to_string(), &config.num_blocks.to_string(), caching])
            .set(1.0);
        for always_zero in ["vllm:cpu_cache_usage_perc", "vllm:num_requests_swapped"] {
            make.gauge(always_zero).set(0.0);
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
        let keys = KeyMetrics::new(common.to_vec());
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

    /// Counts an admitted request and starts to measure it.
    pub(crate) fn track(&self, admitted: AdmittedRequest, generation: &Generation) -> Tracker {
        if !admitted.batch {
            self.admissions.with_label_values(&["admitted"]).inc();
        }
        Tracker::new(Arc::clone(&self.requests), admitted, generation)
    }

    /// Sets the number of request bodies that are being read.
    pub(crate) fn reading(&self, bodies: usize) {
        self.reading.set(bodies as f64);
    }

    /// Sets the number of lost lines of the log.
    pub(crate) fn dropped_log_lines(&self, total: u64) {
        let counter = &self.copied.lock().unwrap_or_else(PoisonError::into_inner).dropped_log_lines;
        counter.inc_by(total.saturating_sub(counter.get()));
    }

    /// Sets the totals of lines of batches that were completed and that failed.
    pub(crate) fn batch_lines(&self, totals: [u64; 2]) {
        let counters = &self.copied.lock().unwrap_or_else(PoisonError::into_inner).batch_lines;
        for (result, total) in ["completed", "failed"].into_iter().zip(totals) {
            let counter = counters.with_label_values(&[result]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Counts a refused request.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.admissions.with_label_values(&[decision(refusal)]).inc();
    }

    /// Adds counters for one of the operator's API keys. They do not count towards the limit on users with
    /// counters.
    pub(crate) fn register_key(&self, label: &str) {
        self.keys.register(label);
    }

    /// Label and counters of an API key or user.
    pub fn key_counters(&self, key: &str) -> (String, Arc<KeyCounters>) {
        self.keys.counters(key)
    }

    /// Counts a response. `took` is the time from the request's head to the response's head.
    pub fn http(&self, handler: &str, method: &str, status: u16, took: Duration) {
        let class = format!("{}xx", status / 100);
        self.http.with_label_values(&[handler, method, &class]).inc();
        self.http_time.with_label_values(&[handler, method]).observe(took.as_secs_f64());
    }

    /// Counts an error response. `label` is [`ApiError::label`].
    pub(crate) fn error(&self, label: &str) {
        self.errors.with_label_values(&[label]).inc();
    }

    /// Writes all metrics in the given format: the body of the response to a scrape. `usage` says whether
    /// those of each key and user are among them.
    pub fn render(&self, stats: &Stats, status: &ServerStatus, format: Format, usage: bool) -> String {
        let families = {
            let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
            copied.set(stats, status);
            self.registry.gather()
        };
        // The text grows little from one scrape to the next, so this rarely reallocates.
        let mut out = String::with_capacity(self.length.load(Ordering::Relaxed) + (4 << 10));
        exposition::write(&families, format, &mut out);
        if usage {
            self.keys.write(format, &mut out);
        }
        exposition::write_end(format, &mut out);
        self.length.store(out.len(), Ordering::Relaxed);
        out
    }
}

/// Every value of the label `decision` of `octant_admissions_total`.
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

/// The value of the label `decision` for a refusal.
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

impl CopiedMetrics {
    fn new(make: &MetricFactory<'_>, max_drafts: usize) -> Self {
        let (cpu, _) = MetricFactory::options("process_cpu_seconds_total");
        let by_place = make.counters("vllm:spec_decode_num_accepted_tokens_per_pos_total");
        let accepted_at = (0..max_drafts.max(1)).map(|at| by_place.with_label_values(&[&at.to_string()]));
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
            draft_rows: make.counter("vllm:spec_decode_num_drafts_total"),
            drafts: make.counter("vllm:spec_decode_num_draft_tokens_total"),
            accepted: make.counter("vllm:spec_decode_num_accepted_tokens_total"),
            accepted_at: accepted_at.collect(),
            steps: make.counter("octant_steps_total"),
            batch_requests: make.gauges("octant_batch_requests"),
            batch_lines: make.counters("octant_batch_lines_total"),
            startup: make.gauges("octant_startup_seconds"),
            dropped_log_lines: make.counter("octant_log_lines_dropped_total"),
            memory: make.gauge("process_resident_memory_bytes"),
            cpu: make.register(Counter::with_opts(cpu)),
        }
    }

    /// Copies the current values. Callers hold the lock around `self`, so no total is added twice.
    fn set(&self, stats: &Stats, status: &ServerStatus) {
        self.set_counts(&stats.counts);
        self.lora.set(unix_time() as f64);
        for (phase, took) in status.startup() {
            self.startup.with_label_values(&[phase]).set(took.as_secs_f64());
        }
        let (memory, cpu) = process();
        self.memory.set(memory);
        self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
    }

    fn set_counts(&self, counts: &Counts) {
        // All fields are named, so that a new one cannot be forgotten here.
        let &Counts {
            running,
            waiting,
            // No metric shows these two.
            waiting_tokens: _,
            batch_blocks: _,
            batch_running,
            batch_waiting,
            blocks_free,
            blocks_used,
            blocks_cached,
            blocks_total,
            blocks_reserved,
            steps,
            preemptions,
            prefix_queries,
            prefix_hits,
            prompt_tokens,
            generated_tokens,
            ref speculation,
        } = counts;
        self.running.set(running as f64);
        self.waiting.set(waiting as f64);
        self.waiting_by_reason.with_label_values(&["capacity"]).set(waiting as f64);
        self.waiting_by_reason.with_label_values(&["deferred"]).set(0.0);
        for (state, count) in [("running", batch_running), ("waiting", batch_waiting)] {
            self.batch_requests.with_label_values(&[state]).set(count as f64);
        }
        self.kv_usage.set(blocks_used as f64 / blocks_total.max(1) as f64);
        // Reserved blocks are taken out of the free blocks first and out of the cached blocks when no free
        // ones are left, in the order in which the scheduler hands them out.
        let free = blocks_free.saturating_sub(blocks_reserved);
        let rest = blocks_reserved.saturating_sub(blocks_free);
        let cached = blocks_cached.saturating_sub(rest);
        let reserved = (blocks_free - free) + (blocks_cached - cached);
        let states = [("free", free), ("used", blocks_used), ("cached", cached), ("reserved", reserved)];
        for (state, count) in states {
            self.blocks.with_label_values(&[state]).set(count as f64);
        }
        let totals = [
            (&self.prompt_tokens, prompt_tokens),
            (&self.generation_tokens, generated_tokens),
            (&self.preemptions, preemptions),
            (&self.prefix_queries, prefix_queries),
            (&self.prefix_hits, prefix_hits),
            (&self.cached, prefix_hits),
            (&self.draft_rows, speculation.rows),
            (&self.drafts, speculation.drafts),
            (&self.accepted, speculation.all_accepted()),
            (&self.steps, steps),
        ];
        let by_place = self.accepted_at.iter().zip(speculation.accepted);
        for (counter, total) in totals.into_iter().chain(by_place) {
            // A scrape with an older snapshot may arrive here after one with a newer snapshot.
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}

/// Resident memory of this process in bytes, and its CPU time in seconds, from `/proc`. 0 if `/proc` lacks
/// them.
fn process() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = resident.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The process name may contain anything and ends with the last parenthesis. User and system time are the
    // 12th and 13th fields after it.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
    (kib * 1024.0, ticks / TICKS_PER_SECOND)
}
