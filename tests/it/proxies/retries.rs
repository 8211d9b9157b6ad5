//! Retries by the proxies with the configuration files in `deploy/`: a proxy sends a request to another
//! server only if the first has not started it, or as often as its file allows.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{Process, Starter, exchange, free_ports, get, haproxy, installed, nginx, until};

/// Behaviour of a scripted server for every POST.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    /// Responds with 200.
    Answer,
    /// Responds with 503, as a server that drains.
    Refuse,
    /// Responds with 500, as a server whose engine has failed.
    Fail,
    /// Reads the whole request and closes the connection, as a server whose process crashes.
    Die,
    /// The same as `Die`, after 4 s.
    DieLate,
}

/// A scripted server, which counts its POSTs. It responds to GET with 200, so that health checks pass.
struct Scripted {
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl Scripted {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(stream, behaviour, &count));
            }
        });
        Self { port, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Serves one request of a connection. Returns `None` if no response was sent.
fn serve(mut stream: TcpStream, behaviour: Behaviour, asked: &AtomicUsize) -> Option<()> {
    let mut bytes = Vec::new();
    let (head, rest) = loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&more[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            break (head, bytes.len() - end - 4);
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or(0) - rest.min(length.unwrap_or(0))];
    stream.read_exact(&mut body).ok()?;
    let is_check = head.starts_with("get ");
    if !is_check {
        asked.fetch_add(1, Ordering::Relaxed);
    }
    let status = match behaviour {
        Behaviour::Answer => "200 OK",
        _ if is_check => "200 OK",
        Behaviour::Refuse => "503 Service Unavailable",
        Behaviour::Fail => "500 Internal Server Error",
        Behaviour::Die => return None,
        Behaviour::DieLate => {
            std::thread::sleep(Duration::from_secs(4));
            return None;
        }
    };
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    stream.write_all(answer.as_bytes()).ok()
}

/// A proxy in front of two scripted servers.
struct ProxiedServers {
    _proxy: Process,
    _dir: TempDir,
    port: u16,
    servers: [Scripted; 2],
}

impl ProxiedServers {
    fn new(name: &str, start: Starter, behaviour: [Behaviour; 2]) -> Option<Self> {
        let program = installed(name)?;
        let dir = TempDir::new().unwrap();
        let servers = behaviour.map(Scripted::start);
        let [port] = free_ports();
        let ports = [0, 1].map(|i: usize| [servers[i].port; 3]);
        let proxy = start(&program, dir.path(), port, ports);
        until("the proxy serves", || get(port, "/health/ready").is_some());
        Some(Self { _proxy: proxy, _dir: dir, port, servers })
    }

    /// Posts a prompt of this size in bytes.
    fn post(&self, bytes: usize) -> Result<String, String> {
        let body = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(bytes));
        let head = "POST /v1/completions HTTP/1.1\r\nhost: llm.example\r\nconnection: close\r\n";
        exchange(self.port, &format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
    }

    /// Number of POSTs that each server received.
    fn asked(&self) -> [usize; 2] {
        [0, 1].map(|i: usize| self.servers[i].asked())
    }
}

/// Tests the retries of a proxy. `retries` is how often it retries a request that got no response.
fn check_retries(name: &str, start: Starter, retries: usize) {
    let Some(servers) = ProxiedServers::new(name, start, [Behaviour::Refuse, Behaviour::Answer]) else {
        return;
    };
    for bytes in [100, 40_000].repeat(6) {
        assert_eq!(servers.post(bytes), Ok("{}".to_owned()), "{name}: a refused request of {bytes} bytes");
    }
    assert!(servers.asked()[0] > 0 && servers.asked()[1] == 12, "{:?}", servers.asked());

    let Some(servers) = ProxiedServers::new(name, start, [Behaviour::Fail, Behaviour::Answer]) else {
        return;
    };
    let answers: Vec<_> = (0..12).map(|_| servers.post(100)).collect();
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert!(
        failed > 0 && answers.iter().flat_map(|answer| answer.as_ref().err()).all(|e| e.contains(" 500 "))
    );
    assert_eq!(servers.asked(), [failed, 12 - failed], "{name}: a request that was started is not retried");

    let Some(servers) = ProxiedServers::new(name, start, [Behaviour::Die, Behaviour::Die]) else { return };
    let error = servers.post(100).unwrap_err();
    assert!(error.contains(" 502 "), "{error}");
    assert_eq!(
        servers.asked().iter().sum::<usize>(),
        1 + retries,
        "{name}: the request may have caused the crash"
    );

    let Some(servers) = ProxiedServers::new(name, start, [Behaviour::DieLate, Behaviour::DieLate]) else {
        return;
    };
    let error = servers.post(100).unwrap_err();
    assert!(error.contains(" 502 "), "{error}");
    assert_eq!(servers.asked().iter().sum::<usize>(), 1, "{name}: the server had worked on the request");
}

#[test]
fn haproxy_retries_only_refused_requests() {
    check_retries("haproxy", haproxy, 0);
}

#[test]
fn nginx_retries_refused_requests_and_once_requests_without_a_response() {
    check_retries("nginx", nginx, 1);
}
