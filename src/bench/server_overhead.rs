//! Cost of the server per token: `octant serve` as a second process with simulated steps of one length, under
//! load from this process.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::bench::load_client::body::{Bodies, Endpoint};
use crate::bench::load_client::drive::{self, LoadTestPlan, Pace};
use crate::bench::load_client::measure::{LoadRun, ms};
use crate::bench::load_client::prompts::PromptSource;
use crate::config::BenchHostArgs;
use crate::http_client::Target;
use crate::statistics::Distribution;

/// Approximate tokens of a prompt.
const PROMPT: usize = 128;

/// Tokens after which an answer counts as settled: the requests sent with it have then been tokenised and
/// started.
pub(super) const SETTLED: usize = 30;

/// Results of a run.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// Concurrent streams.
    pub(super) streams: usize,
    /// Length of a step, in milliseconds.
    pub(super) step_ms: f64,
    /// Tokens received by the clients per second.
    pub(super) tokens_per_second: f64,
    /// CPU time of the server per token, in microseconds.
    pub(super) cpu_us: f64,
    /// Fraction of the CPU time spent in the kernel, if known.
    pub(super) system: Option<f64>,
    /// Milliseconds between two tokens of a stream beyond the length of a step. `None` for steps of length 0.
    pub(super) late_ms: Option<Distribution>,
    /// The same without the first [`SETTLED`] tokens of each answer, during which all other requests arrive.
    pub(super) settled_late_ms: Option<Distribution>,
    /// Peak memory of the server, in MB.
    pub(super) memory_mb: Option<f64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, step_ms, tokens_per_second, cpu_us, system, memory_mb, .. } = self;
        let late = |late: &Option<Distribution>, of: fn(&Distribution) -> f64| {
            late.as_ref().map_or("-".to_owned(), |late| format!("{:.2}", of(late)))
        };
        let (p50, p99) = (late(&self.late_ms, |late| late.p50), late(&self.late_ms, |late| late.p99));
        let settled = late(&self.settled_late_ms, |late| late.p99);
        let system = system.map_or("-".to_owned(), |part| format!("{:.0} %", 100.0 * part));
        let memory = memory_mb.map_or("-".to_owned(), |mb| format!("{mb:.0}"));
        write!(
            f,
            "{streams:>8} {step_ms:>8} {tokens_per_second:>10.0} {cpu_us:>10.2} {system:>10} {p50:>10} \
             {p99:>10} {settled:>10} {memory:>10}"
        )
    }
}

/// Starts a server, measures it under load, and ends it.
pub(super) fn measure(args: &BenchHostArgs, streams: usize, step_ms: f64) -> anyhow::Result<Figures> {
    let server = Server::start(args, streams, step_ms)?;
    let before = server.usage()?;
    // Twice as many requests as streams: the second half reuses connections, and is tokenised while the first
    // half is being answered.
    let run = load(args, &server.url, "octant", streams, 2 * streams as u64)?;
    let after = server.usage()?;
    let tokens: u64 = run.records.iter().map(|record| record.tokens()).sum();
    let (user, system) = (after.user - before.user, after.system - before.system);
    Ok(Figures {
        streams,
        step_ms,
        tokens_per_second: tokens as f64 / run.elapsed.as_secs_f64(),
        cpu_us: (user + system) * 1e6 / tokens as f64,
        system: Some(system / (user + system)),
        // With several tokens per event, gaps between events do not measure lateness.
        late_ms: late(&run, step_ms, 0).filter(|_| args.stream_interval == 1),
        settled_late_ms: late(&run, step_ms, SETTLED).filter(|_| args.stream_interval == 1),
        memory_mb: Some(after.memory / 1e6),
    })
}

/// Sends `requests` requests to a server, `streams` at a time, each with the same answer length.
pub(super) fn load(
    args: &BenchHostArgs,
    url: &str,
    model: &str,
    streams: usize,
    requests: u64,
) -> anyhow::Result<LoadRun> {
    let plan = LoadTestPlan {
        target: Target::parse(url, None)?,
        bodies: Bodies {
            prompts: PromptSource::Synthetic { tokens: PROMPT, shared_prefix: 0, seed: 1 },
            endpoint: Endpoint::Chat,
            model: model.to_owned(),
            max_tokens: u64::from(args.tokens),
            ignore_eos: true,
            temperature: None,
            extra: serde_json::Map::new(),
        },
        pace: Pace::Closed { concurrency: streams },
        requests: Some(requests),
        duration: None,
        warm_up: 0,
        timeout: Duration::from_secs(600),
        seed: 1,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = runtime.block_on(drive::run(&plan, std::future::pending(), &mut |_| {}));
    let failed = run.records.iter().filter_map(|record| record.outcome.as_ref().err()).next();
    anyhow::ensure!(failed.is_none(), "a request failed: {failed:?}");
    Ok(run)
}

/// Milliseconds between two tokens of a stream beyond the length of a step, from token `from` on. `None` for
/// steps of length 0.
pub(super) fn late(run: &LoadRun, step_ms: f64, from: usize) -> Option<Distribution> {
    let late = |gap: Duration| ms(gap) - step_ms;
    let gaps = || run.records.iter().flat_map(|record| record.gaps().skip(from).map(late)).collect();
    (step_ms > 0.0).then(|| Distribution::of(gaps()))
}

/// A server process, killed on drop.
struct Server {
    child: Child,
    url: String,
    _gpu: GpuFile,
}

/// Resource usage of a process.
struct ProcessUsage {
    /// Seconds of CPU time in user mode.
    user: f64,
    /// Seconds of CPU time in the kernel.
    system: f64,
    /// Peak memory in bytes.
    memory: f64,
}

/// A file with the description of a GPU, removed on drop.
struct GpuFile(std::path::PathBuf);

impl Drop for GpuFile {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

impl GpuFile {
    /// Describes a GPU on which every step takes `seconds`: all other costs are negligible, and every
    /// all-reduce is smaller than the smallest in the table.
    fn with_step_length(seconds: f64) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("octant-bench-host-{}.toml", std::process::id()));
        let text = format!(
            "name = \"a GPU of steps of {seconds} s\"\nmemory = 85_520_809_984\nusable = 0.92\nread = 1e21\n\
             l2 = 1e21\nproducts = 1e24\nattention = 1e24\nlaunch = 0.0\nstep_overhead = {seconds:?}\n\
             layer_overhead = 1e-12\nall_reduce = [[1e18, 1e-12]]\n"
        );
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Server {
    fn start(args: &BenchHostArgs, streams: usize, step_ms: f64) -> anyhow::Result<Self> {
        let gpu = GpuFile::with_step_length((step_ms / 1e3).max(1e-3))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--device", "simulate", "--port", "0"]);
        command.args(["--log-format", "text", "--log-level", "info"]);
        command.arg("--model").arg(&args.model).arg("--gpu").arg(&gpu.0);
        // The 340B needs eight GPUs; a small model may have fewer heads.
        let ranks = if args.simulate_config.is_some() { "8" } else { "1" };
        command.args(["--tensor-parallel-size", ranks]);
        if let Some(config) = &args.simulate_config {
            command.arg("--simulate-config").arg(config);
        }
        command.args(["--simulate-pace", if step_ms > 0.0 { "1" } else { "0" }]);
        command.args(["--max-num-seqs", &streams.to_string(), "--max-num-batched-tokens", "8192"]);
        command.args(["--drain-grace", "0", "--served-model-name", "octant"]);
        command.args(["--stream-interval", &args.stream_interval.to_string()]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let stderr = child.stderr.take().context("standard error of the server is piped")?;
        let (found, url) = flume::bounded(1);
        std::thread::spawn(move || read_log(stderr, &found));
        let url = url.recv_timeout(Duration::from_secs(60));
        let gone = |error| {
            let _already_gone = child.kill();
            anyhow::anyhow!("the server did not become ready: {error}")
        };
        let url = url.map_err(gone)?;
        Ok(Self { child, url, _gpu: gpu })
    }

    fn usage(&self) -> anyhow::Result<ProcessUsage> {
        let pid = self.child.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Fields from 3 on, numbered as in proc(5), follow the process name, which may contain any character.
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("no name")?.1.split_ascii_whitespace().collect();
        let hertz = rustix::param::clock_ticks_per_second() as f64;
        let seconds =
            |field: usize| anyhow::Ok(fields.get(field - 3).context("too short")?.parse::<f64>()? / hertz);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
        let memory = kib.context("no VmHWM")? * 1024.0;
        Ok(ProcessUsage { user: seconds(14)?, system: seconds(15)?, memory })
    }
}

/// Reads the server's standard error: sends its address to `found` and prints its errors.
fn read_log(stderr: ChildStderr, found: &flume::Sender<String>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        match line.split_once(" on http://") {
            Some((ready, address)) if ready.contains("ready in") => {
                let _heard = found.try_send(format!("http://{}", address.trim()));
            }
            _ if line.contains("ERROR") || line.contains("error:") => {
                tracing::error!("the server's log: {line}");
            }
            _ => {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _its_status = self.child.wait();
    }
}
