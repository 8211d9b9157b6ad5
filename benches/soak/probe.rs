//! A supervisor that asks for health on connections that stay, and how long an echo takes in the same moments: what this
//! machine takes for that is nothing of the server's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one round of probes to the next.
const INTERVAL: Duration = Duration::from_millis(50);

/// After so long without an answer a probe has failed.
const LIMIT: Duration = Duration::from_secs(30);

/// What probes found.
#[derive(Default)]
pub struct Probes {
    /// Of the echo, of /health/live on the main port, of /health/ready on the port for health.
    pub times: [Vec<Duration>; 3],
    /// Every answer that was not 200.
    pub unwell: Vec<String>,
    /// Connections that the server closed before it answered.
    pub reopened: usize,
}

/// Probes until told to stop.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Probes>,
}

impl Prober {
    pub fn start(main: SocketAddr, health: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut echo = connect(echo());
            let mut ports = [(1, main, "/health/live"), (2, health, "/health/ready")]
                .map(|(i, address, path)| (i, address, path, connect(address)));
            let mut probes = Probes::default();
            while !told.load(Ordering::Relaxed) {
                let start = Instant::now();
                echo.write_all(&[0; 64]).expect("it is open");
                echo.read_exact(&mut [0; 64]).expect("it comes back");
                probes.times[0].push(start.elapsed());
                for (i, address, path, stream) in &mut ports {
                    let start = Instant::now();
                    // A server short of connections may close one that is idle; that is no answer yet.
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

fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("one comes");
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

/// Status and body.
pub fn ask(stream: &mut TcpStream, path: &str) -> (u16, String) {
    let (status, body, _last) = try_ask(stream, path).expect("the connection stays open");
    (status, body)
}

/// The same, or `None` if the connection is closed with nothing said.
fn try_ask(stream: &mut TcpStream, path: &str) -> Option<(u16, String, bool)> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
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

/// Of all but the slowest hundredth, the slowest, in ms.
pub fn p99(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times.get((times.len() * 99 / 100).saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
