//! When open requests must have ended.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::scheduler::RequestId;

/// The deadlines of those requests that have one.
#[derive(Debug, Default)]
pub struct Deadlines {
    in_order: BTreeSet<(Instant, RequestId)>,
    of: HashMap<RequestId, Instant>,
}

impl Deadlines {
    /// The request must have ended by then.
    pub fn add(&mut self, id: RequestId, due: Instant) {
        self.of.insert(id, due);
        self.in_order.insert((due, id));
    }

    /// The request has ended.
    pub fn remove(&mut self, id: RequestId) {
        if let Some(due) = self.of.remove(&id) {
            self.in_order.remove(&(due, id));
        }
    }

    /// Takes one whose time has come.
    pub fn pop(&mut self, now: Instant) -> Option<RequestId> {
        let (due, id) = *self.in_order.first()?;
        if due > now {
            return None;
        }
        self.remove(id);
        Some(id)
    }
}
