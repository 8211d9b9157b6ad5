//! Figures, reports and plots of records with known results; prompts and request bodies.

use std::time::Duration;

use octant::bench::load_client::body::{Bodies, Endpoint};
use octant::bench::load_client::chunk::ReportedUsage;
use octant::bench::load_client::measure::{
    FailureKind, LoadRun, Objectives, RequestFailure, RequestRecord, Summary, TokensCountedBy,
};
use octant::bench::load_client::prompts::{PromptContent, PromptSource};
use octant::bench::load_client::{load_plot, load_report};
use octant::http_client::{Target, TargetError};
use octant::statistics::Distribution;
use serde_json::{Value, json};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A request due at 0 and sent at 10 ms, with chunks that arrived at these times in ms.
fn record(
    index: u64,
    chunks: &[u64],
    tokens: Option<u64>,
    outcome: Result<(), RequestFailure>,
) -> RequestRecord {
    RequestRecord {
        index,
        due: at(0),
        sent: at(10),
        chunks: chunks.iter().map(|ms| at(*ms)).collect(),
        ended: at(*chunks.last().unwrap_or(&20)),
        usage: tokens.map(|completion_tokens| ReportedUsage { prompt_tokens: 4, completion_tokens }),
        outcome,
    }
}

fn run() -> LoadRun {
    let failed = |kind, text: &str| Err(RequestFailure::new(kind, text));
    LoadRun {
        records: vec![
            record(0, &[110, 130, 170], Some(3), Ok(())),
            record(1, &[210, 240], Some(7), Ok(())),
            record(2, &[], None, failed(FailureKind::Status(429), "full (Retry-After: 1)")),
            record(3, &[50], None, failed(FailureKind::Cut, "x")),
            record(4, &[], None, failed(FailureKind::Status(429), "full again")),
        ],
        elapsed: at(500),
        chunks: 6,
        unfinished: 1,
        interrupted: true,
        cpu: at(3),
    }
}

#[test]
fn percentiles_are_those_of_numpy() {
    // From numpy.percentile(range(1, 101), q) and numpy.percentile([1, 2, 4], 90).
    let hundred = Distribution::of((1..=100).rev().map(f64::from).collect());
    let found = [hundred.p50, hundred.p90, hundred.p95, hundred.p99, hundred.max, hundred.min, hundred.mean];
    for (found, expected) in found.iter().zip([50.5, 90.1, 95.05, 99.01, 100.0, 1.0, 50.5]) {
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }
    assert_eq!(hundred.count, 100);
    assert!((hundred.std - 833.25f64.sqrt()).abs() < 1e-9);
    assert!((Distribution::of(vec![4.0, 1.0, 2.0]).p90 - 3.6).abs() < 1e-9);
    assert_eq!(Distribution::of(vec![5.0]).p99, 5.0);
    assert_eq!(Distribution::of(Vec::new()), Distribution::default());
}

#[test]
fn a_summary_follows_from_its_records() {
    let summary = Summary::of(&run(), Objectives { ttft_ms: Some(110.0), ..Objectives::default() });
    assert_eq!((summary.sent, summary.ok, summary.failed, summary.unfinished), (6, 2, 3, 1));
    assert_eq!((summary.output_tokens, summary.prompt_tokens), (10, 8));
    assert_eq!(summary.tokens_counted, TokensCountedBy::Usage);
    let close =
        |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    close(summary.requests_per_second, 4.0);
    close(summary.output_tokens_per_second, 20.0);
    close(summary.tokens_per_chunk, 2.0);
    close(summary.ttft_ms.mean, 150.0);
    close(summary.ttft_from_due_ms.mean, 160.0);
    close(summary.itl_ms.mean, 30.0);
    assert_eq!(summary.itl_ms.count, 3);
    // The first answer has 60 ms for 2 tokens after the first, the second 30 ms for 6.
    close(summary.tpot_ms.mean, 17.5);
    close(summary.e2e_ms.max, 230.0);
    close(summary.e2e_from_due_ms.max, 240.0);
    close(summary.lag_ms.mean, 10.0);
    // The first request has a TTFT of 110 ms from due time, the second a longer one; failed requests are
    // never good.
    close(summary.goodput.unwrap(), 2.0);
    close(summary.good_share.unwrap(), 0.2);
    close(summary.client_cpu_us_per_chunk, 500.0);
    let failures: Vec<_> = summary.failures.iter().map(|f| (f.kind, f.count, f.first.as_str())).collect();
    assert_eq!(
        failures,
        [(FailureKind::Status(429), 2, "full (Retry-After: 1)"), (FailureKind::Cut, 1, "x")]
    );
    assert_eq!(Summary::of(&run(), Objectives::default()).goodput, None);
}

#[test]
fn each_objective_limits_its_own_latency() {
    let record = record(0, &[110, 130, 170], Some(3), Ok(()));
    let none = Objectives::default();
    assert!(none.are_met(&record));
    for (good, bad) in [
        (Objectives { ttft_ms: Some(110.0), ..none }, Objectives { ttft_ms: Some(109.9), ..none }),
        (Objectives { itl_ms: Some(40.0), ..none }, Objectives { itl_ms: Some(39.9), ..none }),
        (Objectives { tpot_ms: Some(30.0), ..none }, Objectives { tpot_ms: Some(29.9), ..none }),
        (Objectives { e2e_ms: Some(170.0), ..none }, Objectives { e2e_ms: Some(169.9), ..none }),
    ] {
        assert!(good.are_met(&record) && !bad.are_met(&record), "{good:?}");
    }
}

#[test]
fn reports_name_the_source_of_token_counts_and_plots_accept_any_run() {
    let summary = Summary::of(&run(), Objectives::default());
    let text = load_report::text(&summary, Some(2));
    for part in [
        "by the server's usage",
        "1 aborted",
        "2 x HTTP 429; the first: full",
        "2 for 6 requests",
        "client CPU",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let mut chunks = run();
    chunks.records.iter_mut().for_each(|record| record.usage = None);
    let summary = Summary::of(&chunks, Objectives::default());
    assert_eq!((summary.tokens_counted, summary.output_tokens), (TokensCountedBy::Chunks, 5));
    assert!(load_report::text(&summary, None).contains("the server reported no usage"));
    let json = load_report::json(&summary, json!({}), &chunks);
    assert_eq!(json["requests"].as_array().unwrap().len(), 5);
    assert_eq!(json["requests"][0]["itl_ms"], json!([20.0, 40.0]));
    assert_eq!(json["requests"][2]["error"]["kind"], "HTTP 429");
    let svg = load_plot::svg(&run(), "a < b").unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("a &lt; b"));
    assert!(svg.matches("<polyline").count() >= 6, "axes and curves");
    assert!(load_plot::svg(&LoadRun::default(), "nothing").unwrap().contains("</svg>"));
}

#[test]
fn synthetic_prompts_differ_from_their_first_words_after_the_shared_prefix() {
    let words = |shared_prefix, index| {
        let prompts = PromptSource::Synthetic { tokens: 40, shared_prefix, seed: 1 };
        let PromptContent::Text(text) = prompts.get(index).content else { panic!("a text") };
        text.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words(0, 3).len(), 40);
    assert_eq!(words(0, 3), words(0, 3));
    assert_ne!(words(0, 3)[..8], words(0, 4)[..8]);
    assert_eq!(words(30, 3)[..30], words(30, 4)[..30]);
    assert_ne!(words(30, 3)[30..], words(30, 4)[30..]);
}

#[test]
fn prompts_are_read_from_three_file_formats() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        PromptSource::from_file(&path).map_err(|error| error.to_string())
    };
    let text = |prompts: &PromptSource, index| match prompts.get(index).content {
        PromptContent::Text(text) => text,
        PromptContent::Messages(value) => value.to_string(),
    };
    let plain = load("a.txt", "first\n\nsecond\n").unwrap();
    assert_eq!(
        (text(&plain, 0), text(&plain, 1), text(&plain, 2)),
        ("first".into(), "second".into(), "first".into())
    );
    let lines = "\"bare\"\n{\"prompt\":\"p\",\"max_tokens\":9}\n\
                 {\"messages\":[{\"role\":\"user\",\"content\":\"m\"}]}\n";
    let lines = load("a.jsonl", lines).unwrap();
    assert_eq!((text(&lines, 0), lines.get(1).max_tokens, lines.need_chat()), ("bare".into(), Some(9), true));
    let shared = r#"[{"id":"1","conversations":[{"from":"gpt","value":"no"},{"from":"human","value":"hi"}]},
        {"conversations":[]}]"#;
    let shared = load("a.json", shared).unwrap();
    assert_eq!((text(&shared, 0), shared.distinct()), ("hi".into(), Some(1)));
    for (name, bad, why) in [
        ("b.txt", "\n \n", "no prompt"),
        ("b.jsonl", "\"a\"\n{\"x\":1}\n", "line 2"),
        ("c.jsonl", "{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens"),
        ("b.json", "{}", "expected a list"),
    ] {
        let error = load(name, bad).unwrap_err();
        assert!(error.contains(why) && error.contains(name), "{error}");
    }
}

#[test]
fn extra_fields_replace_fields_of_the_body() {
    let bodies = Bodies {
        prompts: PromptSource::Synthetic { tokens: 3, shared_prefix: 0, seed: 0 },
        endpoint: Endpoint::Completions,
        model: "m".to_owned(),
        max_tokens: 5,
        ignore_eos: true,
        temperature: Some(0.5),
        extra: json!({ "max_tokens": 6, "top_k": 1 }).as_object().unwrap().clone(),
    };
    let body = |bodies: &Bodies| -> Value { serde_json::from_slice(&bodies.get(0)).unwrap() };
    let value = body(&bodies);
    assert_eq!(value["prompt"].as_str().unwrap().split(' ').count(), 3);
    let expected = json!({
        "model": "m", "prompt": value["prompt"], "max_tokens": 6, "stream": true,
        "stream_options": { "include_usage": true }, "ignore_eos": true, "temperature": 0.5, "top_k": 1,
    });
    assert_eq!(value, expected);
    let chat = body(&Bodies { endpoint: Endpoint::Chat, ignore_eos: false, temperature: None, ..bodies });
    assert_eq!(chat["messages"][0]["role"], "user");
    assert!(chat.get("ignore_eos").is_none() && chat.get("temperature").is_none());
}

#[test]
fn invalid_urls_are_refused() {
    for bad in ["example.org", "ftp://a", "http://", "https://", "http://a/?q=1", "https://u:p@a"] {
        assert!(matches!(Target::parse(bad, None), Err(TargetError::Url { .. })), "{bad}");
    }
    assert!(matches!(Target::parse("http://a", Some("a\nb")), Err(TargetError::Key)));
    for url in ["http://[::1]:80/base/v1/", "https://example.org/v1", "https://[::1]:8000"] {
        assert!(Target::parse(url, Some("k")).is_ok(), "{url}");
    }
}
