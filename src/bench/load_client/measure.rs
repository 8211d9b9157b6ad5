//! Latencies, throughput, goodput and failures of a run, from the times of its requests.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::chunk::ReportedUsage;
use crate::statistics::Distribution;

/// Kind of a failure, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The connection could not be opened.
    Connect,
    /// The HTTP status was not a success.
    Status(u16),
    /// The stream contained an error event.
    Stream,
    /// The connection or the stream ended before the answer did.
    Cut,
    /// The response is not an event stream of JSON chunks.
    Malformed,
    /// The answer was not complete within the timeout.
    Timeout,
    /// The answer ended normally without any content, so that no latency can be measured.
    Empty,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::Stream => f.write_str("error in the stream"),
            Self::Cut => f.write_str("cut off"),
            Self::Malformed => f.write_str("malformed"),
            Self::Timeout => f.write_str("timeout"),
            Self::Empty => f.write_str("empty"),
        }
    }
}

impl Serialize for FailureKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Failure of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestFailure {
    /// Kind of the failure.
    pub kind: FailureKind,
    /// Message of the server, or of the client if the server sent none.
    pub text: String,
}

impl RequestFailure {
    /// A failure of a kind.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

/// A request that has ended. Times are since the start of the run.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// Number of the request.
    pub index: u64,
    /// Time at which it was due; in a closed loop, the time of sending.
    pub due: Duration,
    /// Time of sending, before a connection was opened for it if none was idle.
    pub sent: Duration,
    /// Time of arrival of each chunk with content.
    pub chunks: Vec<Duration>,
    /// Time at which it ended.
    pub ended: Duration,
    /// Token counts, if the server reported usage.
    pub usage: Option<ReportedUsage>,
    /// How it ended.
    pub outcome: Result<(), RequestFailure>,
}

impl RequestRecord {
    /// Time from sending to the first chunk with content.
    pub fn ttft(&self) -> Option<Duration> {
        self.chunks.first().map(|first| first.saturating_sub(self.sent))
    }

    /// Time from sending to the last chunk with content.
    pub fn e2e(&self) -> Option<Duration> {
        self.chunks.last().map(|last| last.saturating_sub(self.sent))
    }

    /// How long after its due time the request was sent.
    pub fn lag(&self) -> Duration {
        self.sent.saturating_sub(self.due)
    }

    /// Tokens of the answer: the server's count, or the number of chunks with content.
    pub fn tokens(&self) -> u64 {
        self.usage.map_or(self.chunks.len() as u64, |usage| usage.completion_tokens)
    }

    /// Time per output token after the first: (E2E - TTFT) / (tokens - 1).
    pub(crate) fn tpot(&self) -> Option<Duration> {
        let after = self.tokens().checked_sub(1).filter(|after| *after > 0)?;
        let window = self.e2e()?.saturating_sub(self.ttft()?);
        Some(window.div_f64(after as f64))
    }

    /// Times between consecutive chunks with content.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.chunks.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))
    }
}

/// A run that has ended.
#[derive(Debug, Clone, Default)]
pub struct LoadRun {
    /// Requests that ended, in the order of their ends.
    pub records: Vec<RequestRecord>,
    /// Duration from the start to the end of the last request.
    pub elapsed: Duration,
    /// Chunks with content, including those of failed and unfinished requests.
    pub chunks: u64,
    /// Requests that were aborted when the run was interrupted.
    pub unfinished: u64,
    /// Whether the run was interrupted.
    pub interrupted: bool,
    /// CPU time of this process during the run.
    pub cpu: Duration,
}

/// Service level objectives of a request. A request is good if it succeeds and is within all of them. TTFT
/// and E2E count from the time at which the request was due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Objectives {
    /// Highest TTFT from due time, in ms.
    pub ttft_ms: Option<f64>,
    /// Longest gap between chunks, in ms.
    pub itl_ms: Option<f64>,
    /// Highest TPOT, in ms.
    pub tpot_ms: Option<f64>,
    /// Highest E2E latency from due time, in ms.
    pub e2e_ms: Option<f64>,
}

impl Objectives {
    /// Whether any objective is set.
    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether a request succeeded within all objectives.
    pub fn are_met(&self, record: &RequestRecord) -> bool {
        let within = |limit: Option<f64>, value: Option<Duration>| {
            limit.is_none_or(|limit| value.is_none_or(|value| ms(value) <= limit))
        };
        let from_due = |value: Option<Duration>| value.map(|value| value + record.lag());
        record.outcome.is_ok()
            && within(self.ttft_ms, from_due(record.ttft()))
            && within(self.e2e_ms, from_due(record.e2e()))
            && within(self.tpot_ms, record.tpot())
            && within(self.itl_ms, record.gaps().max())
    }
}

/// Source of the token counts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokensCountedBy {
    /// The usage that the server reported, for all requests.
    Usage,
    /// The number of chunks with content, for all requests.
    Chunks,
    /// Usage for some requests, chunks for the others.
    Both,
}

/// Number of failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// Kind of the failures.
    pub kind: FailureKind,
    /// Number of failures.
    pub count: u64,
    /// Message of the first failure.
    pub first: String,
}

/// Figures of a run. Latencies are in ms, over requests that succeeded.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Requests sent.
    pub sent: u64,
    /// Requests that succeeded.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were aborted when the run was interrupted.
    pub unfinished: u64,
    /// Whether the run was interrupted.
    pub interrupted: bool,
    /// Seconds from the start to the end of the last request.
    pub seconds: f64,
    /// Successful requests per second.
    pub requests_per_second: f64,
    /// Prompt tokens, if the server reported usage.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Source of the number of output tokens.
    pub tokens_counted: TokensCountedBy,
    /// Output tokens per second.
    pub output_tokens_per_second: f64,
    /// Output tokens per chunk with content.
    pub tokens_per_chunk: f64,
    /// TTFT from sending.
    pub ttft_ms: Distribution,
    /// TTFT from due time.
    pub ttft_from_due_ms: Distribution,
    /// Times between consecutive chunks with content.
    pub itl_ms: Distribution,
    /// TPOT of each request.
    pub tpot_ms: Distribution,
    /// E2E latency from sending.
    pub e2e_ms: Distribution,
    /// E2E latency from due time.
    pub e2e_from_due_ms: Distribution,
    /// Time by which requests were sent later than due, including failed requests.
    pub lag_ms: Distribution,
    /// The objectives that goodput counts.
    pub objectives: Objectives,
    /// Good requests per second; `None` without objectives.
    pub goodput: Option<f64>,
    /// Good requests as a share of all that ended; `None` without objectives.
    pub good_share: Option<f64>,
    /// Failures by kind, most frequent first.
    pub failures: Vec<FailureCount>,
    /// CPU time of the client, in seconds.
    pub client_cpu_seconds: f64,
    /// CPU time of the client divided by the duration of the run: cores in use.
    pub client_cpu_share: f64,
    /// CPU time of the client per chunk with content, in µs.
    pub client_cpu_us_per_chunk: f64,
}

impl Summary {
    /// Summarises a run.
    pub fn of(run: &LoadRun, objectives: Objectives) -> Self {
        let ok: Vec<&RequestRecord> = run.records.iter().filter(|record| record.outcome.is_ok()).collect();
        let distribution = |value: &dyn Fn(&RequestRecord) -> Option<Duration>| {
            Distribution::of(ok.iter().filter_map(|record| value(record)).map(ms).collect())
        };
        let seconds = run.elapsed.as_secs_f64();
        let per_second = |count: u64| count as f64 / seconds.max(1e-9);
        let good = run.records.iter().filter(|record| objectives.are_met(record)).count() as u64;
        let good = objectives.any().then_some(good);
        let ended = run.records.len() as u64;
        let output_tokens = ok.iter().map(|record| record.tokens()).sum();
        let chunks: u64 = ok.iter().map(|record| record.chunks.len() as u64).sum();
        let cpu = run.cpu.as_secs_f64();
        Self {
            sent: ended + run.unfinished,
            ok: ok.len() as u64,
            failed: ended - ok.len() as u64,
            unfinished: run.unfinished,
            interrupted: run.interrupted,
            seconds,
            requests_per_second: per_second(ok.len() as u64),
            prompt_tokens: ok.iter().filter_map(|record| record.usage).map(|usage| usage.prompt_tokens).sum(),
            output_tokens,
            tokens_counted: counted(&ok),
            output_tokens_per_second: per_second(output_tokens),
            tokens_per_chunk: output_tokens as f64 / chunks.max(1) as f64,
            ttft_ms: distribution(&RequestRecord::ttft),
            ttft_from_due_ms: distribution(&|record| Some(record.ttft()? + record.lag())),
            itl_ms: Distribution::of(ok.iter().flat_map(|record| record.gaps()).map(ms).collect()),
            tpot_ms: distribution(&RequestRecord::tpot),
            e2e_ms: distribution(&RequestRecord::e2e),
            e2e_from_due_ms: distribution(&|record| Some(record.e2e()? + record.lag())),
            lag_ms: Distribution::of(run.records.iter().map(|record| ms(record.lag())).collect()),
            objectives,
            goodput: good.map(per_second),
            good_share: good.map(|good| good as f64 / ended.max(1) as f64),
            failures: failures(&run.records),
            client_cpu_seconds: cpu,
            client_cpu_share: cpu / seconds.max(1e-9),
            client_cpu_us_per_chunk: 1e6 * cpu / run.chunks.max(1) as f64,
        }
    }
}

fn counted(ok: &[&RequestRecord]) -> TokensCountedBy {
    match ok.iter().filter(|record| record.usage.is_some()).count() {
        0 => TokensCountedBy::Chunks,
        reported if reported == ok.len() => TokensCountedBy::Usage,
        _ => TokensCountedBy::Both,
    }
}

fn failures(records: &[RequestRecord]) -> Vec<FailureCount> {
    let mut kinds: BTreeMap<FailureKind, FailureCount> = BTreeMap::new();
    for failure in records.iter().filter_map(|record| record.outcome.as_ref().err()) {
        let first = || FailureCount { kind: failure.kind, count: 0, first: failure.text.clone() };
        kinds.entry(failure.kind).or_insert_with(first).count += 1;
    }
    let mut kinds: Vec<FailureCount> = kinds.into_values().collect();
    kinds.sort_by_key(|failures| std::cmp::Reverse(failures.count));
    kinds
}

/// Converts to ms.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
