//! The smaller routes, and unknown paths and methods.

use serde_json::json;

use super::client::send;
use super::test_server::{Setup, metric};

#[tokio::test]
async fn models_are_listed_under_every_name() {
    let mut setup = Setup::new();
    setup.settings.models = vec!["parrot".to_owned(), "nvidia/bird".to_owned()];
    let server = setup.launch();
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = (0..2).map(|i| list["data"][i]["id"].clone()).collect();
    assert_eq!(ids, [json!("parrot"), json!("nvidia/bird")]);
    assert_eq!(list["data"][0]["max_model_len"], 512);
    let one = server.get("/v1/models/nvidia/bird").await.json();
    assert_eq!((&one["id"], &one["object"]), (&json!("nvidia/bird"), &json!("model")));
    for path in ["/v1/models/other", "/v1/models/../../etc/passwd", "/v1/models/%00", "/v1/models/%ff"] {
        let reply = server.get(path).await;
        assert_eq!(reply.error(), (404, Some("model_not_found".into()), Some("model".into())), "{path}");
    }
    let named = server.chat("a", json!({ "model": "nvidia/bird" })).await.json();
    assert_eq!(named["model"], "nvidia/bird");
}

#[tokio::test]
async fn probes_answer_get_and_head_with_a_reason() {
    let server = Setup::new().launch();
    for (path, ..) in octant::server::health::ALIASES {
        let reply = server.get(path).await;
        assert_eq!((reply.status, &reply.json()["reason"]), (200, &json!("ok")), "{path}");
        assert_eq!(reply.json()["object"], "health.response");
        let mut connection = super::client::Connection::open(server.address).await;
        connection.request("HEAD", path, &[("connection", "close")], b"").await;
        let raw = String::from_utf8(connection.rest().await).expect("text");
        assert!(raw.starts_with("HTTP/1.1 200") && raw.ends_with("\r\n\r\n"), "{raw}");
    }
    assert_eq!(server.get("/version").await.json(), json!({ "version": env!("CARGO_PKG_VERSION") }));
}

#[tokio::test]
async fn the_tokenizers_configuration_has_its_special_tokens_as_text_and_the_template() {
    let setup = Setup::new();
    let template = setup.template;
    let server = setup.launch();
    let info = server.get("/tokenizer_info").await.json();
    let expected = json!({ "tokenizer_class": null, "chat_template": template, "bos_token": "<|bos|>",
        "eos_token": "<|eos|>" });
    assert_eq!(info, expected);
}

#[tokio::test]
async fn unknown_paths_and_methods_get_an_error_object() {
    let server = Setup::new().launch();
    for path in ["/v1", "/page", "/v1/embeddings", "/score", "/v1/chat/completions/", "/admin", "/v1/models/"]
    {
        assert_eq!(server.get(path).await.error(), (404, None, None), "{path}");
    }
    let wrong = send(server.address, "GET", "/v1/chat/completions", &[], b"").await;
    assert_eq!(wrong.error(), (405, None, None));
    assert_eq!(wrong.header("allow"), Some("POST"));
    assert_eq!(send(server.address, "DELETE", "/health", &[], b"").await.error().0, 405);
    assert_eq!(send(server.address, "POST", "/", &[], b"").await.error(), (405, None, None));
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_read() {
    let server = Setup::new().launch();
    let text = "x".repeat(200);
    for _ in 0..2 {
        server.chat(&text, json!({ "max_tokens": 3 })).await;
    }
    server.chat("abc", json!({})).await;
    server.chat("abc", json!({ "n": 0 })).await;
    server.get("/nowhere").await;
    server.until_empty().await;
    let reply = server.get("/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = reply.text();
    let value = |name: &str, labels: &[&str]| {
        metric(text, name, &[labels, &["model_name=\"parrot\"", "engine=\"0\""]].concat())
    };
    for (name, expected) in [
        ("vllm:num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
        ("vllm:prompt_tokens_total", 406.0),
        ("vllm:generation_tokens_total", 10.0),
        ("vllm:num_preemptions_total", 0.0),
        ("vllm:prefix_cache_hits_total", 192.0),
        ("vllm:prefix_cache_queries_total", 406.0),
        ("vllm:time_to_first_token_seconds_count", 3.0),
        ("vllm:inter_token_latency_seconds_count", 7.0),
        ("vllm:e2e_request_latency_seconds_count", 3.0),
        ("vllm:request_prompt_tokens_sum", 406.0),
        ("vllm:request_generation_tokens_sum", 10.0),
    ] {
        assert_eq!(value(name, &[]), expected, "{name}");
    }
    for (reason, expected) in [("length", 2.0), ("stop", 1.0), ("abort", 0.0), ("error", 0.0)] {
        let label = format!("finished_reason=\"{reason}\"");
        assert_eq!(value("vllm:request_success_total", &[&label]), expected, "{reason}");
    }
    let info = ["block_size=\"64\"", "num_gpu_blocks=\"64\"", "enable_prefix_caching=\"True\""];
    assert_eq!(value("vllm:cache_config_info", &info), 1.0);
    assert_eq!(value("vllm:request_prompt_tokens_bucket", &["le=\"200\""]), 1.0);
    let chat = "handler=\"/v1/chat/completions\"";
    assert_eq!(value("http_requests_total", &[chat, "method=\"POST\"", "status=\"2xx\""]), 3.0);
    assert_eq!(value("http_requests_total", &[chat, "method=\"POST\"", "status=\"4xx\""]), 1.0);
    assert_eq!(value("http_requests_total", &["handler=\"none\"", "method=\"GET\"", "status=\"4xx\""]), 1.0);
    let blocks: f64 = text
        .lines()
        .filter(|line| line.starts_with("octant_kv_blocks{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert_eq!(blocks, 64.0, "the states add up to all blocks");
    let again = server.get("/metrics").await;
    assert_eq!(metric(again.text(), "vllm:prompt_tokens_total", &[]), 406.0, "a scrape adds nothing");
}
