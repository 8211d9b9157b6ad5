//! State that the engine's thread and all handles share: the last published stats, the heartbeat, the places
//! taken in the queue, and whether new requests are refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::admission::{self, QueueSnapshot};
use super::heartbeat::Heartbeat;
use super::metrics::EngineMetrics;
use super::options::EngineOptions;
use super::stats::Stats;
use crate::request::Reject;
use crate::scheduler::{Counts, RequestId, SchedulerConfig};

/// State that the engine's thread and all handles share.
pub(super) struct SharedState {
    pub(super) config: SchedulerConfig,
    /// The part of the stats that a health check reads without a lock.
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) metrics: EngineMetrics,
    /// See [`EngineOptions::max_ttft`].
    pub(super) max_ttft: Option<Duration>,
    next_id: AtomicU64,
    /// The answer to every submit, once set.
    refusal: Mutex<Option<Reject>>,
    queue: Mutex<PermitQueue>,
}

/// The queue as handles know it.
struct PermitQueue {
    /// The stats that the engine's thread last published.
    stats: Stats,
    /// Requests with a permit that the scheduler does not count among its waiting ones yet.
    permits: usize,
}

impl SharedState {
    /// # Panics
    /// If the configuration or the options are unsound.
    pub(super) fn new(config: SchedulerConfig, options: &EngineOptions) -> Self {
        config.assert_sound();
        options.assert_sound();
        let queue = QueueSnapshot::empty(&config, &options.forecast);
        let stats = Stats { counts: Counts::empty(&config), queue, ..Stats::default() };
        Self {
            config,
            heartbeat: Arc::default(),
            metrics: options.metrics.clone(),
            max_ttft: options.max_ttft,
            next_id: AtomicU64::new(0),
            refusal: Mutex::new(None),
            queue: Mutex::new(PermitQueue { stats, permits: 0 }),
        }
    }

    /// An id that no other request has.
    pub(super) fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Refuses every later submit with `reject`. The first reason that ends the engine stays.
    pub(super) fn refuse(&self, reject: Reject) {
        let mut refusal = lock(&self.refusal);
        if !matches!(*refusal, Some(Reject::EngineDown(_))) {
            *refusal = Some(reject);
        }
    }

    /// The refusal of every submit, if set. No submit passes while the guard is held.
    pub(super) fn refusal(&self) -> MutexGuard<'_, Option<Reject>> {
        lock(&self.refusal)
    }

    /// Returns the refusal of every submit, if set.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn check_open(&self) -> Result<(), Reject> {
        self.refusal().clone().map_or(Ok(()), Err)
    }

    /// Checks the queue's room for `requests` more.
    ///
    /// # Errors
    /// See [`admission::check_room`], and the refusal of every submit.
    pub(super) fn check_room(&self, requests: usize) -> Result<(), Reject> {
        self.with_room(requests, |_| ())
    }

    /// Takes `requests` places in the queue.
    ///
    /// # Errors
    /// See [`Self::check_room`].
    pub(super) fn take_places(&self, requests: usize) -> Result<(), Reject> {
        self.with_room(requests, |queue| queue.permits += requests)
    }

    fn with_room<T>(&self, requests: usize, then: impl FnOnce(&mut PermitQueue) -> T) -> Result<T, Reject> {
        self.check_open()?;
        let mut queue = lock(&self.queue);
        admission::check_room(&self.config, &queue.stats.counts, queue.permits, requests)?;
        Ok(then(&mut queue))
    }

    /// Changes the number of a permit's places from `from` to `to`.
    ///
    /// # Errors
    /// See [`admission::check_group`]; the permit keeps its places.
    pub(super) fn change_places(&self, from: usize, to: usize) -> Result<(), Reject> {
        let mut queue = lock(&self.queue);
        let others = queue.permits - from;
        if to > from {
            admission::check_group(&self.config, &queue.stats.counts, others, to)?;
        }
        queue.permits = others + to;
        Ok(())
    }

    /// Gives `requests` places back.
    pub(super) fn free_places(&self, requests: usize) {
        lock(&self.queue).permits -= requests;
    }

    pub(super) fn stats(&self) -> Stats {
        lock(&self.queue).stats.clone()
    }

    /// Calls `read` with the last stats, without a copy.
    pub(super) fn with_stats<T>(&self, read: impl FnOnce(&Stats) -> T) -> T {
        read(&lock(&self.queue).stats)
    }

    pub(super) fn publish(&self, stats: Stats) {
        self.publish_taken(stats, 0);
    }

    /// Publishes stats that count `taken` requests which had a permit: at every time each is counted exactly
    /// once.
    pub(super) fn publish_taken(&self, stats: Stats, taken: usize) {
        self.heartbeat.publish(&stats);
        let mut queue = lock(&self.queue);
        queue.stats = stats;
        queue.permits -= taken;
    }

    /// Publishes the end of an engine that was stopped: nothing runs, waits or is pending.
    pub(super) fn publish_end(&self) {
        let mut stats = self.stats();
        let counts = &mut stats.counts;
        (counts.running, counts.waiting, counts.waiting_tokens) = (0, 0, 0);
        (counts.batch_running, counts.batch_waiting, counts.batch_blocks) = (0, 0, 0);
        (counts.blocks_used, counts.blocks_reserved) = (0, 0);
        counts.blocks_free = counts.blocks_total - counts.blocks_cached;
        (stats.in_flight, stats.busy_since) = (0, None);
        self.heartbeat.command_taken(false);
        self.publish(stats);
    }

    pub(super) fn set_failed(&self, reason: &str) {
        lock(&self.queue).stats.failed = Some(reason.to_owned());
        self.heartbeat.fail(reason);
    }
}

/// Locks a mutex whose data is replaced whole, and is therefore sound even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
