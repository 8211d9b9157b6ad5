//! Prometheus metrics in vLLM's names, so that its dashboards, autoscalers and gateways read them as they are.
//!
//! Gauges and the scheduler's totals are read from the engine's last snapshot when scraped; a scrape waits for no
//! step. What only the front end sees is counted as it happens. Latencies and lengths are counted per choice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder,
};

use crate::engine::{BLOCK_TOKENS, SchedulerConfig, Stats};
use crate::generation::{Delta, Generation};

const TTFT: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's, and finer below 10 ms, where all of a fast device's steps lie.
const INTER_TOKEN: [f64; 25] = [
    0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// All metrics of one server, in a registry of its own.
pub struct Metrics {
    registry: Registry,
    from_engine: Mutex<FromEngine>,
    requests: Arc<RequestMetrics>,
    http: IntCounterVec,
}

/// What is copied from a snapshot.
struct FromEngine {
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    blocks: GaugeVec,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    preemptions: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    steps: IntCounter,
}

/// What is counted per choice.
struct RequestMetrics {
    finished: IntCounterVec,
    ttft: Histogram,
    inter_token: Histogram,
    e2e: Histogram,
    prompt: Histogram,
    generation: Histogram,
}

/// Makes metrics and registers them.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<M: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("the name is valid");
        self.0.register(Box::new(metric.clone())).expect("each name is registered once");
        metric
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.keep(Gauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}

impl Metrics {
    /// `model` is the value of the label `model_name` on all of them.
    pub fn new(model: &str, config: &SchedulerConfig) -> Self {
        let labels = [("model_name", model), ("engine", "0")];
        let labels: HashMap<String, String> =
            labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let registry = Registry::new_custom(None, Some(labels)).expect("the labels are valid");
        let make = Maker(&registry);
        let from_engine = Mutex::new(FromEngine::new(&make));
        let requests = Arc::new(RequestMetrics::new(&make, config.max_model_len));
        let http = make.counters(
            "http_requests_total",
            "HTTP responses begun, by route, method and class of status",
            &["handler", "method", "status"],
        );
        let info = make.keep(GaugeVec::new(
            Opts::new(
                "vllm:cache_config_info",
                "The KV cache's configuration, as labels; the value is always 1",
            ),
            &["block_size", "num_gpu_blocks", "enable_prefix_caching"],
        ));
        let caching = if config.prefix_caching { "True" } else { "False" };
        info.with_label_values(&[&BLOCK_TOKENS.to_string(), &config.num_blocks.to_string(), caching])
            .set(1.0);
        Self { registry, from_engine, requests, http }
    }

    /// Begins to measure an admitted request.
    pub fn track(&self, arrived: Instant, generation: &Generation) -> Tracker {
        let open = |prompt| Open { last_token: None, tokens: 0, prompt };
        let choices = generation.prompt_lengths().map(|prompt| Some(open(prompt))).collect();
        Tracker { metrics: Arc::clone(&self.requests), arrived, choices }
    }

    /// Counts a response.
    pub fn http(&self, handler: &str, method: &str, status: u16) {
        let class = format!("{}xx", status / 100);
        self.http.with_label_values(&[handler, method, &class]).inc();
    }

    /// The text of a scrape.
    pub fn render(&self, stats: &Stats) -> String {
        self.from_engine.lock().unwrap_or_else(PoisonError::into_inner).set(stats);
        let mut text = Vec::new();
        let written = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        debug_assert!(written.is_ok(), "writing to memory does not fail");
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl FromEngine {
    fn new(make: &Maker<'_>) -> Self {
        Self {
            running: make.gauge("vllm:num_requests_running", "Sequences that run"),
            waiting: make.gauge("vllm:num_requests_waiting", "Sequences that wait"),
            kv_usage: make
                .gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks that sequences hold, 0 to 1"),
            blocks: make.keep(GaugeVec::new(
                Opts::new("octant_kv_blocks", "KV blocks by state; the sum is constant"),
                &["state"],
            )),
            prompt_tokens: make.counter("vllm:prompt_tokens_total", "Prompt tokens of requests answered"),
            generation_tokens: make.counter("vllm:generation_tokens_total", "Tokens generated"),
            preemptions: make
                .counter("vllm:num_preemptions_total", "Sequences that had to give up their blocks"),
            prefix_queries: make
                .counter("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache"),
            prefix_hits: make.counter("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache"),
            steps: make.counter("octant_steps_total", "Steps planned"),
        }
    }

    /// Callers take turns, so a total is never added twice.
    fn set(&self, stats: &Stats) {
        let counts = &stats.counts;
        self.running.set(counts.running as f64);
        self.waiting.set(counts.waiting as f64);
        self.kv_usage.set(counts.blocks_used as f64 / counts.blocks_total.max(1) as f64);
        let blocks =
            [("free", counts.blocks_free), ("used", counts.blocks_used), ("cached", counts.blocks_cached)];
        for (state, count) in blocks {
            self.blocks.with_label_values(&[state]).set(count as f64);
        }
        let totals = [
            (&self.prompt_tokens, counts.prompt_tokens),
            (&self.generation_tokens, counts.generated_tokens),
            (&self.preemptions, counts.preemptions),
            (&self.prefix_queries, counts.prefix_queries),
            (&self.prefix_hits, counts.prefix_hits),
            (&self.steps, counts.steps),
        ];
        for (counter, total) in totals {
            // Two scrapes may take their snapshots in one order and get here in the other.
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}

impl RequestMetrics {
    fn new(make: &Maker<'_>, max_model_len: usize) -> Self {
        let tokens = token_buckets(max_model_len);
        let finished = make.counters(
            "vllm:request_success_total",
            "Choices that ended, by reason; aborted and failed ones among them",
            &["finished_reason"],
        );
        for reason in ["stop", "length", "abort", "error"] {
            finished.with_label_values(&[reason]);
        }
        Self {
            finished,
            ttft: make.histogram(
                "vllm:time_to_first_token_seconds",
                "From the validated request to the first token",
                &TTFT,
            ),
            inter_token: make.histogram(
                "vllm:inter_token_latency_seconds",
                "Between two tokens of a choice",
                &INTER_TOKEN,
            ),
            e2e: make.histogram(
                "vllm:e2e_request_latency_seconds",
                "From the validated request to the end",
                &REQUEST,
            ),
            prompt: make.histogram("vllm:request_prompt_tokens", "Prompt tokens of a choice", &tokens),
            generation: make.histogram(
                "vllm:request_generation_tokens",
                "Tokens generated for a choice",
                &tokens,
            ),
        }
    }
}

/// 1, 2, 5 per decade.
fn token_buckets(most: usize) -> Vec<f64> {
    let decades = (0..12).map(|power| 10_usize.pow(power));
    let all = decades.flat_map(|decade| [decade, 2 * decade, 5 * decade]);
    all.take_while(|&bucket| bucket <= most.max(1)).map(|bucket| bucket as f64).collect()
}

/// Measures one request; what has not finished when it is dropped was aborted.
pub struct Tracker {
    metrics: Arc<RequestMetrics>,
    arrived: Instant,
    /// `None` once finished.
    choices: Vec<Option<Open>>,
}

struct Open {
    last_token: Option<Instant>,
    tokens: u32,
    prompt: usize,
}

impl Tracker {
    /// Counts what a delta brought.
    pub fn delta(&mut self, delta: &Delta) {
        let Some(open) = &mut self.choices[delta.index] else { return };
        let now = Instant::now();
        if delta.tokens > 0 {
            match open.last_token.replace(now) {
                None => self.metrics.ttft.observe((now - self.arrived).as_secs_f64()),
                Some(last) => self.metrics.inter_token.observe((now - last).as_secs_f64()),
            }
            open.tokens += delta.tokens;
        }
        if let Some(finish) = delta.finish {
            self.finish(delta.index, finish.as_str());
        }
    }

    /// Counts all that is still open as failed.
    pub fn failed(&mut self) {
        self.finish_all("error");
    }

    fn finish_all(&mut self, reason: &str) {
        for index in 0..self.choices.len() {
            self.finish(index, reason);
        }
    }

    fn finish(&mut self, index: usize, reason: &str) {
        let Some(open) = self.choices[index].take() else { return };
        self.metrics.finished.with_label_values(&[reason]).inc();
        self.metrics.e2e.observe(self.arrived.elapsed().as_secs_f64());
        self.metrics.prompt.observe(open.prompt as f64);
        self.metrics.generation.observe(f64::from(open.tokens));
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.finish_all("abort");
    }
}
