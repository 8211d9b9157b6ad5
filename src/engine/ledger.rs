//! One account per open request, which is answered exactly once: an account is opened when the scheduler has taken
//! the request, receives its updates, and is closed by the one with a finish, or by the client's leaving.

use std::collections::HashMap;

use tokio::sync::mpsc;

use crate::request::{Finish, Update};
use crate::scheduler::RequestId;

/// The open requests and where their updates go.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: HashMap<RequestId, mpsc::UnboundedSender<Update>>,
}

impl Ledger {
    /// Opens an account. The channel is unbounded in type, and bounded in fact by the request's `max_tokens`, so
    /// that the engine never waits for a client.
    pub fn open(&mut self, id: RequestId, updates: mpsc::UnboundedSender<Update>) {
        let earlier = self.accounts.insert(id, updates);
        contain(earlier.is_none(), id, "opened twice");
    }

    /// Sends an update, and closes the account with the last one. A client that has gone is none of our concern
    /// here: its abort is under way.
    pub fn post(&mut self, id: RequestId, update: Update) {
        let last = update.finish.is_some();
        let account = self.accounts.get(&id);
        contain(account.is_some(), id, "answered after it was closed");
        if let Some(account) = account {
            let _gone = account.send(update);
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
        for (_, account) in self.accounts.drain() {
            let finish = Some(Finish::Error(reason.to_owned()));
            let _gone = account.send(Update { finish, ..Update::default() });
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

/// A broken account is our bug: it stops a debug build, and in release it is logged and hurts no other request.
fn contain(sound: bool, id: RequestId, what: &str) {
    if !sound {
        tracing::error!(request = id.0, "a bug in the ledger: request {what}");
    }
    debug_assert!(sound, "request {} {what}", id.0);
}
