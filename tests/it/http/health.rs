//! Health: what a reading means, and that probes are answered whatever the server is busy with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use octant::engine::Snapshot;
use octant::server::health::{ALIASES, Health, Probe, judge};
use octant::server::status::{Phase, Reading};
use octant::server::{ManagementPorts, ManagementThread, ServerStatus, Stage, management};
use serde_json::{Value, json};

use super::client::{Connection, send};
use super::house::{BOS, House, Plan, merged};
use crate::fake::FakeExecutor;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn side_ports(status: &Arc<ServerStatus>) -> (ManagementThread, SocketAddr, SocketAddr) {
    let ports = ManagementPorts { health: Some(LOCAL), admin: Some(LOCAL) };
    let side = management::start(ports, status).expect("ports are free");
    let (health, admin) = (side.ports.health.expect("bound"), side.ports.admin.expect("bound"));
    (side, health, admin)
}

/// A request on a connection that stays, without any runtime.
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

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nodelay(true).expect("it can be set");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it can be set");
    stream
}

/// A server at rest, its bound of a stall 30 s.
fn at_rest() -> Reading {
    Reading {
        stall_margin: Duration::from_secs(30),
        stage: Stage::Started,
        loaded: (10, 10),
        loading_since: None,
        phase: Phase::Serving,
        drained_by: None,
        open: 0,
        beat: Snapshot::default(),
    }
}

#[test]
fn what_a_reading_means() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let seconds = Duration::from_secs;
    let beat = |pending: Option<u64>, step: Option<u64>| Snapshot {
        pending_since: pending.map(at),
        last_step: step.map(at),
        ..Snapshot::default()
    };
    let with = |beat: Snapshot| Reading { beat, ..at_rest() };
    let slow = |beat: Snapshot| with(Snapshot { expected_step: seconds(100), ..beat });
    let stalled = |age: u64, bound: u64| Health::Stalled { age: seconds(age), bound: seconds(bound) };
    let failed = Snapshot { failed: Some("fire".to_owned()), ..beat(Some(0), None) };
    let loading = |done, since| Reading {
        stage: Stage::Loading,
        loaded: (done, 400),
        loading_since: Some(at(since)),
        ..at_rest()
    };
    let starting = |stage, percent, eta| Health::Starting { stage, percent, eta };
    let leaving = |beat| Reading { phase: Phase::Leaving, drained_by: Some(at(1040)), ..with(beat) };
    // At 1000 s: a reading, what it means, and whether startup, live and ready are told yes.
    let table = [
        ("at rest for ever", with(beat(None, None)), Health::Well, [true, true, true]),
        ("at rest after work", with(beat(None, Some(1))), Health::Well, [true, true, true]),
        ("new work after a rest", with(beat(Some(999), Some(1))), Health::Well, [true, true, true]),
        ("no step yet", with(beat(Some(970), None)), Health::Well, [true, true, true]),
        ("none for too long", with(beat(Some(969), None)), stalled(31, 30), [true, false, false]),
        ("steps go on", with(beat(Some(1), Some(990))), Health::Well, [true, true, true]),
        ("steps have ended", with(beat(Some(1), Some(900))), stalled(100, 30), [true, false, false]),
        ("a long step", slow(beat(Some(1), Some(900))), Health::Well, [true, true, true]),
        ("too long a step", slow(beat(Some(1), Some(800))), stalled(200, 130), [true, false, false]),
        ("from after now", with(beat(Some(2000), Some(2001))), Health::Well, [true, true, true]),
        ("failed", with(failed.clone()), Health::Failed("fire".to_owned()), [true, false, false]),
        (
            "leaving",
            leaving(beat(Some(1), Some(999))),
            Health::Draining { left: seconds(40) },
            [true, true, false],
        ),
        ("leaving, stalled", leaving(beat(Some(1), None)), stalled(999, 30), [true, false, false]),
        (
            "opening",
            Reading { stage: Stage::Opening, loaded: (0, 0), ..at_rest() },
            starting(Stage::Opening, 0.0, None),
            [false, true, false],
        ),
        ("nothing in", loading(0, 900), starting(Stage::Loading, 0.0, None), [false, true, false]),
        (
            "a quarter in",
            loading(100, 900),
            starting(Stage::Loading, 25.0, Some(seconds(300))),
            [false, true, false],
        ),
        (
            "all in",
            Reading { stage: Stage::Preparing, ..loading(400, 900) },
            starting(Stage::Preparing, 100.0, Some(Duration::ZERO)),
            [false, true, false],
        ),
    ];
    for (name, reading, health, answers) in table {
        let judged = judge(&reading, at(1000));
        assert_eq!(judged, health, "{name}");
        let probes = [Probe::Startup, Probe::Live, Probe::Ready];
        assert_eq!(probes.map(|probe| judged.answers(probe)), answers, "{name}");
    }
}

#[tokio::test]
async fn every_alias_answers_on_every_port() {
    let house = Plan::new().open();
    let (_side, health, admin) = side_ports(&house.status);
    for address in [house.address, health, admin] {
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
            assert_eq!(send(address, "GET", path, &[], b"").await.error(), (404, None, None), "{path}");
        }
    }
    assert_eq!(send(health, "POST", "/admin/drain", &[], b"").await.error().0, 404);
    let readme = include_str!("../../../deploy/README.md");
    for (path, _, whose) in ALIASES {
        let row = readme.lines().find(|line| line.contains(&format!("`{path}`")));
        assert!(row.is_some_and(|row| row.contains(whose)), "deploy/README.md lacks {path} of {whose}");
    }
}

#[test]
fn a_connection_says_when_it_answers_for_the_last_time() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (_side, health, admin) = side_ports(&status);
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
fn nobody_keeps_probes_out_by_saying_nothing() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (_side, health, _admin) = side_ports(&status);
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(health)).collect();
    let begun = Instant::now();
    assert_eq!(ask(&mut connect(health), "/livez").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}, as long as Kubernetes waits", begun.elapsed());
    drop(silent);
}

#[test]
fn starting_is_told_step_by_step() {
    let status = ServerStatus::new(Duration::from_secs(60));
    let (_side, health, admin) = side_ports(&status);
    let mut probe = connect(health);
    let mut told = |stage: &str, percent: f64, eta: bool| {
        assert_eq!(ask(&mut probe, "/livez").0, 200, "loading is living");
        assert_eq!(ask(&mut probe, "/readyz").0, 503);
        let (status, body) = ask(&mut probe, "/v1/health/startup");
        assert_eq!((status, &body["phase"], &body["percent"]), (503, &json!(stage), &json!(percent)));
        assert_eq!(body["eta_s"].is_number(), eta, "{body}");
    };
    told("opening_devices", 0.0, false);
    status.starting(Stage::Reading);
    told("reading_model", 0.0, false);
    status.starting(Stage::Loading);
    status.loading(0, 340_000_000_000);
    told("loading_weights", 0.0, false);
    status.loading(85_000_000_000, 340_000_000_000);
    told("loading_weights", 25.0, true);
    status.loading(340_000_000_000, 340_000_000_000);
    status.starting(Stage::Preparing);
    told("preparing_steps", 100.0, true);
    status.started(&Arc::default());
    assert_eq!(ask(&mut probe, "/startupz").0, 200);
    assert_eq!(ask(&mut probe, "/readyz").0, 200);
    // A browser's page may not ask for a drain; whoever else does need not wait until somebody begins it.
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
async fn a_stuck_engine_is_seen_while_every_worker_is_stuck_too() {
    let mut plan = Plan::new();
    plan.stalled_after = Duration::from_secs(1);
    let (executor, permits) = FakeExecutor::new(&plan.config).parrot(BOS).gated();
    let house = plan.over(executor);
    let (_side, health, _) = side_ports(&house.status);
    let begun = Instant::now();
    let mut connection = Connection::open(house.address).await;
    let body = json!({ "model": "parrot", "prompt": "abc", "max_tokens": 1 }).to_string();
    connection.request("POST", "/v1/completions", &[], body.as_bytes()).await;
    house.until(|stats| stats.in_flight == 1).await;
    // From here on nothing of the server runs: this thread is its only worker, and does not yield.
    let mut probe = connect(health);
    assert_eq!(ask(&mut probe, "/livez").0, 200, "a step may take its time");
    while ask(&mut probe, "/livez").0 == 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it flips");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(begun.elapsed() > Duration::from_secs(1), "not before its bound");
    let (status, body) = ask(&mut probe, "/readyz");
    assert_eq!((status, &body["phase"], &body["stall_bound_s"]), (503, &json!("stalled"), &json!(1.0)));
    // Whoever knows that steps take longer moves the bound.
    house.engine.heartbeat().expect_step(Duration::from_secs(60));
    assert_eq!(ask(&mut probe, "/livez").0, 200);
    house.engine.heartbeat().expect_step(Duration::ZERO);
    assert_eq!(ask(&mut probe, "/livez").0, 503);
    drop(permits);
    assert_eq!(connection.reply().await.status, 200);
    assert_eq!(ask(&mut probe, "/livez").0, 200);
}

/// What the probe is told of life while a request is answered: whether always yes, and the longest bound of a stall.
async fn life_during(house: &House, prompt: String) -> (bool, f64) {
    let (_side, health, _) = side_ports(&house.status);
    let mut connection = Connection::open(house.address).await;
    let body = json!({ "model": "parrot", "prompt": prompt, "max_tokens": 1 }).to_string();
    connection.request("POST", "/v1/completions", &[], body.as_bytes()).await;
    house.until(|stats| stats.counts.running == 1).await;
    let engine = house.engine.clone();
    let probed = tokio::task::spawn_blocking(move || {
        let (mut probe, mut always, mut bound) = (connect(health), true, 0.0_f64);
        while engine.stats().counts.running > 0 {
            let (status, body) = ask(&mut probe, "/livez");
            always &= status == 200;
            bound = bound.max(body["stall_bound_s"].as_f64().expect("a number"));
            std::thread::sleep(Duration::from_millis(3));
        }
        (always, bound)
    });
    assert_eq!(connection.reply().await.status, 200);
    probed.await.expect("no panic")
}

/// As on processors, where a step of a long prompt may take longer than what is a stall elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_step_is_no_stall_where_steps_have_been_seen() {
    let slow = |unknown_step| {
        let mut plan = Plan::new();
        plan.start.unknown_step = unknown_step;
        plan.stalled_after = Duration::from_millis(250);
        let executor = FakeExecutor::new(&plan.config).parrot(BOS).delay(Duration::from_millis(5));
        plan.over(executor.per_token(Duration::from_millis(7)))
    };
    // A step of 120 tokens takes 0.85 s. Whoever has seen none cannot know that, and needs to be told what to expect.
    let (always, bound) = life_during(&slow(Duration::ZERO), "y".repeat(119)).await;
    assert!(!always && bound == 0.25, "nothing is known: {bound}");
    let (always, bound) = life_during(&slow(Duration::from_secs(9)), "y".repeat(119)).await;
    assert!(always && bound == 9.25, "{bound}");
    // Short steps say how long a long one may be: so many times as long, at most.
    let house = slow(Duration::ZERO);
    let short = json!({ "max_tokens": 8, "ignore_eos": true });
    assert_eq!(house.complete("ab", short).await.status, 200);
    house.until_empty().await;
    let (always, bound) = life_during(&house, "y".repeat(119)).await;
    assert!(always, "it lives, within {bound} s");
    assert!((0.25 + 0.85..0.25 + 2.5).contains(&bound), "{bound}");
    // It is over, and a stall is again what it was for short steps.
    let (always, bound) = life_during(&house, "ab".to_owned()).await;
    assert!(always && bound < 0.8, "{bound}");
}

/// What comes back as it was sent: how long this machine takes for that is nothing of a server's.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).expect("a port is free");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("one comes");
        stream.set_nodelay(true).expect("it can be set");
        let mut buffer = [0; 64];
        while stream.read(&mut buffer).is_ok_and(|count| count > 0 && stream.write_all(&buffer).is_ok()) {}
    });
    address
}

/// Of all but the slowest hundredth, the slowest.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100 - 1]
}

/// The 99th percentiles of an echo and of probes on two connections, which must all be told yes.
fn round([control, main, side]: &mut [TcpStream; 3]) -> [Duration; 3] {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..300 {
        let start = Instant::now();
        control.write_all(&[0; 64]).expect("it is open");
        control.read_exact(&mut [0; 64]).expect("it comes back");
        times[0].push(start.elapsed());
        for (stream, times) in [&mut *main, &mut *side].into_iter().zip(&mut times[1..]) {
            let start = Instant::now();
            let live = ask(stream, "/health/live");
            times.push(start.elapsed());
            assert_eq!(live.0, 200, "{}", live.1);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    times.map(p99)
}

async fn queue_up(house: &House, requests: usize) -> Vec<Connection> {
    let more = json!({ "n": 128, "max_tokens": 400, "ignore_eos": true, "stream": true });
    let body = merged(json!({ "model": "parrot", "prompt": "abc" }), more).to_string();
    let mut connections = Vec::new();
    for _ in 0..requests.div_ceil(128) {
        let mut connection = Connection::open(house.address).await;
        connection.request("POST", "/v1/completions", &[], body.as_bytes()).await;
        connections.push(connection);
    }
    house.until(|stats| stats.counts.waiting >= requests).await;
    connections
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_in_the_queue_delay_no_probe() {
    let mut plan = Plan::new();
    (plan.config.max_queue_requests, plan.config.max_queue_tokens) = (20_000, 1 << 20);
    plan.stalled_after = Duration::from_secs(5);
    let executor = FakeExecutor::new(&plan.config).parrot(BOS).delay(Duration::from_millis(1));
    let house = plan.over(executor);
    let (_side, health, _) = side_ports(&house.status);
    let queued = queue_up(&house, 10_000).await;
    let (address, echo) = (house.address, echo());
    let measured = tokio::task::spawn_blocking(move || {
        let mut streams = [connect(echo), connect(address), connect(health)];
        // `benches/soak` measures the latency of probes against that of an echo and limits it.
        let [machine, main, side] = round(&mut streams);
        println!("p99: echo {machine:?}, probe on the main port {main:?}, on the health port {side:?}");
        ask(&mut streams[2], "/health/ready")
    });
    let (status, body) = measured.await.expect("no panic");
    assert_eq!(status, 200, "a long queue is no reason to send requests elsewhere: {body}");
    assert!(body["waiting"].as_u64() >= Some(10_000), "{body}");
    drop(queued);
}
