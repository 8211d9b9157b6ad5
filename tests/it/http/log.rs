//! The access log: one line for each request, with its cost if it was admitted, however it ends.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octant::server::{DrainTimes, Ended, Signal};
use serde_json::{Value, json};
use tracing::Level;
use tracing::subscriber::DefaultGuard;

use super::client::{Connection, send};
use super::test_server::{BOS, Setup, chat_body, merged};
use crate::fake::FakeExecutor;

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

impl Lines {
    /// Receives the log of this thread, down to a level, as long as the guard lives.
    fn capture(level: Level) -> (Self, DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(level).with_ansi(false);
        let subscriber = subscriber.with_writer(move || writer.clone()).finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn the_log_has_one_line_for_each_request() {
    let (lines, _guard) = Lines::capture(Level::DEBUG);
    let server = Setup::new().launch();
    let send_chat = async |id: &str, body: Value| {
        let headers = [("x-request-id", id), ("content-type", "application/json")];
        send(server.address, "POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()).await
    };
    let body = chat_body("abc", json!({ "max_tokens": 3, "n": 2, "user": "bob" }));
    let id = send_chat("mine-1", body).await.json()["id"].clone();
    assert_eq!(send_chat("mine-2", chat_body(&"x".repeat(600), json!({}))).await.status, 400);
    assert_eq!(
        send_chat("mine-3", merged(chat_body("abc", json!({})), json!({ "model": "another" }))).await.status,
        404
    );
    let log = lines.text();
    let about: Vec<&str> = log.lines().filter(|line| line.contains(" request ")).collect();
    assert_eq!(about.len(), 3, "{log}");
    assert!(about.iter().all(|line| line.contains("INFO")), "{log}");
    for field in [
        "request_id=\"mine-1\"",
        "key=\"bob\"",
        "ended=\"length,length\"",
        "prompt_tokens=8",
        "generated_tokens=6",
        "queue_ms=",
        "method=\"POST\"",
        "path=\"/v1/chat/completions\"",
        "status=200",
        "duration_ms=",
    ] {
        assert!(about[0].contains(field), "{field} in {}", about[0]);
    }
    assert!(about[0].contains(id.as_str().unwrap()));
    for (id, status, code, param) in
        [("mine-2", 400, "context_length_exceeded", "messages"), ("mine-3", 404, "model_not_found", "model")]
    {
        let line = log.lines().find(|line| line.contains(&format!("request_id=\"{id}\"")));
        let line = line.unwrap_or_else(|| panic!("no {id} in {log}"));
        let outcome = format!("status={status} code=\"{code}\" param=\"{param}\"");
        assert!(line.contains("INFO") && line.contains(&outcome), "{line}");
    }
}

/// Value of a numeric field in a line of the log.
fn logged(line: &str, name: &str) -> f64 {
    let (_, rest) = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name} in {line}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_log_has_the_cost_of_every_request_however_it_ends() {
    let (lines, _guard) = Lines::capture(Level::INFO);
    let mut setup = Setup::new();
    setup.config.max_num_seqs = 1;
    setup.times = DrainTimes { grace: Duration::ZERO, timeout: Duration::from_millis(300) };
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(20));
    let server = setup.launch_with(executor);
    let long = |user: &str, more: Value| {
        chat_body("abc", merged(json!({ "ignore_eos": true, "max_tokens": 400, "user": user }), more))
    };
    let begin = async |user: &str, more: Value| {
        let mut connection = Connection::open(server.address).await;
        let body = long(user, more).to_string();
        connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
        connection
    };
    // `leaves` disconnects while it runs, `queued` while it waits, `late` misses its deadline while it runs,
    // and the shutdown aborts `cut`, which runs, and `waits`, which waits.
    let leaves = begin("leaves", json!({ "stream": true })).await;
    server.until(|stats| stats.counts.generated_tokens >= 5).await;
    let queued = begin("queued", json!({})).await;
    server.until(|stats| stats.counts.waiting == 1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(queued);
    server.until(|stats| stats.counts.waiting == 0).await;
    drop(leaves);
    server.until_empty().await;
    let reply = server.post("/v1/chat/completions", long("late", json!({ "timeout": 0.3 }))).await;
    assert_eq!(reply.status, 504);
    let _cut = begin("cut", json!({ "stream": true })).await;
    server.until(|stats| stats.counts.running == 1).await;
    let _waits = begin("waits", json!({})).await;
    server.until(|stats| stats.counts.waiting == 1).await;
    server.signals.send(Signal::Terminate).await.unwrap();
    assert_eq!(server.served.await.unwrap(), Ended::Aborted(2));
    let log = lines.text();
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
    for (user, outcome) in [
        ("late", "status=504 code=\"deadline_exceeded\""),
        ("waits", "status=500 code=\"engine_unavailable\""),
    ] {
        let key = format!("key=\"{user}\"");
        let line = log.lines().find(|line| line.contains(&key)).unwrap_or_default();
        assert!(line.contains("INFO") && line.contains(outcome), "{outcome} in {line}");
    }
}

/// The log at level debug of what `requests` sends to a server.
async fn log_of(requests: impl AsyncFnOnce(SocketAddr)) -> String {
    let (lines, _guard) = Lines::capture(Level::DEBUG);
    let server = Setup::new().launch();
    requests(server.address).await;
    server.until_empty().await;
    lines.text()
}

#[tokio::test]
async fn every_outcome_has_one_line_with_its_path_and_status() {
    let log = log_of(async |address| {
        for (method, path) in [
            ("GET", "/v1/models"),
            ("GET", "/nowhere?secret=plugh"),
            ("DELETE", "/v1/models"),
            ("GET", "/health/live"),
            ("GET", "/metrics"),
        ] {
            send(address, method, path, &[], b"").await;
        }
        for (path, body) in [
            ("/tokenize", json!({ "prompt": "plugh" })),
            ("/v1/completions", json!({ "prompt": "plugh", "max_tokens": 0.5 })),
            ("/v1/completions", json!({ "prompt": "plugh", "max_tokens": 2, "stream": true })),
        ] {
            send(address, "POST", path, &[], body.to_string().as_bytes()).await;
        }
    })
    .await;
    for (method, path, outcome) in [
        ("GET", "/v1/models", "status=200"),
        ("GET", "/nowhere", "status=404 code=\"invalid_request\""),
        ("DELETE", "/v1/models", "status=405 code=\"invalid_request\""),
        ("POST", "/tokenize", "status=200"),
        ("POST", "/v1/completions", "status=400 code=\"invalid_value\" param=\"max_tokens\""),
        ("POST", "/v1/completions", "status=200"),
    ] {
        let start = format!("method=\"{method}\" path=\"{path}\" {outcome}");
        let found: Vec<&str> = log.lines().filter(|line| line.contains(&start)).collect();
        assert!(found.len() == 1 && found[0].contains("INFO"), "{start} in {log}");
        assert!(logged(found[0], "duration_ms") > 0.0, "{log}");
    }
    for probe in ["/health/live", "/metrics"] {
        let found: Vec<&str> =
            log.lines().filter(|line| line.contains(&format!("path=\"{probe}\""))).collect();
        assert!(found.len() == 1 && found[0].contains("DEBUG"), "{log}");
    }
    assert!(!log.contains("plugh"), "{log}");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_response_has_a_line() {
    let (lines, _guard) = Lines::capture(Level::DEBUG);
    let server = Setup::new().launch();
    let mut connection = Connection::open(server.address).await;
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{";
    connection.write(head).await.unwrap();
    drop(connection);
    server.until(|_| lines.text().contains("path=\"/v1/completions\"")).await;
    let log = lines.text();
    let line = log.lines().find(|line| line.contains("path=\"/v1/completions\""));
    assert!(line.is_some_and(|line| line.contains("INFO") && line.contains("status=")), "{log}");
}
