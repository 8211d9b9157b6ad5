//! Health probes on kept connections, and echoes at the same times. The echo's latency is the machine's share
//! of a probe's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use octant::statistics::Distribution;

/// Pause between two rounds of probes.
const INTERVAL: Duration = Duration::from_millis(50);

/// Time after which a probe has failed.
const LIMIT: Duration = Duration::from_secs(30);

/// Results of all probes.
#[derive(Default)]
pub struct Probes {
    /// Latencies of the echo, of /health/live on the main port, and of /health/ready on the health port.
    pub times: [Vec<Duration>; 3],
    /// Every response whose status is not 200.
    pub unwell: Vec<String>,
    /// Number of connections that the server closed before it responded.
    pub reopened: usize,
}

/// A thread that probes until [`Prober::stop`].
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Probes>,
}

impl Prober {
    pub fn start(main: SocketAddr, health: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut echo = connect(echo());
            let mut ports = [(1, main, "/health/live"), (2, health, "/health/ready")]
                .map(|(i, address, path)| (i, address, path, connect(address)));
            let mut probes = Probes::default();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                echo.write_all(&[0; 64]).expect("it is open");
                echo.read_exact(&mut [0; 64]).expect("the echo returns");
                probes.times[0].push(start.elapsed());
                for (i, address, path, stream) in &mut ports {
                    let start = Instant::now();
                    // A server at its limit of connections may close an idle one, so connect again.
                    let (status, body, last) = loop {
                        match try_ask(stream, path) {
                            Some(answer) => break answer,
                            None => *stream = connect(*address),
                        }
                        probes.reopened += 1;
                        if start.elapsed() > LIMIT {
                            break (0, "no connection stays open for a probe".to_owned(), true);
                        }
                    };
                    probes.times[*i].push(start.elapsed());
                    if status != 200 {
                        probes.unwell.push(format!("{path}: {status} {body}"));
                    }
                    if last {
                        *stream = connect(*address);
                    }
                }
                std::thread::sleep(INTERVAL);
            }
            probes
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Probes {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a probe is answered")
    }
}

/// Starts an echo server.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        stream.set_nodelay(true).expect("it can be set");
        let mut buffer = [0; 64];
        while stream.read(&mut buffer).is_ok_and(|count| count > 0 && stream.write_all(&buffer).is_ok()) {}
    });
    address
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nodelay(true).expect("it can be set");
    stream.set_read_timeout(Some(LIMIT)).expect("it can be set");
    stream
}

/// Sends a GET and returns status and body.
pub fn ask(stream: &mut TcpStream, path: &str) -> (u16, String) {
    let (status, body, _last) = try_ask(stream, path).expect("the connection stays open");
    (status, body)
}

/// Sends a GET. Returns status, body, and true if the server closes the connection after it; `None` if the
/// connection was closed without a response.
fn try_ask(stream: &mut TcpStream, path: &str) -> Option<(u16, String, bool)> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            count => count.expect("a probe is answered in time"),
        };
        if count == 0 && bytes.is_empty() {
            return None;
        }
        assert!(count > 0, "a probe's answer was cut off");
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if body.len() == length.parse::<usize>().expect("a number") {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            let last = head.contains("connection: close");
            return Some((status.expect("a status"), body.to_owned(), last));
        }
    }
}

/// 99th percentile in ms; NaN without times.
pub fn p99(times: &[Duration]) -> f64 {
    let ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    if ms.is_empty() { f64::NAN } else { Distribution::of(ms).p99 }
}
