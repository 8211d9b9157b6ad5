//! What the times of a run amount to. Every value is kept and percentiles are exact: between two values they are
//! interpolated linearly, as numpy's are.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::chunk::Usage;

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// No connection.
    Connect,
    /// A status other than success.
    Status(u16),
    /// An error within the stream.
    Stream,
    /// The connection, or the stream, ended before the answer.
    Cut,
    /// What came is no stream of chunks.
    Malformed,
    /// It took too long.
    Timeout,
    /// The answer ended well and had no content, so that there is nothing to measure.
    Empty,
}

impl fmt::Display for Kind {
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

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// By kind, for counting.
    pub kind: Kind,
    /// In words.
    pub text: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

/// A request that has ended. Times are after the run's beginning.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number.
    pub index: u64,
    /// When it was due; in a closed loop, when it was sent.
    pub due: Duration,
    /// When it was sent: before a connection was opened for it, if one was.
    pub sent: Duration,
    /// When a chunk with content came, for each.
    pub chunks: Vec<Duration>,
    /// When it had ended.
    pub ended: Duration,
    /// Tokens, if the server told.
    pub usage: Option<Usage>,
    /// How it ended.
    pub outcome: Result<(), Failure>,
}

impl Record {
    /// From sending to the first chunk with content.
    pub fn ttft(&self) -> Option<Duration> {
        self.chunks.first().map(|first| first.saturating_sub(self.sent))
    }

    /// From sending to the last chunk with content.
    pub fn e2e(&self) -> Option<Duration> {
        self.chunks.last().map(|last| last.saturating_sub(self.sent))
    }

    /// How much later than due it was sent.
    pub fn lag(&self) -> Duration {
        self.sent.saturating_sub(self.due)
    }

    /// Tokens of the answer: the server's count, or the number of chunks with content.
    pub fn tokens(&self) -> u64 {
        self.usage.map_or(self.chunks.len() as u64, |usage| usage.completion_tokens)
    }

    /// Between the first chunk and the last, per token after the first.
    pub fn tpot(&self) -> Option<Duration> {
        let after = self.tokens().checked_sub(1).filter(|after| *after > 0)?;
        let window = self.e2e()?.saturating_sub(self.ttft()?);
        Some(window.div_f64(after as f64))
    }

    /// Between each chunk with content and the next.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.chunks.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))
    }
}

/// A run that has ended.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// All requests that ended, in the order in which they did.
    pub records: Vec<Record>,
    /// From the beginning to the last end.
    pub elapsed: Duration,
    /// Chunks with content, those of failed and unfinished requests included.
    pub chunks: u64,
    /// Requests that were given up when the run was stopped.
    pub unfinished: u64,
    /// Whether it was stopped.
    pub interrupted: bool,
    /// CPU time that this process spent meanwhile.
    pub cpu: Duration,
}

/// What a request must keep to be a good one; it must have ended well too. Those from when it was due are meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Objectives {
    /// TTFT at most, in ms, from when the request was due.
    pub ttft_ms: Option<f64>,
    /// No gap between chunks longer, in ms.
    pub itl_ms: Option<f64>,
    /// TPOT at most, in ms.
    pub tpot_ms: Option<f64>,
    /// E2E at most, in ms, from when the request was due.
    pub e2e_ms: Option<f64>,
}

impl Objectives {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether a request kept all of them.
    pub fn kept(&self, record: &Record) -> bool {
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

/// How values lie. All zero if there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Distribution {
    pub count: usize,
    pub mean: f64,
    pub std: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Distribution {
    /// Of values in any order.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else { return Self::default() };
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let at = |share| percentile(&values, share);
        Self {
            count: values.len(),
            mean,
            std: variance.sqrt(),
            min: *min,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: *max,
        }
    }
}

/// The value that this share of sorted values do not exceed, interpolated; 0 if there are none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = share.clamp(0.0, 1.0) * last as f64;
    let low = position.floor() as usize;
    let high = (low + 1).min(last);
    sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64)
}

/// How tokens were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// By the server, for all requests.
    Usage,
    /// As chunks with content, for all requests.
    Chunks,
    /// By the server for some requests, as chunks for the others.
    Both,
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// Their kind.
    pub kind: Kind,
    /// How many.
    pub count: u64,
    /// What the first said.
    pub first: String,
}

/// All figures of a run. Times are in ms, and of requests that ended well.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Requests that were sent.
    pub sent: u64,
    /// Of those, how many ended well,
    pub ok: u64,
    /// failed,
    pub failed: u64,
    /// or were given up when the run was stopped.
    pub unfinished: u64,
    /// Whether it was stopped.
    pub interrupted: bool,
    /// Seconds from the beginning to the last end.
    pub seconds: f64,
    /// Requests that ended well, per second.
    pub requests_per_second: f64,
    /// Tokens of the prompts, if the server told.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// How those were counted.
    pub tokens_counted: Count,
    /// Tokens of the answers, per second.
    pub output_tokens_per_second: f64,
    /// Tokens of the answers by chunks with content.
    pub tokens_per_chunk: f64,
    /// From sending to the first chunk with content.
    pub ttft_ms: Distribution,
    /// The same from when the request was due.
    pub ttft_from_due_ms: Distribution,
    /// Between chunks.
    pub itl_ms: Distribution,
    /// Per request, between tokens.
    pub tpot_ms: Distribution,
    /// From sending to the last chunk with content.
    pub e2e_ms: Distribution,
    /// The same from when the request was due.
    pub e2e_from_due_ms: Distribution,
    /// How much later than due requests were sent, failed ones included.
    pub lag_ms: Distribution,
    /// What good requests keep.
    pub objectives: Objectives,
    /// Requests that kept it, per second; none if there is nothing to keep.
    pub goodput: Option<f64>,
    /// Their share of all that ended.
    pub good_share: Option<f64>,
    /// Failures, most frequent first.
    pub failures: Vec<Failures>,
    /// Seconds of CPU time that the client spent,
    pub client_cpu_seconds: f64,
    /// as a share of one core,
    pub client_cpu_share: f64,
    /// and in microseconds per chunk with content.
    pub client_cpu_us_per_chunk: f64,
}

impl Summary {
    /// The figures of a run.
    pub fn of(run: &Run, objectives: Objectives) -> Self {
        let ok: Vec<&Record> = run.records.iter().filter(|record| record.outcome.is_ok()).collect();
        let distribution = |value: &dyn Fn(&Record) -> Option<Duration>| {
            Distribution::of(ok.iter().filter_map(|record| value(record)).map(ms).collect())
        };
        let seconds = run.elapsed.as_secs_f64();
        let per_second = |count: u64| count as f64 / seconds.max(1e-9);
        let good = run.records.iter().filter(|record| objectives.kept(record)).count() as u64;
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
            ttft_ms: distribution(&Record::ttft),
            ttft_from_due_ms: distribution(&|record| Some(record.ttft()? + record.lag())),
            itl_ms: Distribution::of(ok.iter().flat_map(|record| record.gaps()).map(ms).collect()),
            tpot_ms: distribution(&Record::tpot),
            e2e_ms: distribution(&Record::e2e),
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

fn counted(ok: &[&Record]) -> Count {
    match ok.iter().filter(|record| record.usage.is_some()).count() {
        0 => Count::Chunks,
        told if told == ok.len() => Count::Usage,
        _ => Count::Both,
    }
}

fn failures(records: &[Record]) -> Vec<Failures> {
    let mut kinds: BTreeMap<Kind, Failures> = BTreeMap::new();
    for failure in records.iter().filter_map(|record| record.outcome.as_ref().err()) {
        let first = || Failures { kind: failure.kind, count: 0, first: failure.text.clone() };
        kinds.entry(failure.kind).or_insert_with(first).count += 1;
    }
    let mut kinds: Vec<Failures> = kinds.into_values().collect();
    kinds.sort_by_key(|failures| std::cmp::Reverse(failures.count));
    kinds
}

/// A time in ms.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
