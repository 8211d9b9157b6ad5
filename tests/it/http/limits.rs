//! Malformed, oversized and slow requests, and connections beyond the limit. None may change another
//! request's stream.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Connection, Reply, send};
use super::test_server::{BOS, Setup, TestServer, chat_body, config, metric};
use crate::HANG_GUARD;
use crate::fake::FakeExecutor;

const CHAT: &str = "/v1/chat/completions";

/// Posts bytes to the chat route.
async fn post_raw(server: &TestServer, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    send(server.address, "POST", CHAT, headers, body).await
}

/// A server with small limits.
fn small() -> Setup {
    let mut setup = Setup::new();
    let http = &mut setup.settings.http;
    http.head_timeout = Duration::from_millis(300);
    http.idle_timeout = Duration::from_millis(900);
    http.body.deadline = Duration::from_millis(300);
    http.body.max_bytes = 100_000;
    setup
}

#[tokio::test]
async fn invalid_json_is_a_400_with_a_short_text() {
    let server = Setup::new().launch();
    let deep = |n: usize| [b"[".repeat(n), b"]".repeat(n)].concat();
    let ignored = [b"{\"ignored\":".to_vec(), deep(10_000), b"}".to_vec()].concat();
    let cases: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{\"model\":".to_vec(),
        b"{\"a\":\"\xff\"}".to_vec(),
        b"{\"a\":\"\\ud800\"}".to_vec(),
        b"{\"temperature\":NaN}".to_vec(),
        b"{\"temperature\":Infinity}".to_vec(),
        b"{\"temperature\":1e400}".to_vec(),
        deep(33),
        deep(100_000),
        ignored,
        [b"{\"n\":".to_vec(), b"1".repeat(1_000_000), b"}".to_vec()].concat(),
        [b"{\"prompt\":[".to_vec(), b"0,".repeat(1_300_000), b"0]}".to_vec()].concat(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{} x".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"\"messages\"".to_vec(),
    ];
    for body in cases {
        let reply = post_raw(&server, &[], &body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert_eq!(reply.error(), (400, None, None), "{shown}");
        assert!(reply.body.len() < 500, "{shown}: {}", reply.text());
    }
}

#[tokio::test]
async fn json_may_nest_32_levels_and_have_brackets_in_strings() {
    let server = Setup::new().launch();
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(31), "]".repeat(31));
    let reply = post_raw(&server, &[], deep.as_bytes()).await;
    assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("messages".into())));
    let text = "[{\\\"".repeat(500);
    let body = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}],\"max_tokens\":1}}");
    assert_ne!(post_raw(&server, &[], body.as_bytes()).await.status, 500);
}

#[tokio::test]
async fn content_types_and_encodings() {
    let server = Setup::new().launch();
    let body = chat_body("ab", json!({})).to_string();
    for kind in ["application/json", "text/plain", "application/x-www-form-urlencoded", ""] {
        assert_eq!(post_raw(&server, &[("content-type", kind)], body.as_bytes()).await.status, 200, "{kind}");
    }
    for header in [
        ("content-type", "multipart/form-data; boundary=x"),
        ("content-encoding", "gzip"),
        ("content-encoding", "br"),
        ("content-encoding", "zstd"),
    ] {
        assert_eq!(
            post_raw(&server, &[header], body.as_bytes()).await.error(),
            (415, None, None),
            "{header:?}"
        );
    }
}

#[tokio::test]
async fn oversized_bodies_and_heads_are_refused() {
    let server = small().launch();
    let body = chat_body(&"x".repeat(200_000), json!({})).to_string();
    let reply = post_raw(&server, &[], body.as_bytes()).await;
    assert_eq!(reply.error(), (413, None, None));
    assert_eq!(reply.header("connection"), Some("close"));
    let long = "x".repeat(17_000);
    let many: Vec<(String, String)> = (0..65).map(|i| (format!("x-{i}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for headers in [&[("x-long", &*long)][..], &many] {
        let reply = send(server.address, "GET", "/version", headers, b"").await;
        assert_eq!(reply.error(), (431, None, None));
    }
    let path = format!("/{}", "x".repeat(17_000));
    assert_eq!(server.get(&path).await.error().0, 431);
    let huge = "x".repeat(1 << 20);
    let reply = send(server.address, "GET", "/version", &[("x-huge", &huge)], b"").await;
    assert_eq!((reply.error(), reply.header("connection")), ((431, None, None), Some("close")));
    let hosts = "x: y\r\n".repeat(300);
    for (head, status) in [
        (format!("GET /version HTTP/1.1\r\n{hosts}\r\n"), 431),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)), 431),
        ("no request\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400),
    ] {
        let mut connection = Connection::open(server.address).await;
        connection.write(head.as_bytes()).await.unwrap();
        assert_eq!(connection.reply().await.error(), (status, None, None), "{}", &head[..20.min(head.len())]);
    }
}

#[tokio::test]
async fn oversized_chunked_bodies_are_refused() {
    let mut setup = Setup::new();
    let body = &mut setup.settings.http.body;
    (body.max_bytes, body.deadline) = (100_000, 10 * HANG_GUARD);
    let server = setup.launch();
    let mut connection = Connection::open(server.address).await;
    connection
        .write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .await
        .expect("open");
    let flood = b"1\r\nx\r\n".repeat(110_000);
    let _cut_off = connection.write(&flood).await;
    assert_eq!(connection.reply().await.error(), (413, None, None));
}

#[test]
fn tokenize_requests_are_bounded() {
    // The tokenizer works on blocking threads. This runtime has one, so that a task on it holds back all
    // tokenising.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
        let server = Setup::new().launch();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let held = tokio::task::spawn_blocking(move || released.recv());
        let mut all: FuturesUnordered<_> =
            (0..70).map(|_| server.post("/tokenize", json!({ "prompt": "ab" }))).collect();
        for _ in 0..6 {
            let reply = all.next().await.expect("a reply");
            assert_eq!(reply.error(), (429, Some("queue_full".into()), None));
            assert_eq!(reply.header("retry-after"), Some("1"));
        }
        let reply = server.post("/detokenize", json!({ "tokens": [97] })).await;
        assert_eq!(reply.error(), (429, Some("queue_full".into()), None));
        // Requests that generate do not count towards this limit.
        let mut beside = Connection::open(server.address).await;
        beside.request("POST", CHAT, &[], chat_body("ab", json!({})).to_string().as_bytes()).await;
        while server.status.snapshot().open_requests != 65 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(release);
        assert!(held.await.expect("it has not panicked").is_err());
        assert_eq!(beside.reply().await.status, 200);
        let served: Vec<Reply> = all.collect().await;
        assert_eq!(served.len(), 64);
        assert!(served.iter().all(|reply| reply.status == 200 && reply.json()["count"] == 3));
        assert_eq!(server.post("/detokenize", json!({ "tokens": [97] })).await.status, 200);
    });
}

#[tokio::test]
async fn slow_heads_slow_bodies_and_idle_connections_time_out() {
    let server = small().launch();
    let begun = Instant::now();
    let mut silent = Connection::open(server.address).await;
    let mut partial = Connection::open(server.address).await;
    partial.write(b"GET /version HTTP/1.1\r\nhost").await.expect("open");
    let mut slow_body = Connection::open(server.address).await;
    slow_body
        .write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .await
        .expect("open");
    let mut idle = Connection::open(server.address).await;
    idle.request("GET", "/version", &[], b"").await;
    assert_eq!(idle.reply().await.status, 200);
    assert!(silent.rest().await.is_empty() && partial.rest().await.is_empty());
    let slow = slow_body.reply().await;
    assert_eq!(slow.error(), (408, Some("deadline_exceeded".into()), None));
    assert_eq!(slow.header("x-should-retry"), Some("false"));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    idle.request("GET", "/version", &[], b"").await;
    assert_eq!(idle.reply().await.status, 200, "an idle connection stays open for the idle timeout");
    assert!(idle.rest().await.is_empty());
    assert!(begun.elapsed() < HANG_GUARD);
}

#[tokio::test]
async fn a_long_reply_is_not_cut_by_request_timeouts() {
    let setup = small();
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(100));
    let server = setup.launch_with(executor);
    let answer = server.chat("abcdefghijklm", json!({ "stream": true })).await;
    assert!(answer.complete && answer.text().contains("[DONE]"));
}

#[tokio::test]
async fn connections_are_kept_alive_and_pipelined() {
    let server = Setup::new().launch();
    let mut connection = Connection::open(server.address).await;
    for (n, status) in [(1, 200), (2, 200), (0, 400)] {
        let body = chat_body("ab", json!({ "n": n })).to_string();
        connection.request("POST", CHAT, &[], body.as_bytes()).await;
        assert_eq!(connection.reply().await.status, status);
    }
    let two =
        b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    connection.write(two).await.expect("open");
    assert!(connection.reply().await.json()["version"].is_string());
    assert_eq!(connection.reply().await.json()["reason"], "ok");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let mut setup = small();
    setup.settings.http.max_connections = 2;
    let server = setup.launch();
    let _first = Connection::open(server.address).await;
    let _second = Connection::open(server.address).await;
    // The third is served once the first two have been silent for too long.
    assert_eq!(server.get("/version").await.status, 200);
}

#[tokio::test]
async fn http_2_is_refused_and_changes_no_other_stream() {
    let setup = small();
    let executor = FakeExecutor::new(&config()).delay(Duration::from_millis(2));
    let server = setup.launch_with(executor);
    let alone = stream_choices(&server).await;
    let prior_knowledge = async {
        for _ in 0..20 {
            let mut connection = Connection::open(server.address).await;
            // The connection preface and an empty SETTINGS frame.
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
            connection.write(preface).await.expect("open");
            let answer = connection.rest().await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
        }
    };
    let (beside, ()) = tokio::join!(stream_choices(&server), prior_knowledge);
    assert_eq!(beside, alone);
    assert_eq!(server.get("/health/ready").await.status, 200);
}

/// Streams a chat and returns its choices, which no other request may change.
pub(super) async fn stream_choices(server: &TestServer) -> String {
    let more = json!({ "stream": true, "ignore_eos": true, "max_tokens": 60, "seed": 7, "logprobs": true });
    let reply = server.chat("innocent", more).await;
    assert!(reply.complete && reply.text().ends_with("data: [DONE]\n\n"));
    let chunks = reply.chunks().into_iter().map(|chunk| chunk["choices"].to_string());
    chunks.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn bad_requests_change_no_other_stream() {
    let setup = small();
    let executor = FakeExecutor::new(&config()).delay(Duration::from_millis(2));
    let server = setup.launch_with(executor);
    let alone = stream_choices(&server).await;
    server.until_empty().await;
    let bad = [
        json!({ "logit_bias": { "261": 1 } }),
        json!({ "stop_token_ids": [9_999_999], "min_tokens": 5 }),
        json!({ "n": 1_000_000 }),
        json!({ "temperature": -1 }),
        json!({ "messages": [] }),
        json!({ "max_tokens": 100_000 }),
        json!({ "top_logprobs": 21, "logprobs": true }),
        json!({ "stop": "x".repeat(50_000) }),
        json!({ "stop": 1 }),
        json!({ "model": "x".repeat(50_000) }),
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "not": {} } } } }),
        json!({ "nvext": { "guided_json": { "type": "nonsense" } } }),
        json!({ "regex": "a(" }),
        json!({ "regex": "(x+x+)+y", "guided_regex": "a" }),
        json!({ "guided_grammar": "start: missing" }),
        json!({ "maxTokens": 5 }),
        json!({ "n": 1.5 }),
        json!({ "stream": true, "stream_options": { "guided_json": {} } }),
        json!({ "messages": [{ "role": "user", "content": "a", "extra_body": { "regex": "a" } }] }),
        json!({ "chat_template_kwargs": { "messages": [] } }),
    ];
    let bad_requests = async {
        for round in 0..5 {
            for more in &bad {
                let reply = server.chat("guilty", more.clone()).await;
                assert!((400..500).contains(&reply.status), "{more}: {}", reply.status);
            }
            let mut disconnecting = Connection::open(server.address).await;
            let body =
                chat_body("guilty", json!({ "stream": round % 2 == 0, "n": 3, "seed": 1 })).to_string();
            disconnecting.request("POST", CHAT, &[], body.as_bytes()).await;
            assert_eq!(post_raw(&server, &[], b"{").await.status, 400);
        }
    };
    let (beside, ()) = tokio::join!(stream_choices(&server), bad_requests);
    assert_eq!(beside, alone);
    server.until_empty().await;
    assert_eq!(server.get("/health/ready").await.status, 200);
}

/// Starts a server with a limit of one connection, and opens that connection. No connection times out during
/// a test.
async fn full_server() -> (TestServer, Connection) {
    let mut setup = Setup::new();
    let http = &mut setup.settings.http;
    http.max_connections = 1;
    (http.head_timeout, http.idle_timeout) = (10 * HANG_GUARD, 10 * HANG_GUARD);
    let server = setup.launch();
    let mut only = Connection::open(server.address).await;
    only.request("GET", "/version", &[], b"").await;
    assert_eq!(only.reply().await.status, 200);
    (server, only)
}

#[tokio::test]
async fn probes_are_answered_beyond_the_connection_limit() {
    let (server, only) = full_server().await;
    let mut waiting = Connection::open(server.address).await;
    waiting.request("GET", "/version", &[], b"").await;
    let mut slow_probe = Connection::open(server.address).await;
    slow_probe.write(b"GET /liv").await.expect("open");
    for path in ["/health/live", "/readyz", "/ping"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    slow_probe.write(b"ez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("open");
    assert_eq!(slow_probe.reply().await.json()["status"], "live");
    let early = tokio::time::timeout(Duration::from_millis(50), waiting.reply()).await;
    assert!(early.is_err(), "the only connection is still open");
    drop(only);
    assert_eq!(waiting.reply().await.status, 200);
}

#[tokio::test]
async fn a_refusal_is_received_after_the_whole_body_is_sent() {
    let server = small().launch();
    let mut client = tokio::net::TcpStream::connect(server.address).await.expect("open");
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 30000000\r\n\r\n");
    // Some clients send the whole body before they read the response.
    client.write_all(head.as_bytes()).await.expect("open");
    let piece = vec![b' '; 1 << 20];
    for _ in 0..28 {
        client.write_all(&piece).await.expect("the server still reads");
    }
    let mut answer = vec![0; 12];
    client.read_exact(&mut answer).await.expect("the answer is there");
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn silent_connections_do_not_block_probes() {
    let (server, _only) = full_server().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(Connection::open(server.address).await);
    }
    // A server that waited for them to time out would not answer before the client's own timeout.
    assert_eq!(server.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn an_unfinished_body_takes_no_place_in_the_queue() {
    let mut setup = Setup::new();
    (setup.config.max_queue_requests, setup.settings.http.max_reading) = (2, 4);
    let server = setup.launch();
    let mut slow = Vec::new();
    for i in 1..=4 {
        let mut connection = Connection::open(server.address).await;
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{";
        connection.write(head.as_bytes()).await.expect("open");
        while server.status.snapshot().open_requests < i {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        slow.push(connection);
    }
    assert_eq!(metric(server.get("/metrics").await.text(), "octant_requests_reading", &[]), 4.0);
    assert_eq!(server.chat("abc", json!({})).await.status, 200);
    // One body more than may be read at once: the oldest is refused, the others may still arrive.
    let refused = slow[0].reply().await;
    assert_eq!(refused.error(), (429, Some("queue_full".into()), None));
    assert_eq!(refused.header("connection"), Some("close"), "the rest of the body is no request");
    let early = tokio::time::timeout(Duration::from_millis(50), slow[3].reply()).await;
    assert!(early.is_err(), "the newest body may still arrive");
}

#[tokio::test]
async fn bodies_take_a_bounded_memory_together() {
    let mut setup = Setup::new();
    setup.settings.http.body.max_total_bytes = 3000;
    let server = setup.launch();
    let body = |pad: usize| format!("{}{}", chat_body("abc", json!({})), " ".repeat(pad));
    assert_eq!(post_raw(&server, &[], body(1800).as_bytes()).await.status, 200);
    let refused = post_raw(&server, &[], body(4000).as_bytes()).await;
    assert_eq!(refused.error(), (429, Some("queue_full".into()), None));
    assert!(refused.text().contains("at most 3000 bytes of request bodies"), "{}", refused.text());
    // A body that is still on its way takes its bytes from the others, and gives them back when it ends.
    let mut slow = Connection::open(server.address).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000\r\n\r\n";
    slow.write(format!("{head}{}", " ".repeat(1500)).as_bytes()).await.expect("open");
    let give_up = Instant::now() + Duration::from_secs(10);
    while post_raw(&server, &[], body(1800).as_bytes()).await.status != 429 {
        assert!(Instant::now() < give_up, "the bytes of a slow body do not count");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.chat("abc", json!({})).await.status, 200);
    drop(slow);
    while post_raw(&server, &[], body(1800).as_bytes()).await.status != 200 {
        assert!(Instant::now() < give_up, "the bytes of an aborted body still count");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
