//! Metrics: names that dashboards read, the two text formats, the cost of requests, and the time of a scrape.

use std::time::Duration;

use octant::request::Cost;
use octant::server::metrics::exposition::Format;
use octant::server::metrics::names::{ALIASES, MetricKind, NAMES};
use octant::server::routes::routes;
use serde_json::{Value, json};

use super::client::{Connection, Reply, send};
use super::test_server::{Setup, TestServer, metric};
use crate::fake::FakeExecutor;
use crate::http::test_server::BOS;

/// Metrics that llm-d's simulator of vLLM documents (docs/metrics.md, August 2026), with the labels that
/// their readers use. A replacement for vLLM must have all of them.
const CONFORMANCE: [(&str, MetricKind, &[&str]); 23] = [
    ("vllm:cache_config_info", MetricKind::Gauge, &["block_size", "num_gpu_blocks"]),
    ("vllm:e2e_request_latency_seconds", MetricKind::Histogram, &[]),
    ("vllm:generation_tokens_total", MetricKind::Counter, &[]),
    ("vllm:inter_token_latency_seconds", MetricKind::Histogram, &[]),
    ("vllm:kv_cache_usage_perc", MetricKind::Gauge, &[]),
    (
        "vllm:lora_requests_info",
        MetricKind::Gauge,
        &["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    ),
    ("vllm:max_num_generation_tokens", MetricKind::Histogram, &[]),
    ("vllm:num_requests_running", MetricKind::Gauge, &[]),
    ("vllm:num_requests_waiting", MetricKind::Gauge, &[]),
    ("vllm:prefix_cache_hits_total", MetricKind::Counter, &[]),
    ("vllm:prefix_cache_queries_total", MetricKind::Counter, &[]),
    ("vllm:prompt_tokens_total", MetricKind::Counter, &[]),
    ("vllm:request_decode_time_seconds", MetricKind::Histogram, &[]),
    ("vllm:request_generation_tokens", MetricKind::Histogram, &[]),
    ("vllm:request_inference_time_seconds", MetricKind::Histogram, &[]),
    ("vllm:request_params_max_tokens", MetricKind::Histogram, &[]),
    ("vllm:request_prefill_time_seconds", MetricKind::Histogram, &[]),
    ("vllm:request_prompt_tokens", MetricKind::Histogram, &[]),
    ("vllm:request_queue_time_seconds", MetricKind::Histogram, &[]),
    ("vllm:request_success_total", MetricKind::Counter, &["finished_reason"]),
    ("vllm:request_time_per_output_token_seconds", MetricKind::Histogram, &[]),
    ("vllm:time_per_output_token_seconds", MetricKind::Histogram, &[]),
    ("vllm:time_to_first_token_seconds", MetricKind::Histogram, &[]),
];

/// Old names that dashboards still use.
const OLD: [&str; 7] = [
    "vllm:gpu_cache_usage_perc",
    "vllm:cpu_cache_usage_perc",
    "vllm:num_requests_swapped",
    "vllm:time_per_output_token_seconds",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:max_num_generation_tokens",
];

/// Asserts that the metric is exposed once, with this kind, and that all of its samples have these labels.
fn assert_exposed(text: &str, name: &str, kind: MetricKind, labels: &[&str]) {
    let word = match kind {
        MetricKind::Gauge => "gauge",
        MetricKind::Counter => "counter",
        MetricKind::Histogram => "histogram",
    };
    let types = text.lines().filter(|line| *line == format!("# TYPE {name} {word}")).count();
    assert_eq!(types, 1, "{name} is a {word}, once");
    let suffix = if kind == MetricKind::Histogram { "_count" } else { "" };
    let begin = format!("{name}{suffix}{{");
    let samples: Vec<&str> = text.lines().filter(|line| line.starts_with(&begin)).collect();
    assert!(!samples.is_empty(), "{name} has a sample");
    for sample in samples {
        for label in labels.iter().chain(&["model_name", "engine"]) {
            assert!(sample.contains(&format!("{label}=\"")), "{sample} has {label}");
        }
    }
}

#[tokio::test]
async fn every_name_is_exposed_with_its_kind_and_labels() {
    let server = Setup::new().launch();
    server.chat("abc", json!({ "max_tokens": 2 })).await;
    let reply = server.get("/metrics").await;
    let text = reply.text();
    for name in NAMES {
        assert_exposed(text, name.name, name.kind, name.labels);
        assert!(!name.help.is_empty() && text.contains(&format!("# HELP {} {}\n", name.name, name.help)));
    }
    for (name, kind, labels) in CONFORMANCE {
        assert_exposed(text, name, kind, labels);
    }
    for name in OLD {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
    }
    let exposed = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(exposed, NAMES.len() + ALIASES.len(), "a metric is not in the table");
    let value = |name: &str| metric(text, name, &[]);
    for (old, new) in ALIASES.map(|(old, new)| {
        let count = |name: &str| if text.contains(&format!("{name}_count{{")) { "_count" } else { "" };
        (format!("{old}{}", count(old)), format!("{new}{}", count(new)))
    }) {
        assert_eq!(value(&old), value(&new), "{old}");
    }
}

/// Buckets are vLLM's, and finer below 10 ms.
#[tokio::test]
async fn buckets_are_those_of_vllm() {
    let server = Setup::new().launch();
    let reply = server.get("/metrics").await;
    let bounds = |name: &str| -> Vec<f64> {
        let begin = format!("{name}_bucket{{");
        let bound = |line: &str| line.split("le=\"").nth(1)?.split('"').next()?.parse().ok();
        let all = reply.text().lines().filter(|line| line.starts_with(&begin)).filter_map(bound);
        all.filter(|bound: &f64| bound.is_finite()).collect()
    };
    let request = [
        0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
        480.0, 960.0, 1920.0, 7680.0,
    ];
    assert_eq!(bounds("vllm:request_queue_time_seconds"), request);
    assert_eq!(bounds("vllm:e2e_request_latency_seconds"), request);
    let token = [
        0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
        0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    ];
    assert_eq!(bounds("vllm:inter_token_latency_seconds"), token);
    assert_eq!(bounds("vllm:time_per_output_token_seconds"), token);
    assert_eq!(bounds("vllm:request_time_per_output_token_seconds"), token);
    let first = [
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
        40.0, 80.0, 160.0, 640.0, 2560.0,
    ];
    assert_eq!(bounds("vllm:time_to_first_token_seconds"), first);
    let tokens = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
    assert_eq!(bounds("vllm:request_prompt_tokens"), tokens);
    assert_eq!(bounds("vllm:request_generation_tokens"), tokens);
    assert_eq!(bounds("vllm:request_params_max_tokens"), tokens);
    assert_eq!(bounds("vllm:request_params_n"), [1.0, 2.0, 5.0, 10.0, 20.0]);
    let iteration =
        [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
    assert_eq!(bounds("vllm:iteration_tokens_total"), iteration);
}

#[test]
fn open_metrics_is_sent_only_on_request() {
    for (accept, open) in [
        ("", false),
        ("*/*", false),
        ("text/plain", false),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", false),
        ("application/openmetrics-text", true),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", true),
        ("application/openmetrics-text;q=0", false),
        ("application/openmetrics-text;q=0.1, */*", false),
        ("application/openmetrics-text;Q=0.1,text/plain", false),
        ("application/openmetrics-text;q=0.1,text/*", false),
        ("application/openmetrics-text ; q = 0.1 , text/plain", false),
        ("APPLICATION/OpenMetrics-Text;version=1.0.0;Q=0.6,text/plain;q=0.5", true),
        ("application/openmetrics-text,*/*", true),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.2,*/*", true),
        ("application/openmetrics-text;q=0.5,text/plain;q=0,*/*", true),
        ("application/openmetrics-text;q=0.5,text/*;q=0.8,*/*;q=0.1", false),
        ("application/openmetrics-text;q=much,text/plain;q=0", false),
        ("application/*", false),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.5", false),
        // Prometheus as of 2023.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            true,
        ),
    ] {
        let expected = if open { Format::OpenMetrics } else { Format::Text };
        assert_eq!(Format::from_accept(accept), expected, "{accept:?}");
    }
}

async fn scrape(server: &TestServer, accept: &str) -> Reply {
    send(server.address, "GET", "/metrics", &[("accept", accept)], b"").await
}

#[tokio::test]
async fn the_two_formats_have_the_same_samples() {
    let server = Setup::new().launch();
    server.chat("abc", json!({ "max_tokens": 3, "user": "quo\"te\\" })).await;
    server.until_empty().await;
    let plain = scrape(&server, "text/plain").await;
    let open = scrape(&server, "application/openmetrics-text").await;
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(kind));
    assert!(open.text().ends_with("\n# EOF\n") && !plain.text().contains("# EOF"));
    assert!(open.text().contains("# TYPE vllm:prompt_tokens counter\n"));
    assert!(open.text().contains("\nvllm:prompt_tokens_total{"));
    assert!(open.text().contains("le=\"1.0\"") && !open.text().contains("le=\"1\""));
    assert!(plain.text().contains("key=\"quo\\\"te\\\\\""));
    // Scrapes change the HTTP and process metrics themselves.
    let moving = |line: &&str| !line.contains("http_request") && !line.contains("process_");
    let sample = |line: &str| line.replace(".0\"}", "\"}");
    let samples = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).filter(moving).map(sample).collect()
    };
    let lora =
        |lines: Vec<String>| lines.into_iter().filter(|line| !line.contains("lora")).collect::<Vec<_>>();
    assert_eq!(lora(samples(plain.text())), lora(samples(open.text())));
}

/// Sums the costs of all choices, with and without streaming.
#[tokio::test]
async fn answers_have_costs_on_request_and_the_costs_add_up_to_the_device_totals() {
    let mut setup = Setup::new();
    setup.settings.api_key = None;
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(1));
    let server = setup.launch_with(executor);
    let fields = json!({ "max_tokens": 20, "ignore_eos": true, "n": 3, "return_cost": true, "user": "ann" });
    let whole = server.chat(&"x".repeat(150), fields).await.json();
    let fields = json!({ "max_tokens": 20, "ignore_eos": true, "stream": true, "return_cost": true });
    let stream = server.complete("y".repeat(70), fields).await;
    let last = stream.text().lines().rfind(|line| line.contains("octant")).expect("a chunk with the cost");
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").expect("an event")).expect("JSON");
    assert_eq!(last["choices"], json!([]));
    let silent = server.chat("abc", json!({ "max_tokens": 2 })).await.json();
    assert!(silent.get("octant").is_none(), "the cost was not requested");
    server.until_empty().await;
    let text = server.get("/metrics").await;
    let cost = |answer: &Value, name: &str| answer["octant"][name].as_f64().expect("a number");
    let device = metric(text.text(), "octant_prefill_seconds_total", &[])
        + metric(text.text(), "octant_decode_seconds_total", &[]);
    let keyed = |key: &str| {
        let label = format!("key=\"{key}\"");
        metric(text.text(), "octant_key_prefill_seconds_total", &[&label])
            + metric(text.text(), "octant_key_decode_seconds_total", &[&label])
    };
    let (ann, others) = (keyed("ann"), keyed("none"));
    assert!(((ann + others) / device - 1.0).abs() < 0.01, "{ann} + {others} of {device}");
    let reported = cost(&whole, "prefill_seconds") + cost(&whole, "decode_seconds");
    assert!((reported / ann - 1.0).abs() < 0.01, "three choices: {reported} of {ann}");
    let blocks = metric(text.text(), "octant_kv_block_seconds_total", &[]);
    let reported = cost(&whole, "kv_block_seconds") + cost(&last, "kv_block_seconds");
    // The third request did not ask for its cost.
    assert!(reported <= blocks * 1.01 && reported > 0.9 * blocks, "{reported} of {blocks}");
    let held: f64 = ["ann", "none"]
        .map(|key| metric(text.text(), "octant_key_kv_block_seconds_total", &[&format!("key=\"{key}\"")]))
        .into_iter()
        .sum();
    assert!((held / blocks - 1.0).abs() < 0.01, "keys are charged for {held} of {blocks}");
    assert_eq!(cost(&whole, "cached_tokens"), 256.0, "two choices reuse the blocks of the first");
    assert_eq!(cost(&whole, "computed_tokens") + cost(&whole, "cached_tokens"), 3.0 * (151.0 + 19.0));
    let tokens = |kind: &str| {
        metric(text.text(), "octant_key_tokens_total", &["key=\"ann\"", &format!("kind=\"{kind}\"")])
    };
    assert_eq!((tokens("prompt"), tokens("generated"), tokens("cached")), (453.0, 60.0, 256.0));
    let wrong = server.chat("abc", json!({ "return_cost": "yes" })).await;
    assert_eq!(wrong.error().2, Some("return_cost".into()));
}

/// Series must exist at 0: Prometheus' `rate` does not see the first increment of a series that begins with
/// it.
#[tokio::test]
async fn series_of_decisions_errors_and_finish_reasons_exist_from_the_start() {
    let server = Setup::new().launch();
    let reply = server.get("/metrics").await;
    let zero = |name: &str, label: &str, value: &str| {
        let label = format!("{label}=\"{value}\"");
        assert_eq!(metric(reply.text(), name, &[&label]), 0.0, "{value}");
    };
    for decision in [
        "admitted",
        "queue_full",
        "busy",
        "deadline_unmet",
        "draining",
        "engine_down",
        "too_long",
        "invalid",
        "internal",
    ] {
        zero("octant_admissions_total", "decision", decision);
    }
    for reason in ["stop", "length", "abort", "deadline", "error"] {
        zero("vllm:request_success_total", "finished_reason", reason);
    }
    for code in ["internal", "engine_unavailable", "draining", "deadline_exceeded", "queue_full"] {
        zero("octant_http_errors_total", "code", code);
    }
    zero("octant_key_requests_total", "key", "none");
}

#[tokio::test]
async fn refusals_are_counted_by_decision() {
    let server = Setup::new().launch();
    server.chat("abc", json!({ "max_tokens": 1 })).await;
    server.chat(&"x".repeat(600), json!({})).await;
    let reply = server.get("/metrics").await;
    let count = |decision: &str| {
        metric(reply.text(), "octant_admissions_total", &[&format!("decision=\"{decision}\"")])
    };
    assert_eq!((count("admitted"), count("too_long"), count("queue_full")), (1.0, 1.0, 0.0));
}

/// Each block is in one state: reserved blocks are subtracted from the free blocks first, then from the
/// cached ones.
#[tokio::test]
async fn reserved_blocks_are_neither_free_nor_cached() {
    let mut setup = Setup::new();
    setup.config.num_blocks = 8;
    setup.config.policy.kv_reserve = 1.0;
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(4));
    let server = setup.launch_with(executor);
    assert_eq!(server.complete("a".repeat(290), json!({ "max_tokens": 5 })).await.status, 200);
    server.until_empty().await;
    assert_eq!(server.engine.stats().counts.blocks_cached, 4);
    let body = json!({ "prompt": "b".repeat(10), "max_tokens": 400, "ignore_eos": true }).to_string();
    let mut running = Connection::open(server.address).await;
    running.request("POST", "/v1/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.counts.running == 1).await;
    let mut last = 0.0;
    // The sequence needs 7 of the 8 blocks, used and reserved together, so 3 of the 4 cached blocks are
    // reserved.
    while last <= 1.0 {
        let reply = server.get("/metrics").await;
        let state = |state: &str| metric(reply.text(), "octant_kv_blocks", &[&format!("state=\"{state}\"")]);
        let (free, used, cached, reserved) =
            (state("free"), state("used"), state("cached"), state("reserved"));
        assert_eq!((free, cached, used + reserved), (0.0, 1.0, 7.0), "{used} used, {reserved} reserved");
        assert!(used >= last && reserved > 0.0);
        last = used;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(running);
    server.until_empty().await;
    let reply = server.get("/metrics").await;
    assert_eq!(metric(reply.text(), "octant_kv_blocks", &["state=\"reserved\""]), 0.0);
}

/// Scrapes repeatedly, as a gateway does, while requests start and end. The values of a scrape must fit
/// together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_under_load_shows_one_snapshot() {
    let server = Setup::new().launch();
    let address = server.address;
    let clients: Vec<_> = (0..4)
        .map(|i| {
            let body = json!({ "prompt": "z".repeat(80 + i), "max_tokens": 60, "ignore_eos": true, "n": 3 });
            tokio::spawn(async move {
                for _ in 0..5 {
                    super::client::post(address, "/v1/completions", &body).await;
                }
            })
        })
        .collect();
    let mut before = 0.0;
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        let reply = server.get("/metrics").await;
        let state = |state: &str| metric(reply.text(), "octant_kv_blocks", &[&format!("state=\"{state}\"")]);
        let used = state("used");
        assert_eq!(state("free") + used + state("cached") + state("reserved"), 64.0);
        assert!((metric(reply.text(), "vllm:kv_cache_usage_perc", &[]) - used / 64.0).abs() < 1e-9);
        let tokens = metric(reply.text(), "vllm:generation_tokens_total", &[]);
        assert!(tokens >= before, "totals only grow");
        before = tokens;
    }
    server.until_empty().await;
    let reply = server.get("/metrics").await;
    assert_eq!(metric(reply.text(), "vllm:generation_tokens_total", &[]), 4.0 * 5.0 * 3.0 * 60.0);
}

/// The server has more users than may have their own counters. `benches/scrape.rs` measures the time of
/// such a scrape.
#[tokio::test]
async fn a_scrape_contains_every_key_and_every_handler() {
    let server = Setup::new().launch();
    let metrics = octant::server::metrics::Metrics::new("parrot", &server.engine);
    let cost = Cost { queue: 0.123, prefill: 4.0 / 3.0, decode: 2.0 / 3.0, ..Cost::default() };
    for user in 0..300 {
        let (_, counters) = metrics.key_counters(&format!("a user of some name {user}"));
        counters.charge(&Cost { kv_block_seconds: f64::from(user) / 7.0, ..cost }, 1000, 300);
    }
    for (path, _) in routes() {
        for (method, status) in [("GET", 200), ("GET", 503), ("POST", 200), ("POST", 404)] {
            metrics.http(path, method, status, Duration::from_millis(3));
        }
    }
    let text = metrics.render(&server.engine.stats(), &server.status, Format::Text, true);
    assert!(text.lines().count() > 257 * 10 + routes().len() * 2 * 14);
}
