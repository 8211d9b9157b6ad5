//! One account per open request, which is answered exactly once: an account is opened when the scheduler has taken
//! the request, receives its updates, and is closed by the one with a finish, or by the client's leaving.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use crate::request::{Cost, Finish, Update};
use crate::scheduler::RequestId;

/// The open requests and where their updates go.
#[derive(Debug)]
pub struct OpenRequests {
    accounts: HashMap<RequestId, OpenRequest>,
    interval: usize,
    /// Steps whose updates have all been posted.
    steps: usize,
    /// Accounts that began to hold something back, and in which step, in the order in which they did.
    holding: VecDeque<(RequestId, usize)>,
}

/// What a client has been told, and what not yet.
#[derive(Debug)]
struct OpenRequest {
    updates: mpsc::UnboundedSender<Update>,
    /// Updates that it is told at a time.
    interval: usize,
    /// Whether it has been told a token.
    begun: bool,
    held: Vec<Update>,
    /// The step of the first update that is held.
    held_since: usize,
}

impl OpenRequests {
    /// A client hears its first token at once, and what comes then `interval` updates at a time: to tell somebody something takes the
    /// same however much it is, most of it the system's. What ends an answer is never held back, nor anything before it, and nothing
    /// is for more than `interval` steps, though its sequence be preempted.
    pub fn new(interval: usize) -> Self {
        Self { accounts: HashMap::new(), interval, steps: 0, holding: VecDeque::new() }
    }

    /// Opens an account, `each` of whose updates is told at once or not. The channel is unbounded in type, and bounded in fact by the request's `max_tokens`, so
    /// that the engine never waits for a client.
    pub fn open(&mut self, id: RequestId, updates: mpsc::UnboundedSender<Update>, each: bool) {
        let interval = if each { 1 } else { self.interval };
        let account = OpenRequest { updates, interval, begun: false, held: Vec::new(), held_since: 0 };
        let earlier = self.accounts.insert(id, account);
        contain(earlier.is_none(), id, "opened twice");
    }

    /// Sends an update, and closes the account with the last one. A client that has gone is none of our concern
    /// here: its abort is under way.
    pub fn post(&mut self, id: RequestId, update: Update) {
        let last = update.finish.is_some();
        let account = self.accounts.get_mut(&id);
        contain(account.is_some(), id, "answered after it was closed");
        if let Some(account) = account {
            if account.begun && !last && account.held.len() + 1 < account.interval {
                if account.held.is_empty() {
                    account.held_since = self.steps;
                    self.holding.push_back((id, self.steps));
                }
                account.held.push(update);
                return;
            }
            account.tell(Some(update));
        }
        if last {
            self.accounts.remove(&id);
        }
    }

    /// All updates of a step have been posted. Who would have heard more by now, had there been more, hears what there is.
    pub fn step(&mut self) {
        self.steps += 1;
        while let Some((id, since)) =
            self.holding.pop_front_if(|(_, since)| self.steps - *since >= self.interval)
        {
            if let Some(account) = self.accounts.get_mut(&id).filter(|account| account.held_since == since) {
                account.tell(None);
            }
        }
    }

    /// Closes an account whose client wants no more, but may still listen for what it has cost. Says whether it was open.
    pub fn abandon(&mut self, id: RequestId, cost: Cost) -> bool {
        let Some(mut account) = self.accounts.remove(&id) else { return false };
        account.end("the client has left", cost);
        true
    }

    /// Ends every open request with an error, and with what it has cost.
    pub fn fail_all(&mut self, reason: &str, mut cost: impl FnMut(RequestId) -> Cost) {
        for (id, mut account) in self.accounts.drain() {
            account.end(reason, cost(id));
        }
    }

    /// Open accounts.
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether every request has been answered.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }
}

impl OpenRequest {
    fn end(&mut self, reason: &str, cost: Cost) {
        let finish = Some(Finish::Error(reason.to_owned()));
        self.tell(Some(Update { finish, cost, ..Update::default() }));
    }

    fn tell(&mut self, update: Option<Update>) {
        for update in self.held.drain(..).chain(update) {
            self.begun |= update.token.is_some();
            let _gone = self.updates.send(update);
        }
    }
}

/// A broken account is our bug: it stops a debug build, and in release it is logged and hurts no other request.
fn contain(sound: bool, id: RequestId, what: &str) {
    if !sound {
        tracing::error!(request = id.0, "a bug in the ledger: request {what}");
    }
    debug_assert!(sound, "request {} {what}", id.0);
}
