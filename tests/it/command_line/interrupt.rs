//! Ctrl-C and SIGTERM, sent to a server process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::HANG_GUARD;

/// A server over simulated GPUs, with the settings' own defaults.
struct Server {
    process: Child,
    log: BufReader<ChildStderr>,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        std::fs::copy(data.join("golden/nemotron/config.json"), dir.path().join("config.json")).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            std::fs::copy(data.join("text/byte_level").join(name), dir.path().join(name)).unwrap();
        }
        let mut process = Command::new(env!("CARGO_BIN_EXE_octant"))
            .arg("serve")
            .arg(dir.path())
            .args(["--port", "0", "--device", "simulate", "-tp", "1", "--served-model-name", "m"])
            .args(args)
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let line = line_with(&mut log, "ready in");
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
        Self { process, log, port, _dir: dir }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Waits for the end, and returns the time that it took.
    fn end(mut self) -> Duration {
        let start = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            if start.elapsed() > HANG_GUARD {
                self.process.kill().unwrap();
                self.process.wait().unwrap();
                panic!("the server did not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.process.wait().unwrap().success());
        start.elapsed()
    }
}

/// Reads lines up to one with this part.
fn line_with(log: &mut impl BufRead, part: &str) -> String {
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        if line.contains(part) {
            return line;
        }
        line.clear();
    }
    panic!("the log ended without `{part}`")
}

/// A stream whose first bytes have arrived, and whose answer does not end soon.
fn stream(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let body = r#"{"model":"m","prompt":"a","stream":true,"max_tokens":200,"ignore_eos":true}"#;
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

#[test]
fn ctrl_c_ends_an_idle_server_at_once() {
    // A server that waited for load balancers would not end before the guard of this test.
    let server = Server::start(&["--host", "localhost", "--drain-grace", "600"]);
    // A connection that is kept open and idle, as a browser does, delays nothing.
    let _idle = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    server.signal(Signal::INT);
    server.end();
}

#[test]
fn a_signal_ends_a_start_that_waits_for_a_name() {
    // This library takes the place of the system's lookup, like a name server that does not answer.
    let lookup = "#include <unistd.h>\n
        int getaddrinfo(void) { write(2, \"looking up\\n\", 11); for (;;) pause(); }";
    let built = tempfile::tempdir().unwrap();
    let (source, library) = (built.path().join("lookup.c"), built.path().join("lookup.so"));
    std::fs::write(&source, lookup).unwrap();
    let compiler = std::env::var("CC").unwrap_or("cc".to_owned());
    let mut compile = Command::new(compiler);
    compile.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
    assert!(compile.status().unwrap().success());
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = Command::new(env!("CARGO_BIN_EXE_octant"))
            .args(["serve", "--model", &super::tiny(), "--port", "0", "--host", "a-slow-name"])
            .env_clear()
            .env("LD_PRELOAD", &library)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut server = Server { process, log, port: 0, _dir: tempfile::tempdir().unwrap() };
        line_with(&mut server.log, "looking up");
        server.signal(signal);
        server.end();
    }
}

#[test]
fn a_second_ctrl_c_ends_a_server_with_open_requests() {
    // The module that logs the port has a level of its own.
    for level in ["info", "error,octant::commands=info", "off,octant=off,octant::commands=info"] {
        // Simulated steps of 1,000 times their length: the stream would take minutes.
        let pace = ["--simulate-pace", "1000", "--drain-timeout", "600"];
        let mut server = Server::start(&[&pace[..], &["--log-level", level]].concat());
        let _open = stream(server.port);
        let _other = stream(server.port);
        server.signal(Signal::INT);
        let line = line_with(&mut server.log, "requests are open");
        assert!(
            line.contains("2 requests are open and may finish; press Ctrl-C again to end the server now"),
            "{level}: {line}"
        );
        assert!(server.process.try_wait().unwrap().is_none());
        server.signal(Signal::INT);
        server.end();
    }
}

#[test]
fn open_requests_finish_after_one_ctrl_c() {
    let mut server = Server::start(&["--simulate-pace", "100"]);
    let mut open = stream(server.port);
    server.signal(Signal::INT);
    let line = line_with(&mut server.log, "request is open");
    assert!(line.contains("1 request is open"), "{line}");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert!(text.contains("data: [DONE]"), "{text}");
    server.end();
}

#[test]
fn sigterm_keeps_its_grace_period_for_load_balancers() {
    let server = Server::start(&["--drain-grace", "1s"]);
    server.signal(Signal::TERM);
    let took = server.end();
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn localhost_is_every_address_of_that_name() {
    let server = Server::start(&["--host", "localhost"]);
    let addresses = std::net::ToSocketAddrs::to_socket_addrs(&("localhost", server.port)).unwrap();
    let mut answered = 0;
    for address in addresses {
        // The machine may not have IPv6 although the name stands for an IPv6 address too.
        if std::net::TcpListener::bind((address.ip(), 0)).is_ok() {
            TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            answered += 1;
        }
    }
    assert!(answered > 0);
    server.signal(Signal::INT);
    server.end();
}
