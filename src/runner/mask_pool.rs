//! Threads that compute the masks of grammars beside the forward pass.
//!
//! A rank submits the masks of a step as soon as it knows the tokens before them, and launches the forward
//! pass. When it comes to sample, it computes those masks itself that no thread has begun. The pool therefore
//! decides only when a mask is computed, never what it contains.

use std::sync::Arc;
use std::thread::JoinHandle;

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

/// Submits masks to a pool. A rank that hangs keeps no pool alive.
#[derive(Debug, Clone)]
pub(super) struct MaskSubmitter(flume::WeakSender<MaskJob>);

impl MaskPool {
    /// Starts `threads` threads. Those that the system refuses to start are missing: their share of the masks
    /// is left to the ranks.
    pub(super) fn start(threads: usize) -> Self {
        // A step submits at most one mask per row, and at most two steps are in flight.
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

impl MaskJob {
    /// The masks of the tokens that the row samples. The matcher keeps them, or the reason why there is none,
    /// for the ranks.
    pub(super) fn masks(&self) -> Arc<[TokenMask]> {
        self.start.grammar.as_ref().map(|grammar| grammar.masks(self.index, &self.drafts)).unwrap_or_default()
    }

    /// Whether [`Self::masks`] returns at once.
    pub(super) fn is_ready(&self) -> bool {
        self.start.grammar.as_ref().is_none_or(|grammar| grammar.is_ready(self.index))
    }
}
