//! Responses when the engine fails, is full, or is not there yet.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use octant::generation::Tokenizer;
use octant::server::error::ApiError;
use octant::server::{ServerStatus, bind, while_starting};
use serde_json::{Value, json};

use super::client::{self, Connection};
use super::test_server::{BOS, Setup, chat_body, config, metric, write_tokenizer};
use crate::fake::FakeExecutor;

/// Token for which the fake model computes NaN.
const POISON: u32 = b'!' as u32;

fn poisoned() -> FakeExecutor {
    FakeExecutor::new(&config()).parrot(BOS).poison(POISON)
}

#[tokio::test]
async fn a_failed_request_is_a_500_with_x_should_retry_false() {
    let server = Setup::new().launch_with(poisoned());
    let reply = server.chat("abc!", json!({})).await;
    assert_eq!(reply.error(), (500, None, None));
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!(reply.json()["error"]["type"], "server_error");
    assert_eq!(server.chat("abc", json!({})).await.status, 200, "other requests are served");
    assert_eq!(server.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn a_prompt_on_which_the_tokenizer_s_library_panics_is_a_400_and_a_stream_beside_it_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_tokenizer(dir.path());
    let path = dir.path().join("tokenizer.json");
    let file = std::fs::read_to_string(&path).expect("it is there");
    let mut file: Value = serde_json::from_str(&file).expect("it is JSON");
    // The first token takes the spaces behind it. The second is within them, and takes those before it.
    for (id, content, lstrip) in [(260, "<a>", false), (261, "  ", true)] {
        file["added_tokens"].as_array_mut().expect("a list").push(json!({
            "id": id, "content": content, "special": false, "single_word": false,
            "lstrip": lstrip, "rstrip": !lstrip, "normalized": false,
        }));
    }
    std::fs::write(&path, file.to_string()).expect("it can be written");
    let library = tokenizers::Tokenizer::from_file(&path).expect("it is sound");
    let panics =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| library.encode("<a>    x", false).is_ok()));
    assert!(panics.is_err(), "the test needs another input");
    let tokenizer = Tokenizer::from_dir(dir.path()).expect("it is sound");
    let (executor, permits) = FakeExecutor::new(&config()).parrot(BOS).gated();
    let server = Setup::new().launch_over(executor, tokenizer);
    let mut stream = Connection::open(server.address).await;
    let body = chat_body("abcdef", json!({ "stream": true })).to_string();
    stream.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.counts.running > 0).await;
    for prompt in ["<a>    x", "b <a>   ", "<a>\n   <a>    "] {
        let reply = server.complete(prompt, json!({ "echo": true, "logprobs": 1 })).await;
        assert_eq!(reply.status, 400, "{prompt:?}");
        assert!(reply.text().contains("cannot be tokenized"), "{}", reply.text());
        assert_eq!(server.chat(prompt, json!({})).await.status, 400, "{prompt:?}");
    }
    drop(permits);
    let reply = stream.reply().await;
    let text = reply
        .chunks()
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect::<String>();
    assert_eq!((reply.status, reply.complete, text.as_str()), (200, true, "abcdef"));
    assert_eq!(server.complete("<a> x", json!({ "max_tokens": 1 })).await.status, 200);
}

#[tokio::test]
async fn a_failed_stream_ends_with_an_error_event_and_without_done() {
    let (executor, permits) =
        FakeExecutor::new(&config()).parrot(BOS).fail_at(3, "the device is lost").gated();
    let server = Setup::new().launch_with(executor);
    let mut connection = Connection::open(server.address).await;
    let body = chat_body("abcdef", json!({ "stream": true, "n": 2 })).to_string();
    connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.counts.running > 0).await;
    drop(permits);
    let reply = connection.reply().await;
    assert_eq!((reply.status, reply.complete), (200, false));
    let events = reply.events();
    let last: Value = serde_json::from_str(events.last().expect("events")).expect("JSON");
    let expected = json!({ "error": {
        "message": "The engine is unavailable: the device is lost",
        "type": "server_error", "param": null, "code": "engine_unavailable",
    } });
    assert_eq!(last, expected);
    assert!(
        !reply.text().contains("[DONE]") && !reply.text().contains("\"finish_reason\":\""),
        "{}",
        reply.text()
    );
    // The engine does not recover: requests and probes get a 503 from here on.
    let after = server.chat("abc", json!({})).await;
    assert_eq!(after.error(), (503, Some("engine_unavailable".into()), None));
    assert_eq!(after.header("retry-after"), Some("1"));
    for path in ["/health", "/health/live", "/health/ready"] {
        let health = server.get(path).await;
        assert_eq!(health.status, 503);
        assert_eq!(health.json()["reason"], "the engine has failed: the device is lost");
    }
}

/// Proxies send a request with a 503 to another server, so it must not have been started here. Client
/// libraries retry a 500.
#[tokio::test]
async fn a_request_lost_to_an_engine_failure_is_a_retryable_500() {
    let executor = FakeExecutor::new(&config()).parrot(BOS).fail_at(3, "the device is lost");
    let server = Setup::new().launch_with(executor);
    let reply = server.chat("abcdef", json!({})).await;
    assert_eq!(reply.error(), (500, Some("engine_unavailable".into()), None));
    assert_eq!((reply.header("x-should-retry"), reply.header("retry-after")), (None, Some("1")));
    assert_eq!(server.chat("abc", json!({})).await.error(), (503, Some("engine_unavailable".into()), None));
    let text = server.get("/metrics").await;
    let count = |name: &str, label: &str| metric(text.text(), name, &[label]);
    assert_eq!(count("octant_http_errors_total", "code=\"engine_unavailable\""), 2.0);
    assert_eq!(count("vllm:request_success_total", "finished_reason=\"error\""), 1.0);
}

#[test]
fn every_error_has_a_label_that_metrics_know() {
    let text = || "text".to_owned();
    for error in [
        ApiError::Malformed(text()),
        ApiError::invalid("a", "b"),
        ApiError::unsupported("a", "b"),
        ApiError::ContextLength { param: "prompt".into(), limit: 1, prompt: 1, completion: 1 },
        ApiError::ContextBytes { param: "prompt".into(), limit: 1, bytes: 1 },
        ApiError::BadKey,
        ApiError::ModelNotFound(text()),
        ApiError::NoRoute(text()),
        ApiError::NoMethod(text()),
        ApiError::TooSlow(1),
        ApiError::TooLarge(1),
        ApiError::MediaType(text()),
        ApiError::HeadersTooLarge(1, 1),
        ApiError::QueueFull { message: text(), retry_after: None },
        ApiError::DeadlineUnmet { message: text(), retry_after: None },
        ApiError::TooManyBodies(9),
        ApiError::TooManyBytes(9),
        ApiError::DeadlineExceeded,
        ApiError::NotReady,
        ApiError::Draining,
        ApiError::EngineDown(text()),
        ApiError::EngineFailed(text()),
        ApiError::Internal(text()),
    ] {
        assert!(ApiError::LABELS.contains(&error.label()), "{error:?}: {}", error.label());
        assert!(error.code().is_none_or(|code| code == error.label()));
    }
    assert_eq!(ApiError::Internal(text()).label(), "internal");
}

#[tokio::test]
async fn a_full_queue_is_a_429_even_for_a_stream() {
    let mut setup = Setup::new();
    (setup.config.max_num_seqs, setup.config.max_queue_requests) = (1, 1);
    // The forecast expects replies of two tokens, so on any machine it predicts that the queue has room again
    // within a second.
    (0..200).for_each(|_| setup.start.forecast.answers(2, 1));
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(5));
    let server = setup.launch_with(executor);
    let mut held = Vec::new();
    for i in 0..2 {
        let mut connection = Connection::open(server.address).await;
        let body = chat_body("abc", json!({ "stream": true, "ignore_eos": true })).to_string();
        connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
        connection.until("\r\n\r\n").await;
        server.until(|stats| (stats.counts.running, stats.counts.waiting) == (1, i)).await;
        held.push(connection);
    }
    for more in [json!({ "stream": true }), json!({})] {
        let reply = server.chat("abc", more).await;
        assert_eq!(reply.error(), (429, Some("queue_full".into()), None));
        assert_eq!((reply.header("retry-after"), reply.header("retry-after-ms")), (Some("1"), Some("1000")));
        assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    }
    // A full queue refuses a request by its head alone: neither the prompt's length nor an unfinished body
    // matters.
    let long = "x".repeat(600);
    assert_eq!(server.chat(&long, json!({})).await.error().0, 429);
    let mut connection = Connection::open(server.address).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{";
    connection.write(head.as_bytes()).await.unwrap();
    let answer = connection.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "an unfinished body: {answer}");
    assert_eq!(server.get("/health").await.status, 200, "a server with a full queue is ready");
    drop(held);
    server.until_empty().await;
    assert_eq!(
        server.chat("a", json!({ "n": 0 })).await.error().0,
        400,
        "once the queue has room the prompt is validated"
    );
    assert_eq!(server.chat("abc", json!({})).await.status, 200);
}

#[tokio::test]
async fn the_status_of_a_full_queue_is_configurable() {
    let mut setup = Setup::new();
    (setup.config.max_num_seqs, setup.config.max_queue_requests) = (1, 1);
    setup.settings.queue_full_status = StatusCode::SERVICE_UNAVAILABLE;
    let server = setup.launch();
    // An empty queue takes a request of any size, and then no other.
    let _place = server.engine.enter(1).expect("the queue is empty");
    let reply = server.chat("abc", json!({})).await;
    assert_eq!(reply.error(), (503, Some("queue_full".into()), None));
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_server_that_loads_its_model_is_live_and_not_ready() {
    let listener = bind(&[SocketAddr::from(([127, 0, 0, 1], 0))]).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let (loaded, load) = tokio::sync::oneshot::channel();
    let status = ServerStatus::new(Duration::from_secs(60));
    let origins = ["https://chat.example".to_owned()];
    let starting = tokio::spawn(async move { while_starting(&listener, &status, &origins, load).await });
    for path in ["/health/live", "/v1/health/live"] {
        assert_eq!(client::get(address, path).await.status, 200);
    }
    for path in ["/health/ready", "/health", "/health/startup"] {
        let reply = client::get(address, path).await;
        assert_eq!((reply.status, &reply.json()["phase"]), (503, &json!("opening_devices")));
    }
    for path in ["/v1/models", "/nothing"] {
        let reply = client::get(address, path).await;
        assert_eq!(reply.error(), (503, Some("not_ready".into()), None));
        assert_eq!((reply.header("retry-after"), reply.header("connection")), (Some("1"), Some("close")));
    }
    let page = [("origin", "https://chat.example"), ("access-control-request-method", "POST")];
    for (method, expected) in [("GET", 503), ("OPTIONS", 204)] {
        let reply = client::send(address, method, "/v1/models", &page, b"").await;
        assert_eq!(reply.status, expected);
        assert_eq!(reply.header("access-control-allow-origin"), Some("https://chat.example"));
    }
    loaded.send("a model").expect("it is waited for");
    assert_eq!(starting.await.expect("no panic"), Ok("a model"));
}

#[tokio::test]
async fn a_hung_step_fails_liveness_and_an_idle_engine_does_not() {
    let mut setup = Setup::new();
    setup.stall_margin = Duration::from_millis(100);
    let (executor, permits) = FakeExecutor::new(&setup.config).parrot(BOS).gated();
    let server = setup.launch_with(executor);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(server.get("/health/live").await.status, 200, "an idle engine is live");
    let mut connection = Connection::open(server.address).await;
    let body = chat_body("abc", json!({})).to_string();
    connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.pending()).await;
    assert_eq!(server.get("/health/live").await.status, 200, "a step may take some time");
    tokio::time::sleep(Duration::from_millis(200)).await;
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(server.get(path).await.status, 503);
    }
    drop(permits);
    assert_eq!(connection.reply().await.status, 200);
    assert_eq!(server.get("/health/live").await.status, 200);
}
