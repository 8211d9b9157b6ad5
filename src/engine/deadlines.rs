//! Deadlines of open requests, earliest first.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::scheduler::RequestId;

/// Deadlines of the open requests that have one.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    in_order: BTreeSet<(Instant, RequestId)>,
    of: HashMap<RequestId, Instant>,
}

impl Deadlines {
    /// Sets a request's deadline.
    pub(super) fn set(&mut self, id: RequestId, deadline: Instant) {
        self.remove(id);
        self.of.insert(id, deadline);
        self.in_order.insert((deadline, id));
    }

    /// Forgets a request's deadline.
    pub(super) fn remove(&mut self, id: RequestId) {
        if let Some(deadline) = self.of.remove(&id) {
            self.in_order.remove(&(deadline, id));
        }
    }

    /// Removes and returns a request whose deadline has passed.
    pub(super) fn pop(&mut self, now: Instant) -> Option<RequestId> {
        let (deadline, id) = *self.in_order.first()?;
        if deadline > now {
            return None;
        }
        self.remove(id);
        Some(id)
    }
}
