//! Threads that compute the masks of grammars beside the forward pass.
//!
//! A rank submits the masks of a step as soon as it knows the tokens before them, and launches the forward
//! pass. When it comes to sample, it computes those masks itself that no thread has begun. The pool therefore
//! decides only when a mask is computed, never what it contains.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::device::{Device, DeviceError};
use crate::grammar::TokenMask;
use crate::scheduler::step_plan::SlotStart;

/// The masks of a row to compute.
#[derive(Debug)]
pub(super) struct MaskJob {
    /// The row's sequence.
    pub(super) start: Arc<SlotStart>,
    /// The index in its answer of the first token that the row samples.
    pub(super) index: usize,
    /// The drafts before the other tokens that it samples.
    pub(super) drafts: Vec<u32>,
}

/// The threads. Dropping the pool ends them after the masks that were submitted.
#[derive(Debug)]
pub(super) struct MaskPool {
    /// `None` while the pool is dropped.
    jobs: Option<flume::Sender<MaskJob>>,
    threads: Vec<JoinHandle<()>>,
}

/// A rank's place in its group, whose ranks share the pool and the masks.
#[derive(Debug)]
pub(super) struct RankPlace {
    /// Counted from 0.
    pub(super) rank: usize,
    /// The size of the group.
    pub(super) ranks: usize,
    pub(super) masks: MaskSubmitter,
}

/// The masks of the tokens that each row of a step samples; none for a row without a grammar.
pub(super) struct StepMasks {
    pub(super) rows: Vec<Arc<[TokenMask]>>,
    /// Time for which the device had to wait for them.
    pub(super) wait: Duration,
}

/// Submits masks to a pool. A rank that hangs keeps no pool alive.
#[derive(Debug, Clone)]
pub(super) struct MaskSubmitter(flume::WeakSender<MaskJob>);

impl MaskPool {
    /// Starts `threads` threads. Those that the system refuses to start are missing: their share of the masks
    /// is left to the ranks.
    pub(super) fn start(threads: usize) -> Self {
        // A step or a pass of a draft model submits at most one job per row, and at most two steps are in
        // flight.
        let (jobs, inbox) = flume::unbounded::<MaskJob>();
        let worker = |index: usize| {
            let inbox = inbox.clone();
            let thread = std::thread::Builder::new().name(format!("mask-{index}"));
            thread.spawn(move || inbox.iter().for_each(|job| _ = job.masks())).ok()
        };
        Self { jobs: Some(jobs), threads: (0..threads).map_while(worker).collect() }
    }

    pub(super) fn submitter(&self) -> MaskSubmitter {
        MaskSubmitter(self.jobs.as_ref().expect("the pool is not being dropped").downgrade())
    }
}

impl Drop for MaskPool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl MaskSubmitter {
    /// Submits the masks of rows. The tokens before must have been given to the sequences' matchers. Does
    /// nothing without threads.
    pub(super) fn submit(&self, masks: impl Iterator<Item = MaskJob>) {
        let Some(jobs) = self.0.upgrade().filter(|jobs| jobs.receiver_count() > 0) else { return };
        for job in masks {
            let _ended = jobs.send(job);
        }
    }
}

impl RankPlace {
    /// Submits the rank's share of the masks of a step's rows to the pool. Each rank submits another share.
    pub(super) fn submit(&self, rows: impl Iterator<Item = Option<MaskJob>>) {
        self.masks.submit(rows.skip(self.rank).step_by(self.ranks).flatten());
    }

    /// The masks of a step's rows. Those that the pool has not begun are computed here, from the last row on,
    /// since the pool begins with the first. Each rank begins with another row, so that they divide the work.
    pub(super) fn masks<D: Device>(
        &self,
        jobs: &[Option<MaskJob>],
        device: &D,
    ) -> Result<StepMasks, DeviceError> {
        let mut rows: Vec<Arc<[TokenMask]>> = vec![Arc::default(); jobs.len()];
        let mut device_waits_since = None;
        let first = jobs.len() * (self.rank + 1) / self.ranks;
        for index in (0..first).rev().chain((first..jobs.len()).rev()) {
            let Some(job) = &jobs[index] else { continue };
            if device_waits_since.is_none() && !job.is_ready() && device.is_idle()? {
                device_waits_since = Some(Instant::now());
            }
            rows[index] = job.masks();
        }
        let wait = device_waits_since.map(|since| since.elapsed());
        Ok(StepMasks { rows, wait: wait.unwrap_or_default() })
    }
}

impl MaskJob {
    /// The masks of the tokens that the row samples. The matcher keeps them, or the reason why there is none,
    /// for the ranks.
    pub(super) fn masks(&self) -> Arc<[TokenMask]> {
        self.start.grammar.as_ref().map(|grammar| grammar.masks(self.index, &self.drafts)).unwrap_or_default()
    }

    /// The number of the first drafts that the grammar allows.
    pub(super) fn count_allowed(&self) -> usize {
        let grammar = self.start.grammar.as_ref();
        grammar.map_or(self.drafts.len(), |grammar| grammar.count_allowed(self.index, &self.drafts))
    }

    /// Whether [`Self::masks`] returns at once.
    pub(super) fn is_ready(&self) -> bool {
        self.start.grammar.as_ref().is_none_or(|grammar| grammar.is_ready(self.index, &self.drafts))
    }
}
