//! Several tokens in one step, as clients see them: the same replies, streams, usage and counts of tokens.

use serde_json::{Value, json};

use super::test_server::{Setup, TestServer, config, metric};
use octant::engine::EngineOptions;
use octant::scheduler::SchedulerConfig;
use octant::server::metrics::engine_metrics;

/// A server whose answers repeat the prompt, so that nearly every draft is accepted.
fn server(max_drafts: usize) -> TestServer {
    server_with(SchedulerConfig { max_drafts, ..config() }, 2)
}

fn server_with(config: SchedulerConfig, in_flight: usize) -> TestServer {
    let start = EngineOptions { metrics: engine_metrics(), ..EngineOptions::new(in_flight) };
    Setup { config, start, ..Setup::new() }.launch()
}

const TEXT: &str = "one two three, one two three, one two four: é and ü, one two three";

/// A reply without what differs between any two requests.
fn without_id(mut reply: Value) -> Value {
    for key in ["id", "created"] {
        reply.as_object_mut().expect("a reply is an object").remove(key);
    }
    reply
}

/// The text of a stream, and its number of events with text.
async fn streamed(server: &TestServer, more: Value) -> (String, usize, Value) {
    let reply = server.chat(TEXT, more).await;
    let chunks = reply.chunks();
    let texts: Vec<&str> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    let usage = chunks.last().map(|chunk| chunk["usage"].clone()).unwrap_or_default();
    (texts.concat(), texts.iter().filter(|text| !text.is_empty()).count(), usage)
}

#[tokio::test]
async fn replies_are_equal_with_and_without_drafts() {
    let (plain, drafting) = (server(0), server(8));
    let with_model = server_with(SchedulerConfig { max_drafts: 8, draft_model: true, ..config() }, 2);
    // A stop string is found after later steps have been launched, so the engine generates some tokens more,
    // as many as it takes until the request ends.
    let stop_strings = [
        json!({ "stop": ["three, one two f", "zzz"] }),
        json!({ "stop": ["ü"], "logprobs": true, "n": 2, "seed": 4 }),
    ];
    let others = [
        json!({}),
        json!({ "logprobs": true, "top_logprobs": 2 }),
        json!({ "max_tokens": 37 }),
        json!({ "stop_token_ids": [b':'], "min_tokens": 20 }),
        json!({ "structured_outputs": { "regex": "one two [a-z ,]+: é.*" } }),
    ];
    for (asked, counts) in [
        (&others[..], &["vllm:generation_tokens_total", "vllm:request_generation_tokens_sum"][..]),
        (&stop_strings, &["vllm:request_generation_tokens_sum"]),
    ] {
        for more in asked {
            let expected = without_id(plain.chat(TEXT, more.clone()).await.json());
            for server in [&drafting, &with_model] {
                let got = without_id(server.chat(TEXT, more.clone()).await.json());
                assert_eq!(got, expected, "{more}");
            }
        }
        plain.until_empty().await;
        let expected = plain.get("/metrics").await;
        for server in [&drafting, &with_model] {
            server.until_empty().await;
            let got = server.get("/metrics").await;
            for name in counts {
                let value = |text: &str| metric(text, name, &[]);
                assert_eq!(value(got.text()), value(expected.text()), "{name}");
            }
        }
    }
    for server in [&drafting, &with_model] {
        let accepted = server.engine.stats().counts.speculation.all_accepted();
        assert!(accepted > 100, "{accepted} drafts accepted");
    }
    assert_eq!(plain.engine.stats().counts.speculation, Default::default());
}

#[tokio::test]
async fn a_stream_sends_the_tokens_of_a_step_together() {
    let (plain, drafting) = (server(0), server(8));
    let asked = || json!({ "stream": true, "stream_options": { "include_usage": true } });
    let (expected, each, usage) = streamed(&plain, asked()).await;
    let (text, fewer, same) = streamed(&drafting, asked()).await;
    assert_eq!((&text, &same["completion_tokens"]), (&expected, &usage["completion_tokens"]));
    assert_eq!(text, TEXT);
    assert!(fewer * 2 < each, "{fewer} events instead of {each}");
}

/// Tokens are charged once, whether they were fed as drafts or not; rejected drafts are not charged.
#[tokio::test]
async fn metrics_count_drafts_and_charge_each_token_once() {
    // With two steps in flight, a request may be charged for a row after its last token.
    let with = |max_drafts| server_with(SchedulerConfig { max_drafts, ..config() }, 1);
    let (plain, drafting) = (with(0), with(8));
    let mut computed = Vec::new();
    for server in [&plain, &drafting] {
        for more in [json!({}), json!({ "max_tokens": 50 }), json!({ "stop_token_ids": [b':'] })] {
            server.chat(TEXT, merged_user(more)).await;
        }
        server.until_empty().await;
        let reply = server.get("/metrics").await;
        let tokens = |kind: &str| {
            let kind = format!("kind=\"{kind}\"");
            metric(reply.text(), "octant_key_tokens_total", &["key=\"ada\"", &kind])
        };
        computed.push(["prompt", "generated", "cached", "computed", "recomputed"].map(tokens));
    }
    assert_eq!(computed[0], computed[1]);
    let reply = drafting.get("/metrics").await;
    let value = |name: &str| metric(reply.text(), &format!("vllm:spec_decode_num_{name}_total"), &[]);
    let counts = drafting.engine.stats().counts.speculation;
    assert_eq!(value("drafts"), counts.rows as f64);
    assert_eq!(value("draft_tokens"), counts.drafts as f64);
    assert_eq!(value("accepted_tokens"), counts.all_accepted() as f64);
    let at = |position: usize| {
        let label = format!("position=\"{position}\"");
        metric(reply.text(), "vllm:spec_decode_num_accepted_tokens_per_pos_total", &[&label])
    };
    let by_place: Vec<f64> = (0..8).map(at).collect();
    assert_eq!(by_place, counts.accepted[..8].iter().map(|count| *count as f64).collect::<Vec<_>>());
    assert!(by_place[7] > 0.0 && by_place[0] > by_place[7], "{by_place:?}");
}

/// The fields with the user whose tokens are counted.
fn merged_user(more: Value) -> Value {
    super::test_server::merged(json!({ "user": "ada" }), more)
}
