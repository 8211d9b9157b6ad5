//! Open requests and the channels of their updates. Each request is answered exactly once: it is opened when
//! the scheduler has taken it, and closed by the update with a finish or by its client's abort.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use crate::request::{Cost, Finish, Update};
use crate::scheduler::RequestId;

/// The open requests, and the updates that are buffered for them.
#[derive(Debug)]
pub struct OpenRequests {
    requests: HashMap<RequestId, OpenRequest>,
    interval: usize,
    /// Steps whose updates have all been sent or buffered.
    steps: usize,
    /// Requests that began to buffer updates, each with the step in which it did, in that order.
    buffering: VecDeque<(RequestId, usize)>,
}

/// One open request.
#[derive(Debug)]
struct OpenRequest {
    updates: mpsc::UnboundedSender<Update>,
    /// Updates that the client gets at a time.
    interval: usize,
    /// Whether a token has been sent.
    begun: bool,
    buffered: Vec<Update>,
    /// The step of the first buffered update.
    buffered_since: usize,
}

impl OpenRequests {
    /// Sends a client its first token at once and later updates `interval` at a time: most of the cost of a
    /// message is the operating system's and does not depend on the message's length. A finish is never held
    /// back, nor are the updates before it, and no update is held back for more than `interval` steps, even
    /// if its sequence is preempted.
    pub fn new(interval: usize) -> Self {
        Self { requests: HashMap::new(), interval, steps: 0, buffering: VecDeque::new() }
    }

    /// Opens a request. With `flush_every_token` no update is buffered. The channel's type is unbounded so
    /// that the engine never waits for a client; the request's `max_tokens` bounds its length.
    pub fn open(&mut self, id: RequestId, updates: mpsc::UnboundedSender<Update>, flush_every_token: bool) {
        let interval = if flush_every_token { 1 } else { self.interval };
        let (buffered, buffered_since) = (Vec::new(), 0);
        let request = OpenRequest { updates, interval, begun: false, buffered, buffered_since };
        let earlier = self.requests.insert(id, request);
        report_bug(earlier.is_none(), id, "was opened twice");
    }

    /// Sends or buffers an update, and closes the request with the last one. If the client has gone, the
    /// update is dropped: the client's abort is on its way.
    pub fn send(&mut self, id: RequestId, update: Update) {
        let last = update.finish.is_some();
        let request = self.requests.get_mut(&id);
        report_bug(request.is_some(), id, "was answered after it was closed");
        if let Some(request) = request {
            if request.begun && !last && request.buffered.len() + 1 < request.interval {
                if request.buffered.is_empty() {
                    request.buffered_since = self.steps;
                    self.buffering.push_back((id, self.steps));
                }
                request.buffered.push(update);
                return;
            }
            request.flush(Some(update));
        }
        if last {
            self.requests.remove(&id);
        }
    }

    /// Ends a step: flushes requests whose oldest buffered update is `interval` steps old.
    pub fn end_step(&mut self) {
        self.steps += 1;
        while let Some((id, since)) =
            self.buffering.pop_front_if(|(_, since)| self.steps - *since >= self.interval)
        {
            let request = self.requests.get_mut(&id).filter(|request| request.buffered_since == since);
            if let Some(request) = request {
                request.flush(None);
            }
        }
    }

    /// Whether the request is open.
    pub fn contains(&self, id: RequestId) -> bool {
        self.requests.contains_key(&id)
    }

    /// Closes a request whose client has left. The client may still read the request's cost. Unknown requests
    /// are ignored.
    pub fn abort(&mut self, id: RequestId, cost: Cost) {
        if let Some(mut request) = self.requests.remove(&id) {
            request.end("the client has left", cost);
        }
    }

    /// Ends every open request with an error and its cost.
    pub fn fail_all(&mut self, reason: &str, mut cost: impl FnMut(RequestId) -> Cost) {
        for (id, mut request) in self.requests.drain() {
            request.end(reason, cost(id));
        }
    }

    /// Number of open requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether every request has been answered.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

impl OpenRequest {
    fn end(&mut self, reason: &str, cost: Cost) {
        let finish = Some(Finish::Error(reason.to_owned()));
        self.flush(Some(Update { finish, cost, ..Update::default() }));
    }

    fn flush(&mut self, last: Option<Update>) {
        for update in self.buffered.drain(..).chain(last) {
            self.begun |= !update.tokens.is_empty();
            let _client_gone = self.updates.send(update);
        }
    }
}

/// Panics in a debug build if `sound` is false; a release build logs the bug and goes on, so that no other
/// request fails.
fn report_bug(sound: bool, id: RequestId, what: &str) {
    if !sound {
        tracing::error!(request = id.0, "a bug in the engine: request {what}");
    }
    debug_assert!(sound, "request {} {what}", id.0);
}
