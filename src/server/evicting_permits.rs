//! A bounded number of permits for clients that may stay silent. When all are held, a new holder evicts the
//! oldest, so that silent clients cannot block other clients.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The permits. Clones share them.
#[derive(Clone)]
pub(crate) struct EvictingPermits {
    capacity: usize,
    /// One sender per permit, oldest first. Senders of permits that were dropped are removed when room is
    /// needed.
    held: Arc<Mutex<VecDeque<oneshot::Sender<()>>>>,
}

impl EvictingPermits {
    /// Makes `capacity` permits, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), held: Arc::default() }
    }

    /// Returns a permit at once. If all are held, the oldest holder is evicted.
    pub(crate) fn acquire(&self) -> EvictingPermit {
        let (sender, evicted) = oneshot::channel();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= self.capacity {
            held.retain(|permit| !permit.is_closed());
        }
        while held.len() >= self.capacity {
            // Dropping the sender notifies the holder.
            held.pop_front();
        }
        held.push_back(sender);
        EvictingPermit { evicted }
    }

    /// Number of permits held.
    pub(crate) fn held(&self) -> usize {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().filter(|permit| !permit.is_closed()).count()
    }
}

/// A permit, returned when dropped.
pub(crate) struct EvictingPermit {
    evicted: oneshot::Receiver<()>,
}

impl EvictingPermit {
    /// Resolves when a newer holder has evicted this one. Must not be polled again after that.
    pub(crate) async fn evicted(&mut self) {
        let _sender_dropped = (&mut self.evicted).await;
    }
}
