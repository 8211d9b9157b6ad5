//! Lower bound of a server's cost per token: a thread that only writes one prepared event to each stream at
//! each step, under the same client. A server with one write per token cannot cost less.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

use super::server_overhead::{self, Figures};
use crate::config::BenchHostArgs;

/// The server's response head.
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// An event of the length of the server's event of one token.
const EVENT: &str = concat!(
    "data: {\"id\":\"chatcmpl-0123456789abcdef01234567\",\"object\":\"chat.completion.chunk\",",
    "\"created\":1700000000,\"model\":\"bare\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},",
    "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
);

/// The last event of an answer.
const END: &str = "data: [DONE]\n\n";

/// Measures the thread that only writes, under the load of [`server_overhead::measure`].
pub(super) fn measure(args: &BenchHostArgs, streams: usize, step_ms: f64) -> anyhow::Result<Figures> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let (step, tokens) = (Duration::from_secs_f64(step_ms / 1e3), args.tokens);
    let thread = std::thread::spawn(move || write(&listener, streams, tokens, step));
    let run = server_overhead::load(args, &url, "bare", streams, streams as u64)?;
    let cpu = thread.join().map_err(|_| anyhow::anyhow!("the thread that writes panicked"))??;
    let generated: u64 = run.records.iter().map(|record| record.tokens()).sum();
    Ok(Figures {
        streams,
        step_ms,
        tokens_per_second: generated as f64 / run.elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / generated as f64,
        system: None,
        late_ms: server_overhead::late(&run, step_ms, 0),
        settled_late_ms: server_overhead::late(&run, step_ms, server_overhead::SETTLED),
        memory_mb: None,
    })
}

/// Answers `streams` requests in parallel and returns the thread's CPU time for the token events.
fn write(listener: &TcpListener, streams: usize, tokens: u32, step: Duration) -> anyhow::Result<Duration> {
    let open = (0..streams).map(|_| begin(listener));
    let mut connections = open.collect::<anyhow::Result<Vec<_>>>()?;
    let event = chunk(EVENT);
    let before = thread_time();
    let start = Instant::now();
    for token in 0..tokens {
        std::thread::sleep((start + step * token).saturating_duration_since(Instant::now()));
        for connection in &mut connections {
            connection.write_all(&event).context("a client closed its connection")?;
        }
    }
    let took = thread_time() - before;
    let end = [chunk(END), b"0\r\n\r\n".to_vec()].concat();
    for connection in &mut connections {
        connection.write_all(&end)?;
    }
    Ok(took)
}

/// Accepts a connection, reads its request and writes the response head.
fn begin(listener: &TcpListener) -> anyhow::Result<TcpStream> {
    let (mut connection, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    while !is_whole(&request) {
        let count = connection.read(&mut part)?;
        anyhow::ensure!(count > 0, "a client closed its connection before its request was complete");
        request.extend_from_slice(&part[..count]);
    }
    connection.write_all(HEAD.as_bytes())?;
    Ok(connection)
}

/// Whether the request's body is as long as its content-length says.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
