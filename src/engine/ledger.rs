//! One account per open request, which is answered exactly once: an account is opened when the scheduler has taken
//! the request, receives its updates, and is closed by the one with a finish, or by the client's leaving.

use std::collections::HashMap;

use tokio::sync::mpsc;

use crate::request::{Finish, Update};
use crate::scheduler::RequestId;

/// The open requests and where their updates go.
#[derive(Debug)]
pub struct Ledger {
    accounts: HashMap<RequestId, Account>,
    interval: usize,
}

/// What a client has been told, and what not yet.
#[derive(Debug)]
struct Account {
    updates: mpsc::UnboundedSender<Update>,
    /// Updates that it is told at a time.
    interval: usize,
    /// Whether it has been told a token.
    begun: bool,
    held: Vec<Update>,
}

impl Ledger {
    /// A client hears its first token at once, and what comes then `interval` updates at a time: to tell somebody something takes the
    /// same however much it is, most of it the system's. What ends an answer is never held back, nor anything before it.
    pub fn new(interval: usize) -> Self {
        Self { accounts: HashMap::new(), interval }
    }

    /// Opens an account, `each` of whose updates is told at once or not. The channel is unbounded in type, and bounded in fact by the request's `max_tokens`, so
    /// that the engine never waits for a client.
    pub fn open(&mut self, id: RequestId, updates: mpsc::UnboundedSender<Update>, each: bool) {
        let interval = if each { 1 } else { self.interval };
        let earlier = self.accounts.insert(id, Account { updates, interval, begun: false, held: Vec::new() });
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
                account.held.push(update);
                return;
            }
            account.tell(update);
        }
        if last {
            self.accounts.remove(&id);
        }
    }

    /// Closes an account without an answer, since nobody listens. Says whether it was open.
    pub fn abandon(&mut self, id: RequestId) -> bool {
        self.accounts.remove(&id).is_some()
    }

    /// Ends every open request with an error.
    pub fn fail_all(&mut self, reason: &str) {
        for (_, mut account) in self.accounts.drain() {
            let finish = Some(Finish::Error(reason.to_owned()));
            account.tell(Update { finish, ..Update::default() });
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

impl Account {
    fn tell(&mut self, update: Update) {
        self.begun |= update.token.is_some();
        for update in self.held.drain(..).chain([update]) {
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
