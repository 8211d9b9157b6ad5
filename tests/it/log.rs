//! The log of the binary: its form, and that it delays neither requests, nor probes, nor the end of the
//! process when it is not read.

mod aborts;

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use octant::stdio::{Log, LogFormat};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::simulation::binary::model;

const INSTRUCT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");
/// Longest wait for the start of a process.
const START: Duration = Duration::from_secs(60);
/// Longest wait for an answer, and for the end of a process that was told to end.
const SOON: Duration = Duration::from_secs(15);

/// Ports that are free when this returns.
fn free_ports() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// A running server with the streams of its test; killed when dropped.
struct Server {
    child: Child,
    main: SocketAddr,
    health: SocketAddr,
    _model: tempfile::TempDir,
}

impl Server {
    /// Starts the server with `more` arguments and the standard streams that `streams` sets, and waits until
    /// it is ready. `shell` is appended to the command in a shell, such as `2>&-`.
    fn start(more: &[&str], shell: &str, streams: impl FnOnce(&mut Command)) -> Self {
        let (model, [main, health]) = (model(), free_ports());
        let line = format!("exec {} \"$@\" {shell}", env!("CARGO_BIN_EXE_octant"));
        let mut command = Command::new("sh");
        command.args(["-c", &line, "sh", "serve", "--served-model-name", "m", "--model"]).arg(model.path());
        command.args(["--port", &main.port().to_string(), "--health-port", &health.port().to_string()]);
        command.args(["--device", "simulate", "--simulate-config", INSTRUCT, "--simulate-pace", "0"]);
        command.args(more).env_clear();
        streams(&mut command);
        let child = command.spawn().unwrap();
        let mut server = Self { child, main, health, _model: model };
        let end = Instant::now() + START;
        while !server.answers(health, "/health/ready") {
            assert!(server.child.try_wait().unwrap().is_none(), "the server has ended");
            assert!(Instant::now() < end, "the server does not become ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Whether a request for the path is answered with status 200.
    fn answers(&self, address: SocketAddr, path: &str) -> bool {
        exchange(address, &get(path, "close")).is_ok_and(|text| text.starts_with("HTTP/1.1 200 "))
    }

    /// Sends `count` requests for an unknown path over one connection, and asserts that each is answered.
    fn send_many(&self, count: usize) {
        let path = format!("/{}", "x".repeat(300));
        let all = [get(&path, "keep-alive").repeat(count - 1), get(&path, "close")].concat();
        let text = exchange(self.main, &all).unwrap();
        assert_eq!(text.matches("HTTP/1.1 404 ").count(), count);
    }

    /// Sends a chat request and returns its answer, head and body.
    fn chat(&self, id: &str, body: &str) -> String {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\nx-request-id: {id}\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.main,
            body.len()
        );
        exchange(self.main, &format!("{head}{body}")).unwrap()
    }

    /// Value of a metric without labels of its own.
    fn metric(&self, name: &str) -> f64 {
        let text = exchange(self.main, &get("/metrics", "close")).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until at least this number of lines was dropped.
    fn until_dropped(&self, lines: f64) {
        let end = Instant::now() + SOON;
        while self.metric("octant_log_lines_dropped_total") < lines {
            assert!(Instant::now() < end, "{} lines", self.metric("octant_log_lines_dropped_total"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for the end of the process.
    fn end(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + SOON;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the process does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn get(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\n\r\n")
}

/// Sends text and reads until the server closes the connection.
fn exchange(address: SocketAddr, text: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| (&stream).write_all(text.as_bytes()));
        let mut answer = String::new();
        (&stream).read_to_string(&mut answer)?;
        sent.join().unwrap()?;
        Ok(answer)
    })
}

/// A pipe that is full, so that its first writer would wait.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(b"\n").is_ok() {}
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer)
}

/// Lines that a full queue of the log cannot hold: each has 200 characters of its path and more.
const MORE_THAN_THE_QUEUE: usize = 4000;

#[test]
fn a_log_without_a_reader_stops_nothing() {
    let (reader, writer) = full_pipe();
    let mut server = Server::start(&["--drain-grace", "60"], "", |command| {
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
    });
    server.send_many(MORE_THAN_THE_QUEUE);
    let answer =
        server.chat("a", r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":3}"#);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for path in ["/health/live", "/health/ready", "/metrics"] {
        assert!(server.answers(server.main, path), "{path}");
    }
    assert!(server.answers(server.health, "/health/live"));
    server.until_dropped(100.0);
    server.signal();
    while server.answers(server.health, "/health/ready") {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(server.child.try_wait().unwrap().is_none(), "the grace period has not passed");
    server.signal();
    // It fails after `SOON`, long before the grace period ends.
    assert_eq!(server.end().code(), Some(0));
    drop(reader);
}

#[test]
fn a_reader_that_comes_back_gets_whole_lines_and_the_number_of_lost_ones() {
    let (reader, writer) = full_pipe();
    let mut server = Server::start(&["--drain-grace", "0", "--log-format", "json"], "", |command| {
        command.stderr(writer);
    });
    server.send_many(MORE_THAN_THE_QUEUE);
    let lost = server.metric("octant_log_lines_dropped_total");
    let reading = std::thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map(Result::unwrap).filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    });
    // The log catches up before the next request.
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.answers(server.main, "/v1/models"));
    server.signal();
    assert_eq!(server.end().code(), Some(0));
    let lines: Vec<Value> = reading.join().unwrap();
    let reported: f64 = lines.iter().filter_map(|line| line["lines"].as_f64()).sum();
    assert!(lost > 0.0 && reported >= lost, "{reported} of {lost}");
    let requests =
        lines.iter().filter(|line| line["path"].as_str().is_some_and(|path| path.starts_with("/xxx")));
    assert_eq!(requests.count() as f64 + reported, MORE_THAN_THE_QUEUE as f64);
    assert!(lines.iter().any(|line| line["path"] == "/v1/models"), "the line after the stall");
}

#[test]
fn unwritable_streams_do_not_stop_a_server() {
    for shell in ["2>/dev/full", ">/dev/full 2>&1", "2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let mut server = Server::start(&["--drain-grace", "0"], shell, |command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        });
        server.send_many(20);
        if shell.contains("/dev/full") {
            server.until_dropped(20.0);
        }
        // A socket as descriptor 1 or 2 would receive the log.
        for descriptor in 0..3 {
            let path = format!("/proc/{}/fd/{descriptor}", server.child.id());
            let file = std::fs::read_link(path).unwrap();
            assert!(file.starts_with("/dev/"), "{shell}: descriptor {descriptor} is {}", file.display());
        }
        server.signal();
        assert_eq!(server.end().code(), Some(0), "{shell}");
    }
}

#[test]
fn a_reader_that_closes_does_not_stop_a_server() {
    let (reader, writer) = pipe().unwrap();
    let mut server = Server::start(&["--drain-grace", "0"], "", |command| {
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
    });
    drop(reader);
    server.send_many(50);
    assert!(server.answers(server.main, "/health/live"));
    server.until_dropped(50.0);
    server.signal();
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn a_failed_start_ends_although_its_error_has_no_reader() {
    let (reader, writer) = full_pipe();
    for (args, status) in [
        (&["serve", "--model", "/nowhere"][..], 1),
        (&["serve", "--model", "/nowhere", "--port", "70000"], 2),
        (&["serve", "--model", "/nowhere", "--config", "/nowhere.toml"], 2),
        (&["plan", "--config", "/nowhere"], 1),
        (&["nonsense"], 2),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command.args(args).env_clear().stdout(Stdio::null()).stderr(writer.try_clone().unwrap());
        assert_eq!(wait(&mut command.spawn().unwrap()).code(), Some(status), "{args:?}");
    }
    drop(reader);
}

/// Runs a command in a shell, with the binary as `$0`.
fn shell(script: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_octant")]).output().unwrap()
}

#[test]
fn a_result_without_a_reader_is_no_panic() {
    let plan = format!("\"$0\" plan --config {INSTRUCT} --tp 8 --gpu h100-80gb");
    let simulate =
        format!("\"$0\" simulate --config {INSTRUCT} --poisson 3 --requests 3 --answer-tokens 5:0");
    for (command, needs_reader) in [(&*plan, true), ("\"$0\" doctor", true), (&simulate, true)] {
        let closed = shell(&format!("({command}; echo status $? >&2) | true"));
        let text = String::from_utf8_lossy(&closed.stderr);
        assert!(text.contains("status 0") && !text.contains("panicked"), "{command}: {text}");
        let full = shell(&format!("{command} >/dev/full"));
        let text = String::from_utf8_lossy(&full.stderr);
        let says = text.contains("error: standard output: No space left on device");
        assert!(full.status.code() == Some(1) && says == needs_reader, "{command}: {text}");
    }
}

/// Serves a few requests with `more` arguments, ends the server, and returns its log.
fn log_of_requests(more: &[&str]) -> Vec<String> {
    let (reader, writer) = pipe().unwrap();
    let reading = std::thread::spawn(move || BufReader::new(reader).lines().map(Result::unwrap).collect());
    let more = [&["--drain-grace", "0", "--api-key", "sesame"][..], more].concat();
    let mut server = Server::start(&more, "", |command| _ = command.stderr(writer));
    let body = r#"{"model":"m","messages":[{"role":"user","content":"plugh"}],"max_tokens":3}"#;
    assert!(server.chat("no-key", body).starts_with("HTTP/1.1 401 "));
    assert!(exchange(server.main, "nonsense\r\n\r\n").unwrap().starts_with("HTTP/1.1 400 "));
    assert!(server.answers(server.main, "/health/live"));
    server.signal();
    assert_eq!(server.end().code(), Some(0));
    reading.join().unwrap()
}

#[test]
fn every_line_of_text_begins_with_a_timestamp() {
    let lines = log_of_requests(&[]);
    for line in &lines {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && rest.contains(" octant::"), "{line}");
    }
    let text = lines.join("\n");
    for part in ["model       m", "capacity ", "ready in", "stopped", "health      http://127.0.0.1:"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let refused = r#"method="POST" path="/v1/chat/completions" status=401 code="invalid_api_key""#;
    assert_eq!(text.matches(refused).count(), 1, "{text}");
    assert!(!text.contains("plugh") && !text.contains("/health/live"), "{text}");
}

#[test]
fn every_line_of_json_is_an_object() {
    let lines = log_of_requests(&["--log-format", "json", "--log-level", "trace"]);
    assert!(lines.iter().all(|line| !line.contains("plugh") && !line.contains("sesame")), "{lines:#?}");
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    for line in &lines {
        assert!(line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert!(["level", "message", "target"].iter().all(|name| line[name].is_string()), "{line}");
    }
    let requests: Vec<&Value> = lines.iter().filter(|line| line["message"] == "request").collect();
    let about = |path: &str| requests.iter().filter(|line| line["path"] == path).collect::<Vec<_>>();
    let refused = about("/v1/chat/completions");
    assert_eq!(refused.len(), 1, "{requests:?}");
    assert_eq!((&refused[0]["level"], &refused[0]["status"]), (&"INFO".into(), &401.into()));
    assert_eq!(refused[0]["request_id"], "no-key");
    assert!(about("/health/live").iter().all(|line| line["level"] == "DEBUG" && line["status"] == 200));
    assert!(!about("/health/live").is_empty());
    let malformed = requests.iter().filter(|line| line["path"].is_null() && line["status"] == 400);
    assert_eq!(malformed.count(), 1, "{requests:?}");
}

#[test]
fn an_error_of_the_start_is_a_line_of_the_log() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        let output = command.args(["serve", "--model", "/nowhere"]).args(args).env_clear().output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = run(&[]);
    assert!(status == Some(1) && text.contains(" ERROR ") && text.contains("/nowhere"), "{text}");
    let (_, text) = run(&["--log-format", "json"]);
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(line["level"] == "ERROR" && line["message"].as_str().unwrap().contains("/nowhere"), "{line}");
    let (status, text) = run(&["--log-level", "off"]);
    assert!(status == Some(1) && text.starts_with("error: ") && text.lines().count() == 1, "{text}");
}

#[test]
fn an_invalid_level_or_format_is_refused() {
    let run = |name: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        let output = command.arg("doctor").env_clear().env(name, value).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (name, value, parts) in [
        ("OCTANT_LOG", "verbose", ["--log-level", "expected off, error, warn, info, debug or trace"]),
        ("OCTANT_LOG", "octant=loud", ["--log-level", "`loud`"]),
        ("OCTANT_LOG_FORMAT", "xml", ["OCTANT_LOG_FORMAT", "possible values: text, json"]),
    ] {
        let (status, text) = run(name, value);
        assert!(status == Some(2) && parts.iter().all(|part| text.contains(part)), "{name}={value}: {text}");
    }
    for value in ["", "debug", "WARN", "octant::server=debug,error"] {
        assert_eq!(run("OCTANT_LOG", value).0, Some(0), "{value}");
    }
}

#[test]
fn a_log_file_gets_the_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut server = Server::start(&["--drain-grace", "0"], "", |command| {
        command.stderr(File::create(&path).unwrap());
    });
    server.send_many(2000);
    server.signal();
    assert_eq!(server.end().code(), Some(0));
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches("status=404").count(), 2000);
    assert!(text.trim_end().lines().last().unwrap().contains("stopped"), "{text}");
}

/// Variable of a test that runs again as a process of its own: the format and the level of its log.
const OWN_LOG: &str = "OCTANT_TEST_LOG";

/// The log of this test's own process, which logs an event and panics.
fn log_of_a_panic(test: &str, format_and_level: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(OWN_LOG, format_and_level);
    let output = command.output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_event_with_line_breaks_and_a_panic_are_one_line_each() {
    if let Ok(settings) = std::env::var(OWN_LOG) {
        let (format, level) = settings.split_once(' ').unwrap();
        let log = Log::start();
        let format = if format == "json" { LogFormat::Json } else { LogFormat::Text };
        log.subscribe(format, level.parse().unwrap());
        tracing::info!("a\nb\r\n");
        assert!(std::panic::catch_unwind(|| panic!("two\nlines and a \"quote\"")).is_err());
        return;
    }
    let log_of = |settings: &str| {
        log_of_a_panic("log::an_event_with_line_breaks_and_a_panic_are_one_line_each", settings)
    };
    let text = log_of("text info");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].ends_with("a\\nb\\r\\n"), "{text}");
    assert!(lines[1].contains("ERROR") && lines[1].contains("two\\nlines"), "{text}");
    let text = log_of("json error");
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["message"], "a thread panicked: two\nlines and a \"quote\"");
    let location = line["location"].as_str().unwrap();
    assert!(location.contains("log.rs") && line["thread"].is_string(), "{line}");
    assert!(log_of("json off").contains("panicked at"), "a panic is never silent");
}
