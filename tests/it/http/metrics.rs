//! What is measured: the names that others count on, the two formats, the cost of requests, and a scrape that costs
//! nothing.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octant::request::Tenant;
use octant::server::door::Caller;
use octant::server::metrics::exposition::Format;
use octant::server::metrics::names::{ALIASES, Kind, NAMES};
use octant::server::{DrainTimes, Ended};
use serde_json::{Value, json};

use super::client::{Connection, Reply, send};
use super::house::{House, Plan, chat_body, merged, metric};
use crate::fake::FakeExecutor;
use crate::http::house::BOS;

/// What llm-d's simulator of vLLM documents (docs/metrics.md, August 2026): the least that a drop-in must have, with the labels that its readers use.
const CONFORMANCE: [(&str, Kind, &[&str]); 23] = [
    ("vllm:cache_config_info", Kind::Gauge, &["block_size", "num_gpu_blocks"]),
    ("vllm:e2e_request_latency_seconds", Kind::Histogram, &[]),
    ("vllm:generation_tokens_total", Kind::Counter, &[]),
    ("vllm:inter_token_latency_seconds", Kind::Histogram, &[]),
    ("vllm:kv_cache_usage_perc", Kind::Gauge, &[]),
    ("vllm:lora_requests_info", Kind::Gauge, &["max_lora", "running_lora_adapters", "waiting_lora_adapters"]),
    ("vllm:max_num_generation_tokens", Kind::Histogram, &[]),
    ("vllm:num_requests_running", Kind::Gauge, &[]),
    ("vllm:num_requests_waiting", Kind::Gauge, &[]),
    ("vllm:prefix_cache_hits_total", Kind::Counter, &[]),
    ("vllm:prefix_cache_queries_total", Kind::Counter, &[]),
    ("vllm:prompt_tokens_total", Kind::Counter, &[]),
    ("vllm:request_decode_time_seconds", Kind::Histogram, &[]),
    ("vllm:request_generation_tokens", Kind::Histogram, &[]),
    ("vllm:request_inference_time_seconds", Kind::Histogram, &[]),
    ("vllm:request_params_max_tokens", Kind::Histogram, &[]),
    ("vllm:request_prefill_time_seconds", Kind::Histogram, &[]),
    ("vllm:request_prompt_tokens", Kind::Histogram, &[]),
    ("vllm:request_queue_time_seconds", Kind::Histogram, &[]),
    ("vllm:request_success_total", Kind::Counter, &["finished_reason"]),
    ("vllm:request_time_per_output_token_seconds", Kind::Histogram, &[]),
    ("vllm:time_per_output_token_seconds", Kind::Histogram, &[]),
    ("vllm:time_to_first_token_seconds", Kind::Histogram, &[]),
];

/// Old names that dashboards still have.
const OLD: [&str; 7] = [
    "vllm:gpu_cache_usage_perc",
    "vllm:cpu_cache_usage_perc",
    "vllm:num_requests_swapped",
    "vllm:time_per_output_token_seconds",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:max_num_generation_tokens",
];

/// That it is exposed as such, and all of its samples have these labels.
fn assert_exposed(text: &str, name: &str, kind: Kind, labels: &[&str]) {
    let word = match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::Histogram => "histogram",
    };
    let types = text.lines().filter(|line| *line == format!("# TYPE {name} {word}")).count();
    assert_eq!(types, 1, "{name} is a {word}, once");
    let suffix = if kind == Kind::Histogram { "_count" } else { "" };
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
    let house = Plan::new().open();
    house.chat("abc", json!({ "max_tokens": 2 })).await;
    let reply = house.get("/metrics").await;
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
    assert_eq!(exposed, NAMES.len() + ALIASES.len(), "nothing that the table does not have");
    let value = |name: &str| metric(text, name, &[]);
    for (old, new) in ALIASES.map(|(old, new)| {
        let count = |name: &str| if text.contains(&format!("{name}_count{{")) { "_count" } else { "" };
        (format!("{old}{}", count(old)), format!("{new}{}", count(new)))
    }) {
        assert_eq!(value(&old), value(&new), "{old}");
    }
}

/// vLLM's buckets, and those below 10 ms.
#[tokio::test]
async fn buckets_are_those_that_dashboards_compute_with() {
    let house = Plan::new().open();
    let reply = house.get("/metrics").await;
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
    let fine = [0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1];
    assert_eq!(bounds("vllm:inter_token_latency_seconds")[..11], fine);
    assert_eq!(bounds("vllm:time_per_output_token_seconds").len(), 25);
    assert_eq!(bounds("vllm:time_to_first_token_seconds").len(), 22);
    assert_eq!(bounds("vllm:request_prompt_tokens"), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
    assert_eq!(bounds("vllm:request_params_n"), [1.0, 2.0, 5.0, 10.0, 20.0]);
    let iteration = bounds("vllm:iteration_tokens_total");
    assert_eq!((iteration[..3].to_vec(), iteration[12]), (vec![1.0, 8.0, 16.0], 16384.0));
}

#[test]
fn open_metrics_is_for_those_who_ask() {
    for (accept, open) in [
        ("", false),
        ("*/*", false),
        ("text/plain", false),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", false),
        ("application/openmetrics-text", true),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", true),
        ("application/openmetrics-text;q=0", false),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.5", false),
        // A Prometheus of 2023.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            true,
        ),
    ] {
        let expected = if open { Format::OpenMetrics } else { Format::Text };
        assert_eq!(Format::asked(accept), expected, "{accept:?}");
    }
}

async fn scrape(house: &House, accept: &str) -> Reply {
    send(house.address, "GET", "/metrics", &[("accept", accept)], b"").await
}

#[tokio::test]
async fn the_two_formats_have_the_same_samples() {
    let house = Plan::new().open();
    house.chat("abc", json!({ "max_tokens": 3, "user": "quo\"te\\" })).await;
    house.until_empty().await;
    let plain = scrape(&house, "text/plain").await;
    let open = scrape(&house, "application/openmetrics-text").await;
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(kind));
    assert!(open.text().ends_with("\n# EOF\n") && !plain.text().contains("# EOF"));
    assert!(open.text().contains("# TYPE vllm:prompt_tokens counter\n"));
    assert!(open.text().contains("\nvllm:prompt_tokens_total{"));
    assert!(open.text().contains("le=\"1.0\"") && !open.text().contains("le=\"1\""));
    assert!(plain.text().contains("key=\"quo\\\"te\\\\\""));
    // But for what the scrapes themselves change.
    let moving = |line: &&str| !line.contains("http_request") && !line.contains("process_");
    let sample = |line: &str| line.replace(".0\"}", "\"}");
    let samples = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).filter(moving).map(sample).collect()
    };
    let lora =
        |lines: Vec<String>| lines.into_iter().filter(|line| !line.contains("lora")).collect::<Vec<_>>();
    assert_eq!(lora(samples(plain.text())), lora(samples(open.text())));
}

/// The sum over choices, over both ways of answering.
#[tokio::test]
async fn costs_are_answered_where_asked_for_and_add_up_to_the_devices() {
    let mut plan = Plan::new();
    plan.settings.api_key = None;
    let executor = FakeExecutor::new(&plan.config).parrot(BOS).delay(Duration::from_millis(1));
    let house = plan.over(executor);
    let fields = json!({ "max_tokens": 20, "ignore_eos": true, "n": 3, "return_cost": true, "user": "ann" });
    let whole = house.chat(&"x".repeat(150), fields).await.json();
    let fields = json!({ "max_tokens": 20, "ignore_eos": true, "stream": true, "return_cost": true });
    let stream = house.complete("y".repeat(70), fields).await;
    let last = stream.text().lines().rfind(|line| line.contains("octant")).expect("a chunk with the cost");
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").expect("an event")).expect("JSON");
    assert_eq!(last["choices"], json!([]));
    let silent = house.chat("abc", json!({ "max_tokens": 2 })).await.json();
    assert!(silent.get("octant").is_none(), "nobody asked");
    house.until_empty().await;
    let text = house.get("/metrics").await;
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
    let told = cost(&whole, "prefill_seconds") + cost(&whole, "decode_seconds");
    assert!((told / ann - 1.0).abs() < 0.01, "three choices: {told} of {ann}");
    let blocks = metric(text.text(), "octant_kv_block_seconds_total", &[]);
    let told = cost(&whole, "kv_block_seconds") + cost(&last, "kv_block_seconds");
    // The third request was not asked about.
    assert!(told <= blocks * 1.01 && told > 0.9 * blocks, "{told} of {blocks}");
    let held: f64 = ["ann", "none"]
        .map(|key| metric(text.text(), "octant_key_kv_block_seconds_total", &[&format!("key=\"{key}\"")]))
        .into_iter()
        .sum();
    assert!((held / blocks - 1.0).abs() < 0.01, "keys pay for {held} of {blocks}");
    assert_eq!(cost(&whole, "cached_tokens"), 256.0, "two choices find the first one's blocks");
    assert_eq!(cost(&whole, "computed_tokens") + cost(&whole, "cached_tokens"), 3.0 * (151.0 + 19.0));
    let tokens = |kind: &str| {
        metric(text.text(), "octant_key_tokens_total", &["key=\"ann\"", &format!("kind=\"{kind}\"")])
    };
    assert_eq!((tokens("prompt"), tokens("generated"), tokens("cached")), (453.0, 60.0, 256.0));
    let wrong = house.chat("abc", json!({ "return_cost": "yes" })).await;
    assert_eq!(wrong.error().2, Some("return_cost".into()));
}

#[tokio::test]
async fn keys_are_bounded_and_have_no_secret() {
    let mut plan = Plan::new();
    plan.settings.api_key = Some("secret".to_owned());
    let house = plan.open();
    let key = [("authorization", "Bearer secret"), ("content-type", "application/json")];
    for user in 0..260 {
        let body = json!({ "prompt": "a", "max_tokens": 1, "user": format!("u{user}") }).to_string();
        assert_eq!(send(house.address, "POST", "/v1/completions", &key, body.as_bytes()).await.status, 200);
    }
    let long = json!({ "prompt": "a", "max_tokens": 1 }).to_string();
    send(house.address, "POST", "/v1/completions", &key, long.as_bytes()).await;
    let reply = send(house.address, "GET", "/metrics", &key, b"").await;
    let lines = reply.text().lines().filter(|line| line.starts_with("octant_key_requests_total{"));
    assert_eq!(lines.count(), 257, "256 and all others");
    assert_eq!(metric(reply.text(), "octant_key_requests_total", &["key=\"other\""]), 5.0);
    assert!(!reply.text().contains("secret"));
}

#[tokio::test]
async fn no_user_pays_on_the_account_of_a_key() {
    let mut plan = Plan::new();
    plan.settings.api_key = Some("shared".to_owned());
    let tenant = Tenant { name: "key:alice".into(), weight: 1 };
    plan.settings.named_keys = vec![("hers".to_owned(), Caller { tenant, priority: 0 })];
    let house = plan.open();
    let ask = async |key: &str, user: Option<&str>| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        let body = json!({ "prompt": "a", "max_tokens": 1, "user": user }).to_string();
        assert_eq!(
            send(house.address, "POST", "/v1/completions", &headers, body.as_bytes()).await.status,
            200
        );
    };
    ask("hers", Some("whoever")).await;
    let sha = "a4d26868";
    for user in ["key:alice", "none", "other", "user:bob", "bob", sha] {
        ask("shared", Some(user)).await;
    }
    ask("shared", None).await;
    let headers = [("authorization", "Bearer shared")];
    let reply = send(house.address, "GET", "/metrics", &headers, b"").await;
    let paid = |key: &str| metric(reply.text(), "octant_key_requests_total", &[&format!("key=\"{key}\"")]);
    assert_eq!(paid("key:alice"), 1.0);
    for user in
        ["user:key:alice", "user:none", "user:other", "user:user:bob", "bob", &format!("user:{sha}"), sha]
    {
        assert_eq!(paid(user), 1.0, "{user}");
    }
}

#[tokio::test]
async fn refusals_are_counted_by_what_decided() {
    let house = Plan::new().open();
    house.chat("abc", json!({ "max_tokens": 1 })).await;
    house.chat(&"x".repeat(600), json!({})).await;
    let reply = house.get("/metrics").await;
    let count = |decision: &str| {
        metric(reply.text(), "octant_admissions_total", &[&format!("decision=\"{decision}\"")])
    };
    assert_eq!((count("admitted"), count("too_long"), count("queue_full")), (1.0, 1.0, 0.0));
}

/// What is kept for those that run is taken out of what is free, then out of what is cached: a block is in one state.
#[tokio::test]
async fn what_is_reserved_is_neither_free_nor_cached() {
    let mut plan = Plan::new();
    plan.config.num_blocks = 8;
    plan.config.policy.kv_reserve = 1.0;
    let executor = FakeExecutor::new(&plan.config).parrot(BOS).delay(Duration::from_millis(4));
    let house = plan.over(executor);
    assert_eq!(house.complete("a".repeat(290), json!({ "max_tokens": 5 })).await.status, 200);
    house.until_empty().await;
    assert_eq!(house.engine.stats().counts.blocks_cached, 4);
    let body = json!({ "prompt": "b".repeat(10), "max_tokens": 400, "ignore_eos": true }).to_string();
    let mut running = Connection::open(house.address).await;
    running.request("POST", "/v1/completions", &[], body.as_bytes()).await;
    house.until(|stats| stats.counts.running == 1).await;
    let mut last = 0.0;
    // It needs 7 of the 8 blocks, those in use and those to come; of the 4 cached ones 3 are kept for it.
    for _ in 0..20 {
        let reply = house.get("/metrics").await;
        let state = |state: &str| metric(reply.text(), "octant_kv_blocks", &[&format!("state=\"{state}\"")]);
        let (free, used, cached, reserved) =
            (state("free"), state("used"), state("cached"), state("reserved"));
        assert_eq!((free, cached, used + reserved), (0.0, 1.0, 7.0), "{used} used, {reserved} reserved");
        assert!(used >= last && reserved > 0.0);
        last = used;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(last > 1.0, "it has grown into what was kept for it");
    drop(running);
    house.until_empty().await;
    let reply = house.get("/metrics").await;
    assert_eq!(metric(reply.text(), "octant_kv_blocks", &["state=\"reserved\""]), 0.0);
}

/// Scraped as often as a gateway does while requests come and go: what each scrape shows is of one moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_under_load_is_of_one_moment_and_takes_less_than_a_millisecond() {
    let house = Plan::new().open();
    let address = house.address;
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
        let reply = house.get("/metrics").await;
        let state = |state: &str| metric(reply.text(), "octant_kv_blocks", &[&format!("state=\"{state}\"")]);
        let used = state("used");
        assert_eq!(state("free") + used + state("cached") + state("reserved"), 64.0);
        assert!((metric(reply.text(), "vllm:kv_cache_usage_perc", &[]) - used / 64.0).abs() < 1e-9);
        let tokens = metric(reply.text(), "vllm:generation_tokens_total", &[]);
        assert!(tokens >= before, "totals only grow");
        before = tokens;
    }
    house.until_empty().await;
    let reply = house.get("/metrics").await;
    assert_eq!(metric(reply.text(), "vllm:generation_tokens_total", &[]), 4.0 * 5.0 * 3.0 * 60.0);
    let metrics = octant::server::metrics::Metrics::new("parrot", &house.engine);
    let quickest = (0..100)
        .map(|_| {
            let began = Instant::now();
            let text = metrics.render(&house.engine.stats(), &house.board, Format::Text);
            assert!(text.len() > 10_000);
            began.elapsed()
        })
        .min();
    assert!(quickest < Some(Duration::from_millis(1)), "{quickest:?}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_has_one_line_for_each_request() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let house = Plan::new().open();
    let id = house.chat("abc", json!({ "max_tokens": 3, "n": 2, "user": "bob" })).await.json()["id"].clone();
    house.chat(&"x".repeat(600), json!({})).await;
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let about: Vec<&str> = log.lines().filter(|line| line.contains(" request ")).collect();
    assert_eq!(about.len(), 1, "{log}");
    for field in
        ["key=\"bob\"", "ended=\"length,length\"", "prompt_tokens=8", "generated_tokens=6", "queue_ms="]
    {
        assert!(about[0].contains(field), "{field} in {}", about[0]);
    }
    assert!(about[0].contains(id.as_str().unwrap()));
}

/// The number behind `name=` in a line of the log.
fn logged(line: &str, name: &str) -> f64 {
    let (_, rest) = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name} in {line}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn whatever_ends_a_request_the_log_says_what_it_has_cost() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut plan = Plan::new();
    plan.config.max_num_seqs = 1;
    plan.times = DrainTimes { grace: Duration::ZERO, timeout: Duration::from_millis(300) };
    let executor = FakeExecutor::new(&plan.config).parrot(BOS).delay(Duration::from_millis(20));
    let house = plan.over(executor);
    let long = |user: &str, more: Value| {
        chat_body("abc", merged(json!({ "ignore_eos": true, "max_tokens": 400, "user": user }), more))
    };
    let begin = async |user: &str, more: Value| {
        let mut connection = Connection::open(house.address).await;
        let body = long(user, more).to_string();
        connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
        connection
    };
    // One leaves in the middle, one in the queue; one's time passes in the middle; two are cut off by the shutdown.
    let leaves = begin("leaves", json!({ "stream": true })).await;
    house.until(|stats| stats.counts.generated_tokens >= 5).await;
    let queued = begin("queued", json!({})).await;
    house.until(|stats| stats.counts.waiting == 1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(queued);
    house.until(|stats| stats.counts.waiting == 0).await;
    drop(leaves);
    house.until_empty().await;
    let reply = house.post("/v1/chat/completions", long("late", json!({ "timeout": 0.3 }))).await;
    assert_eq!(reply.status, 504);
    let _cut = begin("cut", json!({ "stream": true })).await;
    house.until(|stats| stats.counts.running == 1).await;
    let _waits = begin("waits", json!({})).await;
    house.until(|stats| stats.counts.waiting == 1).await;
    house.signals.send(()).await.unwrap();
    assert_eq!(house.served.await.unwrap(), Ended::Cut(2));
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for (user, ran) in [("leaves", true), ("queued", false), ("late", true), ("cut", true), ("waits", false)]
    {
        let key = format!("key=\"{user}\"");
        let line = log.lines().find(|line| line.contains(&key)).unwrap_or_else(|| panic!("{user} in {log}"));
        let [queue, decode] = ["queue_ms", "decode_ms"].map(|name| logged(line, name));
        match ran {
            true => {
                assert!(decode >= 60.0 && logged(line, "kv_block_s") > 0.0, "{line}");
                assert!(logged(line, "computed_tokens") >= 4.0, "{line}");
            }
            false => assert!(queue >= 40.0 && decode == 0.0, "{line}"),
        }
    }
}
