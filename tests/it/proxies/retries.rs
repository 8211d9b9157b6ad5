//! What a proxy asks another server again, with the very files of `deploy/`: what was not begun, and no more than they say.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{Process, Starter, exchange, free_ports, get, haproxy, installed, nginx, until};

/// What a scripted server does with every POST.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    /// 200.
    Answer,
    /// 503, as one that drains.
    Refuse,
    /// 500, as one whose engine has failed.
    Fail,
    /// Reads all of the request and hangs up, as one whose process dies of it.
    Die,
    /// The same, after four seconds' work.
    DieLate,
}

/// A scripted server; it counts what it is asked. To GET it says 200, so that checks are content.
struct Scripted {
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl Scripted {
    fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(stream, does, &count));
            }
        });
        Self { port, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// One request on a connection; none at all if the connection ends before.
fn serve(mut stream: TcpStream, does: Does, asked: &AtomicUsize) -> Option<()> {
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
    let status = match does {
        Does::Answer => "200 OK",
        _ if is_check => "200 OK",
        Does::Refuse => "503 Service Unavailable",
        Does::Fail => "500 Internal Server Error",
        Does::Die => return None,
        Does::DieLate => {
            std::thread::sleep(Duration::from_secs(4));
            return None;
        }
    };
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    stream.write_all(answer.as_bytes()).ok()
}

/// A proxy before two scripted servers.
struct Before {
    _proxy: Process,
    _dir: TempDir,
    port: u16,
    servers: [Scripted; 2],
}

impl Before {
    fn new(name: &str, start: Starter, does: [Does; 2]) -> Option<Self> {
        let program = installed(name)?;
        let dir = TempDir::new().unwrap();
        let servers = does.map(Scripted::start);
        let [port] = free_ports();
        let ports = [0, 1].map(|i: usize| [servers[i].port; 3]);
        let proxy = start(&program, dir.path(), port, ports);
        until("the proxy serves", || get(port, "/health/ready").is_some());
        Some(Self { _proxy: proxy, _dir: dir, port, servers })
    }

    /// Posts a prompt of so many bytes.
    fn post(&self, bytes: usize) -> Result<String, String> {
        let body = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(bytes));
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        exchange(self.port, &format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
    }

    fn asked(&self) -> [usize; 2] {
        [0, 1].map(|i: usize| self.servers[i].asked())
    }
}

/// `again`: how often what got no answer is asked of another server.
fn asks_again(name: &str, start: Starter, again: usize) {
    let Some(before) = Before::new(name, start, [Does::Refuse, Does::Answer]) else { return };
    for bytes in [100, 40_000].repeat(6) {
        assert_eq!(before.post(bytes), Ok("{}".to_owned()), "{name}: a refusal, of {bytes} bytes");
    }
    assert!(before.asked()[0] > 0 && before.asked()[1] == 12, "{:?}", before.asked());

    let Some(before) = Before::new(name, start, [Does::Fail, Does::Answer]) else { return };
    let answers: Vec<_> = (0..12).map(|_| before.post(100)).collect();
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert!(
        failed > 0 && answers.iter().flat_map(|answer| answer.as_ref().err()).all(|e| e.contains(" 500 "))
    );
    assert_eq!(before.asked(), [failed, 12 - failed], "{name}: what had begun is asked once");

    let Some(before) = Before::new(name, start, [Does::Die, Does::Die]) else { return };
    let error = before.post(100).unwrap_err();
    assert!(error.contains(" 502 "), "{error}");
    assert_eq!(before.asked().iter().sum::<usize>(), 1 + again, "{name}: what may have been the reason");

    let Some(before) = Before::new(name, start, [Does::DieLate, Does::DieLate]) else { return };
    let error = before.post(100).unwrap_err();
    assert!(error.contains(" 502 "), "{error}");
    assert_eq!(before.asked().iter().sum::<usize>(), 1, "{name}: it was worked on");
}

#[test]
fn haproxy_retries_only_refused_requests() {
    asks_again("haproxy", haproxy, 0);
}

#[test]
fn nginx_retries_refused_requests_and_once_requests_without_a_response() {
    asks_again("nginx", nginx, 1);
}
