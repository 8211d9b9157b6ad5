//! Soak test: a server with simulated GPUs under clients that behave badly, for minutes.
//!
//!     cargo bench --bench soak -- [--minutes 10] [--streams 2000] [--pace 4] [--queued 10000] [--seed 1]
//!
//! First, `--streams` clients are connected at all times. One client in twenty sends a malformed or oversized
//! request. Among the others, 20 % disconnect after a random number of bytes, 10 % read slowly and 5 % do not
//! stream. Every complete response is compared with the text that the simulated model generates for its
//! prompt. Health is probed every 50 ms, beside an echo server on this machine; memory and file descriptors
//! of the server are recorded. Second, `--queued` requests wait in the queue of a slow server while health is
//! probed. Third, the GPUs of a server hang, and its liveness probe must fail within its limit. The exit
//! status is 1 if any check failed. The slope of memory is checked if the run takes five minutes or more; a
//! shorter run has only warmed up.

mod client;
mod probe;
mod server;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Book, Tally};
use octant::simulator::workload;
use probe::{Prober, Probes, ask, connect, p99};
use server::{Server, slope};

/// Limit of a probe's p99 latency beyond an echo's, in ms.
const HEALTH_MS: f64 = 5.0;
/// Limit of the server's memory growth, in MiB per minute.
const SLOPE: f64 = 2.0;
/// Shortest run whose slope of memory is checked, in seconds.
const WARM: f64 = 300.0;
/// `--stall-timeout` of the server whose GPUs hang, in seconds.
const STALL: u64 = 3;
/// `--step-timeout` of that server in seconds, which is also the duration expected of its steps.
const STEP: u64 = 1;
/// Makes a simulated step take hours.
const SLOW: &[&str] = &["--simulate-pace", "1000000"];

struct Args {
    minutes: f64,
    streams: usize,
    pace: f64,
    queued: usize,
    seed: u64,
}

fn args() -> Result<Args, String> {
    let mut args = Args { minutes: 10.0, streams: 2000, pace: 4.0, queued: 10_000, seed: 1 };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(name) = words.next() {
        let value = words.next().unwrap_or_default();
        let wrong = |_| format!("{name}: expected a number, got `{value}`");
        match name.as_str() {
            "--minutes" => args.minutes = value.parse().map_err(|_| wrong(()))?,
            "--streams" => args.streams = value.parse().map_err(|_| wrong(()))?,
            "--pace" => args.pace = value.parse().map_err(|_| wrong(()))?,
            "--queued" => args.queued = value.parse().map_err(|_| wrong(()))?,
            "--seed" => args.seed = value.parse().map_err(|_| wrong(()))?,
            _ => return Err(format!("unknown argument `{name}`")),
        }
    }
    Ok(args)
}

/// Prints results as table rows, and collects those that are wrong.
#[derive(Default)]
struct Findings {
    wrong: Vec<String>,
}

impl Findings {
    fn row(&mut self, name: &str, value: &str, good: bool) {
        println!("| {name} | {value} | {} |", if good { "" } else { "WRONG" });
        if !good {
            self.wrong.push(format!("{name}: {value}"));
        }
    }

    fn probes(&mut self, probes: &Probes) {
        let [echo, main, health] = probes.times.each_ref().map(|times| p99(times));
        self.row("probes", &probes.times[1].len().to_string(), !probes.times[1].is_empty());
        self.row("p99 of an echo, ms", &format!("{echo:.2}"), true);
        let bound = echo + HEALTH_MS;
        self.row("p99 of /health/live on the main port, ms", &format!("{main:.2}"), main < bound);
        self.row("p99 of /health/ready on the health port, ms", &format!("{health:.2}"), health < bound);
        self.row("idle connections of probes that were closed", &probes.reopened.to_string(), true);
        let unwell = probes.unwell.first().map_or(String::new(), |first| format!(", first {first}"));
        let count = probes.unwell.len();
        self.row("probes that failed", &format!("{count}{unwell}"), count == 0);
    }
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    // Client and server run on this machine, and each end of a connection is a file descriptor.
    let room = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = rustix::process::Rlimit { current: room.maximum, maximum: room.maximum };
    let _unchanged_on_error = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started");
    let mut findings = Findings::default();
    runtime.block_on(streams(&args, &mut findings));
    runtime.block_on(queue(&args, &mut findings));
    hang(&mut findings);
    if findings.wrong.is_empty() {
        println!("\nall checks passed");
        return ExitCode::SUCCESS;
    }
    println!("\nwrong:\n{}", findings.wrong.join("\n"));
    ExitCode::FAILURE
}

fn heading(text: &str) {
    println!("\n## {text}\n\n| what | value | |\n|---|---|---|");
    let _closed = std::io::stdout().flush();
}

/// Keeps `--streams` clients connected.
async fn streams(args: &Args, findings: &mut Findings) {
    heading(&format!("{} streams for {} minutes, pace {}", args.streams, args.minutes, args.pace));
    let (pace, seats) = (args.pace.to_string(), args.streams.to_string());
    let mut server = Server::start(&[
        "--simulate-pace",
        &pace,
        "--max-num-seqs",
        &seats,
        "--max-num-batched-tokens",
        "4096",
        "--max-queue-requests",
        "4096",
        "--stall-timeout",
        "10",
        "--drain-grace",
        "0",
    ]);
    let book = Arc::new(Book::new());
    // The first request also initialises what is used once, before memory and descriptors are recorded.
    let warm = client::visit(server.main, &book, &mut workload::random(args.seed)).await;
    assert!(warm.wrong.is_empty(), "{:?}", warm.wrong);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = server.descriptors();
    let prober = Prober::start(server.main, server.health);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.minutes * 60.0);
    let seats: Vec<_> = (0..args.streams)
        .map(|seat| {
            tokio::spawn(run_clients(server.main, Arc::clone(&book), args.seed << 32 | seat as u64, end))
        })
        .collect();
    let (mut memory, mut most) = (Vec::new(), 0);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1).min(end - Instant::now())).await;
        memory.push((start.elapsed().as_secs_f64(), server.resident()));
        most = most.max(server.descriptors());
    }
    let mut tally = Tally::default();
    for seat in seats {
        tally.add(seat.await.expect("a client does not panic"));
    }
    let took = start.elapsed().as_secs_f64();
    let probes = prober.stop();
    let after = returned(&server, before).await;
    report(findings, &tally, took);
    findings.probes(&probes);
    let slope = slope(&memory);
    let judged = took < WARM || slope < SLOPE;
    let last = memory.last().map_or(f64::NAN, |last| last.1);
    findings.row("resident memory at the end, MiB", &format!("{last:.0}"), last.is_finite());
    findings.row("memory slope in the second half, MiB/min", &format!("{slope:.2}"), judged);
    let descriptors = format!("{before}, {most}, {after}");
    findings.row(
        "descriptors before, at most, after",
        &descriptors,
        after <= before && most >= args.streams / 2,
    );
    let (_, body) = ask(&mut connect(server.health), "/health/ready");
    let idle = body.contains("\"running\":0") && body.contains("\"waiting\":0");
    findings.row("no request runs or waits at the end", &body, idle);
    findings.row("the server still runs", "", server.lives());
}

/// Runs one client after another until `end`.
async fn run_clients(address: std::net::SocketAddr, book: Arc<Book>, seed: u64, end: Instant) -> Tally {
    let (mut tally, mut draws) = (Tally::default(), workload::random(seed));
    while Instant::now() < end {
        tally.add(client::visit(address, &book, &mut draws).await);
    }
    tally
}

/// Number of the server's file descriptors, once it has returned to `before` or after 10 s.
async fn returned(server: &Server, before: usize) -> usize {
    for _ in 0..100 {
        if server.descriptors() <= before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.descriptors()
}

fn report(findings: &mut Findings, tally: &Tally, took: f64) {
    findings.row("requests", &tally.all().to_string(), tally.all() > 0);
    let right = format!("{}, {}, {}", tally.streamed, tally.slow, tally.whole);
    findings.row("correct responses: streamed, read slowly, not streamed", &right, tally.streamed > 0);
    findings.row("disconnected by the client", &tally.left.to_string(), true);
    findings.row("malformed and oversized, refused", &tally.refused.to_string(), true);
    findings.row(
        "tokens per second in complete responses",
        &format!("{:.0}", tally.tokens as f64 / took),
        true,
    );
    let first: Vec<&str> = tally.wrong.iter().take(3).map(String::as_str).collect();
    let wrong = format!("{} {}", tally.wrong.len(), first.join("; "));
    findings.row("lost, wrong, incomplete, or wrongly refused", &wrong, tally.wrong.is_empty());
}

/// Fills the queue with requests of 128 choices each.
async fn queue(args: &Args, findings: &mut Findings) {
    heading(&format!("{} requests in the queue", args.queued));
    let server = Server::start(&[
        "--simulate-pace",
        "10",
        "--max-num-seqs",
        "32",
        "--max-queue-requests",
        "40000",
        "--max-queue-tokens",
        "8000000",
        "--stall-timeout",
        "10",
        "--drain-grace",
        "0",
    ]);
    let body = serde_json::json!({
        "model": "soak", "prompt": vec![40; 8], "max_tokens": 400, "n": 128, "temperature": 1, "stream": true,
        "ignore_eos": true,
    });
    let mut held = Vec::new();
    for _ in 0..args.queued.div_ceil(128) + 1 {
        held.push(client::begin(server.main, &body.to_string()).await);
    }
    let mut probe = connect(server.health);
    let start = Instant::now();
    let waiting = loop {
        let (_, body) = ask(&mut probe, "/health/ready");
        let value: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let waiting = value["waiting"].as_u64().unwrap_or(0);
        if waiting >= args.queued as u64 || start.elapsed() > Duration::from_secs(60) {
            break waiting;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let prober = Prober::start(server.main, server.health);
    let time = Duration::from_secs_f64((args.minutes * 6.0).clamp(5.0, 60.0));
    tokio::time::sleep(time).await;
    let probes = prober.stop();
    findings.row(
        "requests waiting while health was probed",
        &waiting.to_string(),
        waiting >= args.queued as u64,
    );
    findings.probes(&probes);
    drop(held);
}

/// Checks that liveness fails while a step never ends.
fn hang(findings: &mut Findings) {
    heading("a step that never ends");
    let (stall, step) = (STALL.to_string(), STEP.to_string());
    let server = Server::start(
        &[SLOW, &["--stall-timeout", &stall, "--step-timeout", &step, "--drain-grace", "0"]].concat(),
    );
    let mut probe = connect(server.main);
    let (well, _) = ask(&mut probe, "/health/live");
    let body = r#"{ "model": "soak", "prompt": "a", "max_tokens": 9 }"#;
    let mut stuck = connect(server.main);
    stuck.write_all(client::post(body).as_bytes()).expect("it is open");
    let start = Instant::now();
    while ask(&mut probe, "/health/live").0 == 200 && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed().as_secs_f64();
    let bound = (STALL + STEP) as f64;
    findings.row("status of the live probe before", &well.to_string(), well == 200);
    let good = (bound..bound + 1.0).contains(&took);
    findings.row(&format!("seconds until the live probe fails, limit {bound}"), &format!("{took:.2}"), good);
}
