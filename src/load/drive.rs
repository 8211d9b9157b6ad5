//! The run: requests leave when they are due, and their records come back in the order in which they end.
//!
//! One task sends and collects; every request is a task beside it. An open loop never waits for an answer; with a cap on
//! concurrency it sends late and the schedule still stands, so that the wait shows in the times from when requests were
//! due. The system's timers are good for about a millisecond, which is then the least that requests leave late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use super::arrivals::{Arrivals, Rate, Spacing};
use super::body::Bodies;
use super::client::{Client, Target};
use super::measure::{Record, Run};

/// How often the run is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How requests follow one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// At times of their own.
    Open {
        /// Requests per second.
        rate: Rate,
        /// How intervals are distributed.
        spacing: Spacing,
        /// Requests that may be out at once, if there is a limit.
        most: Option<usize>,
    },
    /// Each as soon as one before it has ended.
    Closed {
        /// Requests that are out at once.
        concurrency: usize,
    },
}

/// A run. It ends after so many requests or so much time, whichever is first; one of both must be given.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom to ask.
    pub target: Target,
    /// What.
    pub bodies: Bodies,
    /// When.
    pub pace: Pace,
    /// Requests at most.
    pub requests: Option<u64>,
    /// How long requests are due or sent; those that are out then are waited for.
    pub duration: Option<Duration>,
    /// Requests before those that count.
    pub warm_up: u64,
    /// How long an answer may take, to its last byte.
    pub timeout: Duration,
    /// Of the arrivals.
    pub seed: u64,
}

/// How a run is getting on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Whether requests count already.
    pub warming_up: bool,
    /// Since the beginning.
    pub elapsed: Duration,
    /// Requests sent.
    pub sent: u64,
    /// Requests that ended, however.
    pub ended: u64,
    /// Of those, how many failed.
    pub failed: u64,
    /// Chunks with content.
    pub chunks: u64,
}

/// What comes next, made before it is due: a long prompt takes time to write.
struct Due {
    index: u64,
    /// After the beginning; none as soon as there is room.
    at: Option<Duration>,
    body: Bytes,
}

/// Requests in order.
struct Schedule<'a> {
    plan: &'a Plan,
    arrivals: Option<Arrivals>,
    next: u64,
}

impl Schedule<'_> {
    fn next(&mut self) -> Option<Due> {
        let index = self.next;
        if self.plan.requests.is_some_and(|requests| index >= requests) {
            return None;
        }
        let at = match &mut self.arrivals {
            Some(arrivals) => Some(arrivals.next()?),
            None => None,
        };
        self.next += 1;
        Some(Due { index, at, body: self.plan.bodies.get(index) })
    }
}

/// Runs a plan until it ends or `stop` does: then nothing more is sent, what is out is given up, and the run says how
/// much. `watch` is called several times a second.
pub async fn run(plan: &Plan, stop: impl Future<Output = ()>, watch: &mut dyn FnMut(&Progress)) -> Run {
    let client = Arc::new(Client::new(plan.target.clone(), plan.timeout));
    let mut stop = std::pin::pin!(stop);
    if plan.warm_up > 0 {
        let run = warm_up(plan, &client, stop.as_mut(), watch).await;
        if run.interrupted {
            return Run { records: Vec::new(), ..run };
        }
    }
    let arrivals = match plan.pace {
        Pace::Open { rate, spacing, .. } => Some(Arrivals::new(rate, plan.duration, spacing, plan.seed)),
        Pace::Closed { .. } => None,
    };
    let most = match plan.pace {
        Pace::Open { most, .. } => most.unwrap_or(usize::MAX),
        Pace::Closed { concurrency } => concurrency,
    };
    let schedule = Schedule { plan, arrivals, next: 0 };
    drive(Driver::new(schedule, client, most, false), stop, watch).await
}

/// Requests that are not counted, with prompts that do not come again.
async fn warm_up(
    plan: &Plan,
    client: &Arc<Client>,
    stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    watch: &mut dyn FnMut(&Progress),
) -> Run {
    let most = match plan.pace {
        Pace::Open { most, .. } => most.unwrap_or(1),
        Pace::Closed { concurrency } => concurrency,
    };
    // Numbers that no counted request has, so that made-up prompts are others.
    let first = u64::MAX / 2;
    let plan = Plan { requests: Some(first + plan.warm_up), duration: None, ..plan.clone() };
    let schedule = Schedule { plan: &plan, arrivals: None, next: first };
    drive(Driver::new(schedule, Arc::clone(client), most, true), stop, watch).await
}

/// A run under way.
struct Driver<'a> {
    schedule: Schedule<'a>,
    client: Arc<Client>,
    /// Requests out at once.
    most: usize,
    start: Instant,
    due: Option<Due>,
    out: JoinSet<Record>,
    records: Vec<Record>,
    chunks: Arc<AtomicU64>,
    progress: Progress,
}

impl<'a> Driver<'a> {
    fn new(mut schedule: Schedule<'a>, client: Arc<Client>, most: usize, warming_up: bool) -> Self {
        let due = schedule.next();
        Self {
            schedule,
            client,
            most,
            start: Instant::now(),
            due,
            out: JoinSet::new(),
            records: Vec::new(),
            chunks: Arc::default(),
            progress: Progress { warming_up, ..Progress::default() },
        }
    }

    /// Until when to wait before the next is sent: none if nothing is due or there is no room.
    fn wake(&self) -> Option<Instant> {
        let due = self.due.as_ref()?;
        (self.out.len() < self.most).then(|| self.start + due.at.unwrap_or_default())
    }

    fn send(&mut self) {
        let Some(Due { index, at, body }) = self.due.take() else { return };
        let start = self.start;
        let closed_after = self.schedule.plan.duration.filter(|_| at.is_none());
        if closed_after.is_some_and(|duration| start.elapsed() >= duration) {
            return;
        }
        let (client, chunks) = (Arc::clone(&self.client), Arc::clone(&self.chunks));
        let path = self.schedule.plan.bodies.endpoint.path();
        let sent = Instant::now();
        self.out.spawn(async move {
            let (answer, outcome) = client.ask(path, body, &chunks).await;
            let since = |then: Instant| then.saturating_duration_since(start);
            Record {
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

    fn collect(&mut self, record: Record) {
        self.progress.ended += 1;
        self.progress.failed += u64::from(record.outcome.is_err());
        self.records.push(record);
    }

    fn progress(&mut self) -> &Progress {
        self.progress.elapsed = self.start.elapsed();
        self.progress.chunks = self.chunks.load(Ordering::Relaxed);
        &self.progress
    }
}

async fn drive(
    mut driver: Driver<'_>,
    mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    watch: &mut dyn FnMut(&Progress),
) -> Run {
    let cpu = cpu_time();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut interrupted = false;
    while driver.due.is_some() || !driver.out.is_empty() {
        let wake = driver.wake();
        tokio::select! {
            biased;
            () = stop.as_mut() => {
                interrupted = true;
                break;
            }
            () = tokio::time::sleep_until(wake.unwrap_or(driver.start).into()), if wake.is_some() => driver.send(),
            Some(record) = driver.out.join_next(), if !driver.out.is_empty() => {
                driver.collect(record.expect("a request's task neither panics nor is aborted"));
            }
            _ = look.tick() => watch(driver.progress()),
        }
    }
    watch(driver.progress());
    let unfinished = driver.out.len();
    driver.out.abort_all();
    Run {
        records: driver.records,
        elapsed: driver.start.elapsed(),
        chunks: driver.chunks.load(Ordering::Relaxed),
        unfinished: unfinished as u64,
        interrupted,
        cpu: cpu_time().saturating_sub(cpu),
    }
}

/// CPU time of this process so far, of all its threads, in user and system mode.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
