//! Running servers that share the lines of one file.
//!
//! A line goes to the server with the most free places. A server that refuses a line for lack of capacity
//! rests for its `Retry-After` and then gets half as many lines at a time ([`Window`]); a server that cannot
//! be reached rests for a time that doubles. The lines of both go to the other servers meanwhile.

mod connections;

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::request;
use crate::batch::{Line, RunLine, RunOutcome};
use crate::http_client::{Target, Window, doubled};
use crate::server::error::ApiError;
use connections::{Connections, Exchange, Reply};

/// How often a line may lose its connection after it was sent. After that the line is taken to be the cause.
const MAX_CUTS: u32 = 5;

/// Limits of a fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct FleetLimits {
    /// Lines in flight of each server.
    pub(super) each: usize,
    /// Time of a request.
    pub(super) request: Duration,
    /// Time without an answer of any server after which the run ends.
    pub(super) give_up: Duration,
}

/// Servers that share the lines of one file.
pub(super) struct Fleet {
    servers: Vec<Connections>,
    limits: FleetLimits,
    state: Mutex<FleetState>,
    /// Notified when a place becomes free.
    freed: Notify,
}

struct FleetState {
    loads: Vec<Load>,
    /// Time of the last answer from any server.
    answered: Instant,
    /// The error that stopped the run.
    fault: Option<String>,
}

/// The load of a server.
#[derive(Debug)]
struct Load {
    in_flight: usize,
    /// The lines that may be in flight, and its rest.
    window: Window,
    /// Failures and refusals without an answer between them. Those of lines that ran together count once.
    failures: u32,
    /// Time of the last failure that counted.
    failed: Option<Instant>,
}

/// An attempt of a line.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// The server's index.
    server: usize,
    /// The time when it began.
    sent: Instant,
}

/// How long to wait for a place.
enum Place {
    /// The server's index.
    Free(usize),
    /// Until a server's rest ends, or until a place becomes free.
    Wait(Option<Duration>),
    /// No line is run any more.
    Never,
}

impl Fleet {
    pub(super) fn new(targets: Vec<Target>, limits: FleetLimits) -> Arc<Self> {
        let load = |_| Load { in_flight: 0, window: Window::new(limits.each), failures: 0, failed: None };
        let loads = (0..targets.len()).map(load).collect();
        let state = FleetState { loads, answered: Instant::now(), fault: None };
        let servers = targets.into_iter().map(Connections::new).collect();
        Arc::new(Self { servers, limits, state: Mutex::new(state), freed: Notify::new() })
    }

    /// Runs lines by these servers.
    pub(super) fn run_line(self: Arc<Self>) -> RunLine {
        Arc::new(move |line| {
            let fleet = Arc::clone(&self);
            Box::pin(async move { fleet.run(line).await })
        })
    }

    /// The error that stopped the run, if any.
    pub(super) fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }

    fn state(&self) -> MutexGuard<'_, FleetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, line: Line) -> RunOutcome {
        let body = match request::body(&line) {
            Ok(body) => body,
            Err(error) => return refused(&error),
        };
        let mut cuts = 0;
        loop {
            let Some(server) = self.place().await else { return RunOutcome::Parked };
            let sent = Instant::now();
            let outcome = self.attempt(server, &line, body.clone()).await;
            let cut = matches!(outcome, Exchange::Cut(_));
            if let Some(ended) = self.ended(Attempt { server, sent }, &line, outcome) {
                return ended;
            }
            cuts += u32::from(cut);
            if cuts >= MAX_CUTS {
                let text = format!("the servers ended the connection of this request {cuts} times");
                return refused(&ApiError::Internal(text));
            }
        }
    }

    async fn attempt(&self, server: usize, line: &Line, body: Bytes) -> Exchange {
        // Gives the place back also if the line is given up.
        let _place = TakenPlace { fleet: self, server };
        let exchange = self.servers[server].post(line.endpoint.as_str(), body);
        match tokio::time::timeout(self.limits.request, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Exchange::Cut(format!("no answer within {:?}", self.limits.request)),
        }
    }

    /// Notes what an attempt says about its server. `None` if the line has to be tried again.
    fn ended(&self, attempt: Attempt, line: &Line, outcome: Exchange) -> Option<RunOutcome> {
        let name = self.servers[attempt.server].name();
        match outcome {
            Exchange::Reply(Reply { status: status @ (401 | 403), body, .. }) => {
                let body = String::from_utf8_lossy(&body);
                self.stop(format!("{name} refuses access with status {status}: {}", shortened(&body)));
                Some(RunOutcome::Parked)
            }
            Exchange::Reply(Reply { status: 429, retry_after, .. }) => {
                self.busy(attempt, retry_after);
                None
            }
            Exchange::Reply(Reply { status: status @ (408 | 502..=504), retry_after, .. }) => {
                self.failed(attempt, &format!("status {status}"), retry_after);
                None
            }
            Exchange::Unreachable(why) | Exchange::Cut(why) => {
                self.failed(attempt, &why, None);
                None
            }
            Exchange::Reply(Reply { status, body, ignored, .. }) => {
                self.answered(attempt.server);
                let offline = line.offline.filter(|_| (200..300).contains(&status));
                let text = request::reply(line.endpoint, offline, &body);
                Some(match text {
                    Some(body) => RunOutcome::Answered { status, body, ignored },
                    None => {
                        let got = String::from_utf8_lossy(&body);
                        let text = format!("{name} answered no JSON object: {}", shortened(&got));
                        refused(&ApiError::Internal(text))
                    }
                })
            }
        }
    }

    fn answered(&self, server: usize) {
        let mut state = self.state();
        state.answered = Instant::now();
        let load = &mut state.loads[server];
        load.failures = 0;
        load.window.answered();
    }

    /// Lets a server rest that has no capacity.
    fn busy(&self, attempt: Attempt, retry_after: Option<Duration>) {
        let now = Instant::now();
        let mut state = self.state();
        state.answered = now;
        let load = &mut state.loads[attempt.server];
        load.failures += u32::from(load.window.refused(attempt.sent, now));
        let rest = retry_after.unwrap_or_else(|| doubled(load.failures.saturating_sub(1)));
        load.window.close(rest, now);
    }

    /// Lets a server rest that has failed. If no server has answered for too long, the run ends.
    fn failed(&self, attempt: Attempt, why: &str, retry_after: Option<Duration>) {
        let (now, name) = (Instant::now(), self.servers[attempt.server].name());
        let mut state = self.state();
        let without_answer = now - state.answered;
        // A server that still works on a line may answer it.
        let is_idle = state.loads.iter().all(|load| load.in_flight == 0);
        let load = &mut state.loads[attempt.server];
        // Requests that were sent before the last failure fail, too. They say nothing new.
        if load.failed.is_none_or(|failed| attempt.sent >= failed) {
            load.failed = Some(now);
            load.failures += 1;
            let rest = load.window.close(retry_after.unwrap_or_else(|| doubled(load.failures - 1)), now);
            tracing::warn!("{name}: {why}; it gets no request for {rest:.1?}");
        }
        drop(state);
        if is_idle && without_answer >= self.limits.give_up {
            let seconds = without_answer.as_secs();
            self.stop(format!("no server has answered for {seconds} s; {name} failed last: {why}"));
        }
    }

    fn stop(&self, fault: String) {
        self.state().fault.get_or_insert(fault);
        self.freed.notify_waiters();
    }

    /// Takes a place of a server. `None` if no line is run any more.
    async fn place(&self) -> Option<usize> {
        loop {
            let mut freed = pin!(self.freed.notified());
            // From here on a notification is not missed.
            freed.as_mut().enable();
            match self.find_place() {
                Place::Free(server) => return Some(server),
                Place::Never => return None,
                Place::Wait(None) => freed.await,
                Place::Wait(Some(rest)) => {
                    let _either = tokio::time::timeout(rest, freed).await;
                }
            }
        }
    }

    fn find_place(&self) -> Place {
        let now = Instant::now();
        let mut state = self.state();
        if state.fault.is_some() {
            return Place::Never;
        }
        let free = |load: &Load| load.window.limit().saturating_sub(load.in_flight);
        let is_awake = |load: &Load| load.window.closed_for(now).is_none();
        let open = state.loads.iter().enumerate().filter(|(_, load)| is_awake(load) && free(load) > 0);
        if let Some(server) = open.max_by_key(|(_, load)| free(load)).map(|(server, _)| server) {
            state.loads[server].in_flight += 1;
            return Place::Free(server);
        }
        Place::Wait(state.loads.iter().filter_map(|load| load.window.closed_for(now)).min())
    }
}

/// A place of a server, which is free again when this is dropped.
struct TakenPlace<'a> {
    fleet: &'a Fleet,
    server: usize,
}

impl Drop for TakenPlace<'_> {
    fn drop(&mut self) {
        self.fleet.state().loads[self.server].in_flight -= 1;
        self.fleet.freed.notify_one();
    }
}

/// The error record of a line, for a fault that this command found.
fn refused(error: &ApiError) -> RunOutcome {
    let status = error.status().as_u16();
    RunOutcome::Answered { status, body: error.to_json(), ignored: Vec::new() }
}

/// The first characters of a server's text.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    let start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() { start + "…" } else { start }
}
