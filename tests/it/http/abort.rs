//! Clients that disconnect or do not read: their KV blocks are freed, and other requests are not delayed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Connection, post};
use super::test_server::{BOS, Setup, chat_body, config, merged, metric};
use crate::fake::FakeExecutor;

/// A chat that generates until the context is full.
fn endless(more: Value) -> Value {
    chat_body("abc", merged(json!({ "ignore_eos": true }), more))
}

fn slow() -> FakeExecutor {
    FakeExecutor::new(&config()).parrot(BOS).delay(Duration::from_millis(5))
}

#[tokio::test]
async fn a_disconnect_frees_the_kv_blocks_streaming_or_not() {
    let server = Setup::new().launch_with(slow());
    for more in [json!({ "stream": true }), json!({ "stream": true, "n": 3 }), json!({}), json!({ "n": 3 })] {
        let sequences = more["n"].as_u64().unwrap_or(1) as usize;
        let mut connection = Connection::open(server.address).await;
        let body = endless(more).to_string();
        connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
        server.until(|stats| stats.counts.running == sequences).await;
        let before = server.engine.stats().counts.generated_tokens;
        drop(connection);
        server.until_empty().await;
        let after = server.engine.stats().counts.generated_tokens - before;
        assert!(after < 400 * sequences as u64, "ended by the disconnect, not by length: {after}");
    }
    let metrics = server.get("/metrics").await;
    let aborted = metric(metrics.text(), "vllm:request_success_total", &["finished_reason=\"abort\""]);
    assert_eq!(aborted, 8.0);
}

#[tokio::test]
async fn a_disconnect_with_unread_bytes_frees_the_kv_blocks() {
    let server = Setup::new().launch_with(slow());
    let body = endless(json!({})).to_string();
    for unread in ["\r\n", "GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut connection = Connection::open(server.address).await;
        connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
        connection.write(unread.as_bytes()).await.expect("open");
        server.until(|stats| stats.counts.running == 1).await;
        let before = server.engine.stats().counts.generated_tokens;
        drop(connection);
        server.until_empty().await;
        let after = server.engine.stats().counts.generated_tokens - before;
        assert!(after < 400, "ended by the disconnect, not by length: {after}");
    }
}

#[tokio::test]
async fn a_stop_string_aborts_the_sequence() {
    let server = Setup::new().launch_with(slow());
    let body = endless(json!({ "stop": "bc", "n": 2 }));
    let reply = post(server.address, "/v1/chat/completions", &body).await;
    assert_eq!(reply.json()["choices"][1]["message"]["content"], "a");
    server.until_empty().await;
    let generated = server.engine.stats().counts.generated_tokens;
    assert!(generated < 50, "{generated} tokens for a reply of one");
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected_and_delays_no_request() {
    let mut setup = Setup::new();
    (setup.config.max_model_len, setup.config.num_blocks) = (4096, 7 * 64 + 8);
    setup.settings.http.write_stall = Duration::from_millis(200);
    let executor = FakeExecutor::new(&setup.config).parrot(BOS);
    let server = setup.launch_with(executor);
    let mut stalled = TcpStream::connect(server.address).await.expect("the server listens");
    // The events of seven choices overflow all buffers between server and client.
    let body = endless(json!({ "stream": true, "n": 7, "logprobs": true, "top_logprobs": 2 })).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stalled.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.expect("it is taken");
    server.until(|stats| stats.counts.running == 7).await;
    let beside = server.chat("abcdef", json!({})).await;
    assert_eq!(beside.json()["choices"][0]["message"]["content"], "abcdef");
    // The engine does not wait for the client and completes the request, but the reply is never read.
    server.until_empty().await;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let metrics = server.get("/metrics").await;
        if metric(metrics.text(), "vllm:request_success_total", &["finished_reason=\"abort\""]) > 0.0 {
            break;
        }
        assert!(Instant::now() < end, "the connection is still open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_disconnected() {
    let mut setup = Setup::new();
    (setup.config.max_model_len, setup.config.num_blocks) = (4096, 7 * 64 + 8);
    setup.settings.http.write_stall = Duration::from_millis(200);
    let executor = FakeExecutor::new(&setup.config).parrot(BOS);
    let server = setup.launch_with(executor);
    let mut slow = TcpStream::connect(server.address).await.expect("the server listens");
    let body = endless(json!({ "stream": true, "n": 7, "logprobs": true, "top_logprobs": 2 })).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    slow.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.expect("it is taken");
    let end = Instant::now() + Duration::from_secs(10);
    let (mut byte, mut taken) = ([0], 0);
    // One byte at a time frees too little of the socket's buffer for a write, so the server's write timer
    // goes on.
    loop {
        taken += slow.read(&mut byte).await.unwrap_or(0);
        let metrics = server.get("/metrics").await;
        if metric(metrics.text(), "vllm:request_success_total", &["finished_reason=\"abort\""]) > 0.0 {
            break;
        }
        assert!(Instant::now() < end, "the connection is still open after {taken} bytes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.until_empty().await;
}
