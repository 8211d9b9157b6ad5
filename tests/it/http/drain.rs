//! Graceful shutdown: its phases, signals, and the admin port.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{Command, Output};
use std::time::Duration;

use octant::server::status::ShutdownPhase;
use octant::server::{
    DrainTimes, Ended, ManagementPorts, ManagementThread, ServerStatus, Signal, Signals, management,
    unless_shutdown,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::client::{Connection, send};
use super::test_server::{BOS, Setup, TestServer, chat_body, metric};
use crate::fake::FakeExecutor;

/// Starts a server with these drain times in ms. Its steps take 10 ms, so a stream of `running` takes about
/// 1.5 s.
fn server(grace: u64, timeout: u64) -> TestServer {
    let mut setup = Setup::new();
    setup.times = DrainTimes { grace: Duration::from_millis(grace), timeout: Duration::from_millis(timeout) };
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(10));
    setup.launch_with(executor)
}

/// Starts a stream of 140 tokens.
async fn running(server: &TestServer) -> Connection {
    let mut connection = Connection::open(server.address).await;
    let body = chat_body("abc", json!({ "stream": true, "ignore_eos": true, "max_tokens": 140 })).to_string();
    connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    connection.until("\r\n\r\n").await;
    connection
}

async fn until_status(server: &TestServer, path: &str, status: u16) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.get(path).await.status != status {
        assert!(tokio::time::Instant::now() < end, "{path} never got to {status}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn shutdown_drops_readiness_then_refuses_requests_then_completes_streams() {
    let server = server(400, 10_000);
    let mut stream = running(&server).await;
    assert_eq!(server.get("/health/ready").await.status, 200);
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    until_status(&server, "/health/ready", 503).await;
    assert_eq!(server.get("/health/live").await.status, 200, "a server that shuts down is live");
    // During the grace period requests are accepted.
    let mut late = running(&server).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let refused = server.chat("abc", json!({ "stream": true })).await;
    assert_eq!(refused.error(), (503, Some("draining".into()), None));
    assert_eq!((refused.header("retry-after"), refused.header("connection")), (Some("1"), Some("close")));
    assert_eq!(server.get("/health/ready").await.status, 503);
    assert_eq!(server.get("/v1/models").await.status, 503);
    let metrics = server.get("/metrics").await;
    let counted = |decision: &str| {
        metric(metrics.text(), "octant_admissions_total", &[&format!("decision=\"{decision}\"")])
    };
    assert_eq!((counted("admitted"), counted("draining")), (2.0, 1.0), "not a generation");
    for connection in [&mut stream, &mut late] {
        let text = connection.until("data: [DONE]\n\n").await;
        assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    }
    assert_eq!(server.served.await.expect("it ends"), Ended::Drained);
}

#[tokio::test]
async fn requests_beyond_the_drain_timeout_get_an_error() {
    let server = server(0, 50);
    let mut stream = Connection::open(server.address).await;
    let endless = json!({ "stream": true, "ignore_eos": true });
    let body = chat_body("abc", endless).to_string();
    stream.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    let mut plain = Connection::open(server.address).await;
    let body = chat_body("abc", json!({ "ignore_eos": true })).to_string();
    plain.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.counts.running == 2).await;
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    let (stream, plain) = (stream.reply().await, plain.reply().await);
    assert_eq!((stream.status, stream.complete), (200, false));
    let last = stream.events().pop().expect("events");
    assert!(
        last.starts_with(
            "{\"error\":{\"message\":\"The engine is unavailable: the server is shutting down\""
        ),
        "{last}"
    );
    assert_eq!(plain.error(), (500, Some("engine_unavailable".into()), None), "started, so no 503");
    assert_eq!(server.served.await.expect("it ends"), Ended::Aborted(2));
    tokio::task::spawn_blocking(|| server.thread.join()).await.expect("joined").expect("no failure");
}

#[tokio::test]
async fn a_second_signal_ends_the_shutdown_at_once() {
    let server = server(60_000, 60_000);
    let _running = running(&server).await;
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    until_status(&server, "/health/ready", 503).await;
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    assert_eq!(server.served.await.expect("it ends"), Ended::Forced);
}

#[tokio::test]
async fn a_second_signal_ends_the_wait_for_aborted_requests() {
    let mut setup = Setup::new();
    setup.times = DrainTimes { grace: Duration::ZERO, timeout: Duration::ZERO };
    // The step never ends, so the server waits for the request as long as it may.
    let (executor, _permits) = FakeExecutor::new(&setup.config).parrot(BOS).gated();
    let server = setup.launch_with(executor);
    let mut plain = Connection::open(server.address).await;
    plain
        .request("POST", "/v1/chat/completions", &[], chat_body("abc", json!({})).to_string().as_bytes())
        .await;
    server.until(|stats| stats.counts.running == 1).await;
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    while server.status.phase() < ShutdownPhase::Aborting {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    let ended = tokio::time::timeout(Duration::from_millis(1000), server.served).await;
    assert_eq!(ended.expect("at once").expect("it ends"), Ended::Forced);
}

#[tokio::test]
async fn an_unfinished_body_gets_a_503_and_delays_no_shutdown() {
    let server = server(0, 50);
    let mut slow = Connection::open(server.address).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{";
    slow.write(head.as_bytes()).await.expect("open");
    while server.status.snapshot().open_requests == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    assert_eq!(slow.reply().await.error(), (503, Some("draining".into()), None));
    let ended = tokio::time::timeout(Duration::from_millis(1500), server.served).await;
    assert_eq!(ended.expect("before the flush timeout").expect("it ends"), Ended::Aborted(1));
}

#[tokio::test]
async fn the_first_signal_ends_startup() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (signal, receiver) = mpsc::channel(4);
    let mut signals = Signals::new(receiver);
    assert_eq!(unless_shutdown(&status, &mut signals, async { 7 }).await, Some(7));
    signal.send(Signal::Terminate).await.expect("there is room");
    assert_eq!(unless_shutdown(&status, &mut signals, pending::<()>()).await, None);
    // A drain requested by the admin port ends startup too, but only after a signal.
    status.request_drain();
    let mut ended = pin!(unless_shutdown(&status, &mut signals, pending::<()>()));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut ended).await.is_err());
    assert_eq!(status.phase(), ShutdownPhase::Drained);
    signal.send(Signal::Terminate).await.expect("there is room");
    assert_eq!(ended.await, None);
}

#[tokio::test]
async fn a_connection_opened_before_the_end_gets_a_503() {
    let server = server(0, 60_000);
    let mut fresh = Connection::open(server.address).await;
    // When a later connection is answered, this one has been accepted.
    assert_eq!(server.get("/health/live").await.status, 200);
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    while server.status.phase() < ShutdownPhase::Drained {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    fresh.request("POST", "/v1/completions", &[], b"{}").await;
    assert_eq!(fresh.reply().await.error(), (503, Some("draining".into()), None));
    assert_eq!(server.served.await.expect("it ends"), Ended::Drained);
}

#[tokio::test]
async fn idle_connections_do_not_delay_shutdown() {
    let server = server(0, 60_000);
    let mut idle = Connection::open(server.address).await;
    idle.request("GET", "/version", &[], b"").await;
    assert_eq!(idle.reply().await.status, 200);
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    let ended = tokio::time::timeout(Duration::from_secs(5), server.served).await;
    assert_eq!(ended.expect("soon").expect("it ends"), Ended::Drained);
    assert!(idle.rest().await.is_empty());
}

/// Starts the admin port of a server, and returns its address.
fn admin(server: &TestServer) -> (ManagementThread, SocketAddr) {
    let ports = ManagementPorts { health: Vec::new(), admin: vec![SocketAddr::from(([127, 0, 0, 1], 0))] };
    let thread = management::start(ports, &server.status).expect("a port is free");
    let address = thread.ports.admin[0];
    (thread, address)
}

#[tokio::test]
async fn the_admin_port_drains_and_a_signal_ends_the_server() {
    let server = server(1_000, 10_000);
    let (_thread, admin) = admin(&server);
    let mut stream = running(&server).await;
    let status = send(admin, "GET", "/admin/drain", &[], b"").await.json();
    assert_eq!((&status["phase"], &status["ready"]), (&json!("serving"), &json!(true)));
    assert_eq!(send(admin, "POST", "/admin/drain?wait=maybe", &[], b"").await.error().0, 400);
    assert_eq!(send(admin, "DELETE", "/admin/drain", &[], b"").await.error().0, 405);
    let begun = send(admin, "POST", "/admin/drain?wait=false", &[], b"").await.json();
    assert_eq!((&begun["phase"], &begun["ready"]), (&json!("leaving"), &json!(false)));
    assert_eq!(server.get("/health/ready").await.status, 503, "at once");
    let in_grace = server.chat("ab", json!({})).await;
    assert_eq!((in_grace.status, in_grace.header("connection")), (200, Some("close")));
    let waiting = tokio::spawn(async move { send(admin, "POST", "/admin/drain", &[], b"").await.json() });
    let text = stream.until("data: [DONE]\n\n").await;
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    drop(stream);
    let done = waiting.await.expect("no panic");
    assert_eq!((&done["phase"], &done["open_requests"]), (&json!("drained"), &json!(0)));
    assert!(!server.served.is_finished(), "the server waits for a signal");
    assert_eq!(server.get("/health/live").await.status, 200, "the server is live until then");
    assert_eq!(server.chat("ab", json!({})).await.error(), (503, Some("draining".into()), None));
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    assert_eq!(server.served.await.expect("it ends"), Ended::Drained);
}

#[tokio::test]
async fn the_first_signal_after_an_admin_drain_does_not_force_the_end() {
    let server = server(60_000, 60_000);
    let (_thread, admin) = admin(&server);
    let _running = running(&server).await;
    send(admin, "POST", "/admin/drain?wait=false", &[], b"").await;
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!server.served.is_finished());
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    assert_eq!(server.served.await.expect("it ends"), Ended::Forced);
}

/// Runs `octant drain` to its end.
async fn octant_drain(admin: String, wait: &'static str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
    command.env_clear().args(["drain", "--admin", &admin, "--wait", wait]);
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs")
}

#[tokio::test]
async fn the_drain_command_resolves_host_names_and_reports_the_outcome() {
    let server = server(0, 10_000);
    let (_thread, admin) = admin(&server);
    let mut stream = running(&server).await;
    let by_name = format!("localhost:{}", admin.port());
    let begun = octant_drain(by_name.clone(), "false").await;
    let said = String::from_utf8_lossy(&begun.stdout);
    assert!(begun.status.success() && said.contains("\"ready\":false"), "{begun:?}");
    let text = stream.until("data: [DONE]\n\n").await;
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    let done = octant_drain(by_name, "true").await;
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("\"phase\":\"drained\""), "{done:?}");
    server.signals.send(Signal::Terminate).await.expect("the server runs");
    assert_eq!(server.served.await.expect("it ends"), Ended::Drained);
    for nowhere in ["localhost:1", "localhost"] {
        let lost = octant_drain(nowhere.to_owned(), "true").await;
        let said = String::from_utf8_lossy(&lost.stderr);
        assert!(lost.status.code() == Some(1) && said.contains(nowhere), "{lost:?}");
    }
}
