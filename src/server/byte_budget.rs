//! A limit on the bytes of all request bodies that the server holds at once. Bodies of a permitted size could
//! otherwise take more memory together than there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes held, and their limit.
pub(crate) struct ByteBudget {
    held: AtomicUsize,
    limit: usize,
}

/// The bytes of one body. Dropping it gives them back.
pub(crate) struct HeldBytes {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl ByteBudget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), limit })
    }

    /// Begins to count a body, which has no bytes yet.
    pub(crate) fn hold(self: &Arc<Self>) -> HeldBytes {
        HeldBytes { budget: Arc::clone(self), bytes: 0 }
    }
}

impl HeldBytes {
    /// Counts more bytes of the body. Returns `false`, and counts nothing, if they exceed the limit.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let within = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.budget.limit);
        let added = self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok();
        self.bytes += if added { bytes } else { 0 };
        added
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
