//! Health checks: the health for each status, and answers to probes whatever the server is busy with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use octant::engine::Snapshot;
use octant::server::health::{ALIASES, Health, Probe, assess};
use octant::server::status::{ShutdownPhase, StatusSnapshot};
use octant::server::{ManagementPorts, ManagementThread, ServerStatus, Stage, management};
use serde_json::{Value, json};

use super::client::{Connection, send};
use super::test_server::{BOS, Setup, TestServer, merged};
use crate::HANG_GUARD;
use crate::fake::FakeExecutor;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn management_ports(status: &Arc<ServerStatus>) -> (ManagementThread, SocketAddr, SocketAddr) {
    let ports = ManagementPorts { health: vec![LOCAL], admin: vec![LOCAL] };
    let thread = management::start(ports, status).expect("ports are free");
    let (health, admin) = (thread.ports.health[0], thread.ports.admin[0]);
    (thread, health, admin)
}

/// Sends a GET on a kept connection, without an async runtime. Returns status and body.
fn ask(stream: &mut TcpStream, path: &str) -> (u16, Value) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it is open");
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).expect("it answers in time");
        assert!(count > 0, "the connection ended");
        bytes.extend_from_slice(&buffer[..count]);
        let text = std::str::from_utf8(&bytes).expect("text");
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if body.len() == length.parse::<usize>().expect("a number") {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            return (status.expect("a status"), serde_json::from_str(body).expect("JSON"));
        }
    }
}

/// Time after which a read fails the test.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nodelay(true).expect("it can be set");
    stream.set_read_timeout(Some(READ_TIMEOUT)).expect("it can be set");
    stream
}

/// The status of an idle server that counts as stalled after 30 s.
fn idle() -> StatusSnapshot {
    StatusSnapshot {
        stall_margin: Duration::from_secs(30),
        stage: Stage::Started,
        bytes_loaded: 10,
        bytes_total: 10,
        loading_since: None,
        phase: ShutdownPhase::Serving,
        drained_by: None,
        open_requests: 0,
        engine: Snapshot::default(),
    }
}

#[test]
fn health_follows_from_the_status_snapshot() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let seconds = Duration::from_secs;
    let engine = |pending: Option<u64>, step: Option<u64>| Snapshot {
        pending_since: pending.map(at),
        last_step: step.map(at),
        ..Snapshot::default()
    };
    let with = |engine: Snapshot| StatusSnapshot { engine, ..idle() };
    let slow = |engine: Snapshot| with(Snapshot { expected_step: seconds(100), ..engine });
    let stalled = |age: u64, bound: u64| Health::Stalled { age: seconds(age), bound: seconds(bound) };
    let failed = Snapshot { failed: Some("fire".to_owned()), ..engine(Some(0), None) };
    let loading = |done, since| StatusSnapshot {
        stage: Stage::Loading,
        bytes_loaded: done,
        bytes_total: 400,
        loading_since: Some(at(since)),
        ..idle()
    };
    let starting = |stage, percent, eta| Health::Starting { stage, percent, eta };
    let draining =
        |engine| StatusSnapshot { phase: ShutdownPhase::Grace, drained_by: Some(at(1040)), ..with(engine) };
    // Name, status, its health at 1000 s, and whether the startup, live and ready probes pass.
    let table = [
        ("idle from the start", with(engine(None, None)), Health::Healthy, [true, true, true]),
        ("idle after work", with(engine(None, Some(1))), Health::Healthy, [true, true, true]),
        ("new work after idle time", with(engine(Some(999), Some(1))), Health::Healthy, [true, true, true]),
        ("no step yet", with(engine(Some(970), None)), Health::Healthy, [true, true, true]),
        ("no step for too long", with(engine(Some(969), None)), stalled(31, 30), [true, false, false]),
        ("steps end", with(engine(Some(1), Some(990))), Health::Healthy, [true, true, true]),
        ("steps have stopped", with(engine(Some(1), Some(900))), stalled(100, 30), [true, false, false]),
        ("a long step", slow(engine(Some(1), Some(900))), Health::Healthy, [true, true, true]),
        ("too long a step", slow(engine(Some(1), Some(800))), stalled(200, 130), [true, false, false]),
        ("times after now", with(engine(Some(2000), Some(2001))), Health::Healthy, [true, true, true]),
        ("failed", with(failed.clone()), Health::Failed("fire".to_owned()), [true, false, false]),
        (
            "draining",
            draining(engine(Some(1), Some(999))),
            Health::Draining { left: seconds(40) },
            [true, true, false],
        ),
        ("draining, stalled", draining(engine(Some(1), None)), stalled(999, 30), [true, false, false]),
        (
            "opening",
            StatusSnapshot { stage: Stage::Opening, bytes_loaded: 0, bytes_total: 0, ..idle() },
            starting(Stage::Opening, 0.0, None),
            [false, true, false],
        ),
        ("nothing loaded", loading(0, 900), starting(Stage::Loading, 0.0, None), [false, true, false]),
        (
            "a quarter loaded",
            loading(100, 900),
            starting(Stage::Loading, 25.0, Some(seconds(300))),
            [false, true, false],
        ),
        (
            "all loaded",
            StatusSnapshot { stage: Stage::Preparing, ..loading(400, 900) },
            starting(Stage::Preparing, 100.0, Some(Duration::ZERO)),
            [false, true, false],
        ),
    ];
    for (name, status, expected, passes) in table {
        let health = assess(&status, at(1000));
        assert_eq!(health, expected, "{name}");
        let probes = [Probe::Startup, Probe::Live, Probe::Ready];
        assert_eq!(probes.map(|probe| health.passes(probe)), passes, "{name}");
    }
}

#[tokio::test]
async fn every_alias_answers_on_every_port() {
    let server = Setup::new().launch();
    let (_thread, health, admin) = management_ports(&server.status);
    for address in [server.address, health, admin] {
        for (path, probe, _) in ALIASES {
            let reply = send(address, "GET", path, &[], b"").await;
            let status = match probe {
                Probe::Startup => "started",
                Probe::Live => "live",
                Probe::Ready => "ready",
            };
            assert_eq!((reply.status, &reply.json()["status"]), (200, &json!(status)), "{path}");
            assert_eq!(reply.json()["object"], "health.response");
            let head = send(address, "HEAD", path, &[("connection", "close")], b"").await;
            assert_eq!((head.status, head.header("cache-control")), (200, Some("no-store")), "{path}");
            assert_eq!(send(address, "POST", path, &[], b"").await.error().0, 405, "{path}");
        }
    }
    for address in [health, admin] {
        for path in ["/", "/v1/models", "/metrics", "/health/"] {
            let reply = send(address, "GET", path, &[], b"").await;
            assert_eq!(reply.error(), (404, None, None), "{path}");
            assert!(!reply.text().contains("/docs"), "this port has no page /docs: {}", reply.text());
        }
    }
    assert_eq!(send(health, "POST", "/admin/drain", &[], b"").await.error().0, 404);
    let readme = include_str!("../../../deploy/README.md");
    for (path, _, used_by) in ALIASES {
        let row = readme.lines().find(|line| line.contains(&format!("`{path}`")));
        assert!(row.is_some_and(|row| row.contains(used_by)), "deploy/README.md lacks {path} of {used_by}");
    }
}

#[test]
fn the_health_port_announces_the_end_of_a_connection() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (_thread, health, admin) = management_ports(&status);
    let mut kept = connect(admin);
    (0..1010).for_each(|_| assert_eq!(ask(&mut kept, "/livez").0, 200));
    let mut probe = connect(health);
    (0..999).for_each(|_| assert_eq!(ask(&mut probe, "/livez").0, 200));
    probe.write_all(b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n").expect("it is open");
    let mut last = String::new();
    probe.read_to_string(&mut last).expect("it ends without a reset");
    assert!(last.starts_with("HTTP/1.1 200") && last.contains("connection: close"), "{last}");
}

#[test]
fn silent_connections_do_not_block_the_health_port() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (_thread, health, _admin) = management_ports(&status);
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(health)).collect();
    // The port takes 64 connections at once, and a silent one times out after 5 s. A port that waited for
    // that three times would answer after `READ_TIMEOUT`.
    assert_eq!(ask(&mut connect(health), "/livez").0, 200);
    drop(silent);
}

#[test]
fn probes_report_the_progress_of_startup() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (_thread, health, admin) = management_ports(&status);
    let mut probe = connect(health);
    let mut expect = |stage: &str, percent: f64, eta: bool| {
        assert_eq!(ask(&mut probe, "/livez").0, 200, "a server that loads weights is live");
        assert_eq!(ask(&mut probe, "/readyz").0, 503);
        let (status, body) = ask(&mut probe, "/v1/health/startup");
        assert_eq!((status, &body["phase"], &body["percent"]), (503, &json!(stage), &json!(percent)));
        assert_eq!(body["eta_s"].is_number(), eta, "{body}");
    };
    expect("opening_devices", 0.0, false);
    status.starting(Stage::Downloading);
    expect("downloading_model", 0.0, false);
    status.loading(3_000, 4_000);
    expect("downloading_model", 75.0, true);
    status.starting(Stage::Reading);
    expect("reading_model", 0.0, false);
    status.starting(Stage::Loading);
    expect("loading_weights", 0.0, false);
    status.loading(0, 340_000_000_000);
    expect("loading_weights", 0.0, false);
    status.loading(85_000_000_000, 340_000_000_000);
    expect("loading_weights", 25.0, true);
    status.loading(340_000_000_000, 340_000_000_000);
    status.starting(Stage::Preparing);
    expect("preparing_steps", 100.0, true);
    status.started(&Arc::default());
    assert_eq!(ask(&mut probe, "/startupz").0, 200);
    assert_eq!(ask(&mut probe, "/readyz").0, 200);
    // A web page may not request a drain. Other clients may, and readiness is down at once, although no
    // server runs the drain here.
    for (origin, status) in [("origin: http://evil.example\r\n", 400), ("", 200)] {
        let mut early = connect(admin);
        let head =
            format!("POST /admin/drain?wait=false HTTP/1.1\r\nhost: x\r\n{origin}connection: close\r\n\r\n");
        early.write_all(head.as_bytes()).expect("open");
        let mut text = String::new();
        early.read_to_string(&mut text).expect("text");
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
        assert_eq!(ask(&mut probe, "/readyz").0, if status == 200 { 503 } else { 200 });
    }
}

#[tokio::test]
async fn the_health_port_reports_a_stall_while_all_workers_are_blocked() {
    let mut setup = Setup::new();
    setup.stall_margin = Duration::from_secs(1);
    let (executor, permits) = FakeExecutor::new(&setup.config).parrot(BOS).gated();
    let server = setup.launch_with(executor);
    let (_thread, health, _) = management_ports(&server.status);
    let begun = Instant::now();
    let mut connection = Connection::open(server.address).await;
    let body = json!({ "model": "parrot", "prompt": "abc", "max_tokens": 1 }).to_string();
    connection.request("POST", "/v1/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.in_flight == 1).await;
    // From here on no task of the server runs: this thread is the runtime's only worker, and it does not
    // yield.
    let mut probe = connect(health);
    assert_eq!(ask(&mut probe, "/livez").0, 200, "a step may take some time");
    while ask(&mut probe, "/livez").0 == 200 {
        assert!(begun.elapsed() < HANG_GUARD, "the probe fails in the end");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(begun.elapsed() > Duration::from_secs(1), "not before the bound");
    let (status, body) = ask(&mut probe, "/readyz");
    assert_eq!((status, &body["phase"], &body["stall_bound_s"]), (503, &json!("stalled"), &json!(1.0)));
    // The bound moves with the expected duration of a step.
    server.engine.heartbeat().expect_step(Duration::from_secs(60));
    assert_eq!(ask(&mut probe, "/livez").0, 200);
    server.engine.heartbeat().expect_step(Duration::ZERO);
    assert_eq!(ask(&mut probe, "/livez").0, 503);
    drop(permits);
    assert_eq!(connection.reply().await.status, 200);
    assert_eq!(ask(&mut probe, "/livez").0, 200);
}

/// Runs a request and probes liveness meanwhile. Returns whether every probe passed, and the longest stall
/// bound in seconds.
async fn liveness_during(server: &TestServer, prompt: String) -> (bool, f64) {
    let (_thread, health, _) = management_ports(&server.status);
    let mut connection = Connection::open(server.address).await;
    let body = json!({ "model": "parrot", "prompt": prompt, "max_tokens": 1 }).to_string();
    connection.request("POST", "/v1/completions", &[], body.as_bytes()).await;
    server.until(|stats| stats.counts.running == 1).await;
    let engine = server.engine.clone();
    let probed = tokio::task::spawn_blocking(move || {
        let (mut probe, mut all_passed, mut bound) = (connect(health), true, 0.0_f64);
        while engine.stats().counts.running > 0 {
            let (status, body) = ask(&mut probe, "/livez");
            all_passed &= status == 200;
            bound = bound.max(body["stall_bound_s"].as_f64().expect("a number"));
            std::thread::sleep(Duration::from_millis(3));
        }
        (all_passed, bound)
    });
    assert_eq!(connection.reply().await.status, 200);
    probed.await.expect("no panic")
}

/// On a CPU, a step with a long prompt can take longer than `--stall-timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_step_is_no_stall_once_step_times_are_known() {
    let slow = |unknown_step| {
        let mut setup = Setup::new();
        setup.start.unknown_step = unknown_step;
        setup.stall_margin = Duration::from_millis(250);
        let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(5));
        setup.launch_with(executor.per_token(Duration::from_millis(7)))
    };
    // A step of 120 tokens takes 0.85 s. While the server knows no step time, a step may take `unknown_step`
    // longer than the stall timeout.
    let (live, bound) = liveness_during(&slow(Duration::ZERO), "y".repeat(119)).await;
    assert!(!live && bound == 0.25, "{bound}");
    let (live, bound) = liveness_during(&slow(Duration::from_secs(9)), "y".repeat(119)).await;
    assert!(live && bound == 9.25, "{bound}");
    // After short steps, a step of n times their tokens may take at most n times as long.
    let server = slow(Duration::ZERO);
    let short = json!({ "max_tokens": 8, "ignore_eos": true });
    assert_eq!(server.complete("ab", short).await.status, 200);
    server.until_empty().await;
    let (live, bound) = liveness_during(&server, "y".repeat(119)).await;
    assert!(live, "live within {bound} s");
    assert!((0.25 + 0.85..0.25 + 2.5).contains(&bound), "{bound}");
    // After the long step the bound is again that of short steps.
    let (live, bound) = liveness_during(&server, "ab".to_owned()).await;
    assert!(live && bound < 0.8, "{bound}");
}

/// Starts an echo server, whose round trips are the time that this machine takes without any work by a
/// server.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).expect("a port is free");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        stream.set_nodelay(true).expect("it can be set");
        let mut buffer = [0; 64];
        while stream.read(&mut buffer).is_ok_and(|count| count > 0 && stream.write_all(&buffer).is_ok()) {}
    });
    address
}

/// 99th percentile.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100 - 1]
}

/// Measures 300 echoes on the first connection and 300 probes on each of the other two. Returns the 99th
/// percentile of each connection's response times. All probes must pass.
fn measure([control, main, health]: &mut [TcpStream; 3]) -> [Duration; 3] {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..300 {
        let start = Instant::now();
        control.write_all(&[0; 64]).expect("it is open");
        control.read_exact(&mut [0; 64]).expect("the echo returns");
        times[0].push(start.elapsed());
        for (stream, times) in [&mut *main, &mut *health].into_iter().zip(&mut times[1..]) {
            let start = Instant::now();
            let live = ask(stream, "/health/live");
            times.push(start.elapsed());
            assert_eq!(live.0, 200, "{}", live.1);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    times.map(p99)
}

/// Fills the queue with at least this many requests.
async fn fill_queue(server: &TestServer, requests: usize) -> Vec<Connection> {
    let more = json!({ "n": 128, "max_tokens": 400, "ignore_eos": true, "stream": true });
    let body = merged(json!({ "model": "parrot", "prompt": "abc" }), more).to_string();
    let mut connections = Vec::new();
    for _ in 0..requests.div_ceil(128) {
        let mut connection = Connection::open(server.address).await;
        connection.request("POST", "/v1/completions", &[], body.as_bytes()).await;
        connections.push(connection);
    }
    server.until(|stats| stats.counts.waiting >= requests).await;
    connections
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_queued_requests_delay_no_probe() {
    let mut setup = Setup::new();
    (setup.config.max_queue_requests, setup.config.max_queue_tokens) = (20_000, 1 << 20);
    setup.stall_margin = Duration::from_secs(5);
    let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(Duration::from_millis(1));
    let server = setup.launch_with(executor);
    let (_thread, health, _) = management_ports(&server.status);
    let queued = fill_queue(&server, 10_000).await;
    let (address, echo) = (server.address, echo());
    let measured = tokio::task::spawn_blocking(move || {
        let mut streams = [connect(echo), connect(address), connect(health)];
        // `benches/soak` measures the latency of probes against that of an echo and limits it.
        let [echo, main, health] = measure(&mut streams);
        println!("p99: echo {echo:?}, probe on the main port {main:?}, on the health port {health:?}");
        ask(&mut streams[2], "/health/ready")
    });
    let (status, body) = measured.await.expect("no panic");
    assert_eq!(status, 200, "a long queue is no reason to send requests elsewhere: {body}");
    assert!(body["waiting"].as_u64() >= Some(10_000), "{body}");
    drop(queued);
}
