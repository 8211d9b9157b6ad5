//! The run: sends requests when they are due and collects their records as they end.
//!
//! One task sends and collects; each request is a task of its own. An open loop never waits for an answer.
//! With a limit on concurrency it sends late but keeps its due times, so that the wait shows in latencies
//! from due time. Timers have a resolution of about a millisecond, so requests may leave that much late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use super::arrivals::{Arrivals, Rate, Spacing};
use super::body::Bodies;
use super::client::Client;
use super::measure::{LoadRun, RequestRecord};
use crate::http_client::Target;

/// Interval of progress reports.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Whether requests have due times or follow the ends of others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Open loop: requests are due at times decided before the run.
    Open {
        /// Requests per second.
        rate: Rate,
        /// Distribution of the intervals.
        spacing: Spacing,
        /// Highest number of requests in flight, if limited.
        max_concurrency: Option<usize>,
    },
    /// Closed loop: a request is sent as soon as another one ends.
    Closed {
        /// Requests in flight.
        concurrency: usize,
    },
}

/// Parameters of a run. `requests` or `duration` must be set; the run ends with the first limit that is
/// reached.
#[derive(Debug, Clone)]
pub struct LoadTestPlan {
    /// The server.
    pub target: Target,
    /// Request bodies.
    pub bodies: Bodies,
    /// Times of sending.
    pub pace: Pace,
    /// Number of requests.
    pub requests: Option<u64>,
    /// Duration of sending. The run then waits for the requests in flight.
    pub duration: Option<Duration>,
    /// Requests sent before the measurement.
    pub warm_up: u64,
    /// Timeout of a request, from sending to the last byte.
    pub timeout: Duration,
    /// Seed of the due times.
    pub seed: u64,
}

/// Progress of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadTestProgress {
    /// Whether these are the requests before the measurement.
    pub warming_up: bool,
    /// Time since the start.
    pub elapsed: Duration,
    /// Requests sent.
    pub sent: u64,
    /// Requests that ended, including failures.
    pub ended: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Chunks with content received.
    pub chunks: u64,
}

/// The next request. Its body is built before it is due, since a long prompt takes time to build.
struct DueRequest {
    index: u64,
    /// Due time since the start; `None` in a closed loop.
    at: Option<Duration>,
    body: Bytes,
}

/// Requests of a plan in order.
struct Schedule<'a> {
    plan: &'a LoadTestPlan,
    arrivals: Option<Arrivals>,
    next: u64,
}

impl Schedule<'_> {
    fn next(&mut self) -> Option<DueRequest> {
        let index = self.next;
        if self.plan.requests.is_some_and(|requests| index >= requests) {
            return None;
        }
        let at = match &mut self.arrivals {
            Some(arrivals) => Some(arrivals.next()?),
            None => None,
        };
        self.next += 1;
        Some(DueRequest { index, at, body: self.plan.bodies.get(index) })
    }
}

/// Runs a plan until it ends or `stop` does. On `stop` no more requests are sent, and those in flight are
/// aborted and counted as unfinished. `on_progress` is called several times a second.
pub async fn run(
    plan: &LoadTestPlan,
    stop: impl Future<Output = ()>,
    on_progress: &mut dyn FnMut(&LoadTestProgress),
) -> LoadRun {
    let client = Arc::new(Client::new(plan.target.clone(), plan.timeout));
    let mut stop = std::pin::pin!(stop);
    if plan.warm_up > 0 {
        let run = warm_up(plan, &client, stop.as_mut(), on_progress).await;
        if run.interrupted {
            return LoadRun { records: Vec::new(), ..run };
        }
    }
    let arrivals = match plan.pace {
        Pace::Open { rate, spacing, .. } => Some(Arrivals::new(rate, plan.duration, spacing, plan.seed)),
        Pace::Closed { .. } => None,
    };
    let max_concurrency = match plan.pace {
        Pace::Open { max_concurrency, .. } => max_concurrency.unwrap_or(usize::MAX),
        Pace::Closed { concurrency } => concurrency,
    };
    let schedule = Schedule { plan, arrivals, next: 0 };
    drive(LoadDriver::new(schedule, client, max_concurrency, false), stop, on_progress).await
}

/// Sends the requests before the measurement. Their synthetic prompts do not occur again.
async fn warm_up(
    plan: &LoadTestPlan,
    client: &Arc<Client>,
    stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    on_progress: &mut dyn FnMut(&LoadTestProgress),
) -> LoadRun {
    let max_concurrency = match plan.pace {
        Pace::Open { max_concurrency, .. } => max_concurrency.unwrap_or(1),
        Pace::Closed { concurrency } => concurrency,
    };
    // No measured request has these numbers, so synthetic prompts differ from the measured ones.
    let first = u64::MAX / 2;
    let plan = LoadTestPlan { requests: Some(first + plan.warm_up), duration: None, ..plan.clone() };
    let schedule = Schedule { plan: &plan, arrivals: None, next: first };
    drive(LoadDriver::new(schedule, Arc::clone(client), max_concurrency, true), stop, on_progress).await
}

/// A run in progress.
struct LoadDriver<'a> {
    schedule: Schedule<'a>,
    client: Arc<Client>,
    /// Highest number of requests in flight.
    max_concurrency: usize,
    start: Instant,
    due: Option<DueRequest>,
    in_flight: JoinSet<RequestRecord>,
    records: Vec<RequestRecord>,
    chunks: Arc<AtomicU64>,
    progress: LoadTestProgress,
}

impl<'a> LoadDriver<'a> {
    fn new(
        mut schedule: Schedule<'a>,
        client: Arc<Client>,
        max_concurrency: usize,
        warming_up: bool,
    ) -> Self {
        let due = schedule.next();
        Self {
            schedule,
            client,
            max_concurrency,
            start: Instant::now(),
            due,
            in_flight: JoinSet::new(),
            records: Vec::new(),
            chunks: Arc::default(),
            progress: LoadTestProgress { warming_up, ..LoadTestProgress::default() },
        }
    }

    /// Time at which to send the next request; `None` if no request is left or the limit on concurrency is
    /// reached.
    fn wake(&self) -> Option<Instant> {
        let due = self.due.as_ref()?;
        (self.in_flight.len() < self.max_concurrency).then(|| self.start + due.at.unwrap_or_default())
    }

    fn send(&mut self) {
        let Some(DueRequest { index, at, body }) = self.due.take() else { return };
        let start = self.start;
        let closed_after = self.schedule.plan.duration.filter(|_| at.is_none());
        if closed_after.is_some_and(|duration| start.elapsed() >= duration) {
            return;
        }
        let (client, chunks) = (Arc::clone(&self.client), Arc::clone(&self.chunks));
        let path = self.schedule.plan.bodies.endpoint.path();
        let sent = Instant::now();
        self.in_flight.spawn(async move {
            let (answer, outcome) = client.ask(path, body, &chunks).await;
            let since = |then: Instant| then.saturating_duration_since(start);
            RequestRecord {
                index,
                due: at.unwrap_or(since(sent)),
                sent: since(sent),
                chunks: answer.chunks.into_iter().map(since).collect(),
                ended: start.elapsed(),
                usage: answer.usage,
                outcome,
            }
        });
        self.progress.sent += 1;
        self.due = self.schedule.next();
    }

    fn collect(&mut self, record: RequestRecord) {
        self.progress.ended += 1;
        self.progress.failed += u64::from(record.outcome.is_err());
        self.records.push(record);
    }

    fn progress(&mut self) -> &LoadTestProgress {
        self.progress.elapsed = self.start.elapsed();
        self.progress.chunks = self.chunks.load(Ordering::Relaxed);
        &self.progress
    }
}

async fn drive(
    mut driver: LoadDriver<'_>,
    mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    on_progress: &mut dyn FnMut(&LoadTestProgress),
) -> LoadRun {
    let cpu = cpu_time();
    let mut report = tokio::time::interval(REPORT_EVERY);
    report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut interrupted = false;
    while driver.due.is_some() || !driver.in_flight.is_empty() {
        let wake = driver.wake();
        let sleep_end = wake.unwrap_or(driver.start);
        tokio::select! {
            biased;
            () = stop.as_mut() => {
                interrupted = true;
                break;
            }
            () = tokio::time::sleep_until(sleep_end.into()), if wake.is_some() => driver.send(),
            Some(record) = driver.in_flight.join_next(), if !driver.in_flight.is_empty() => {
                driver.collect(record.expect("the task of a request neither panics nor is aborted"));
            }
            _ = report.tick() => on_progress(driver.progress()),
        }
    }
    on_progress(driver.progress());
    let unfinished = driver.in_flight.len();
    driver.in_flight.abort_all();
    LoadRun {
        records: driver.records,
        elapsed: driver.start.elapsed(),
        chunks: driver.chunks.load(Ordering::Relaxed),
        unfinished: unfinished as u64,
        interrupted,
        cpu: cpu_time().saturating_sub(cpu),
    }
}

/// CPU time of all threads of this process, user and system.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
