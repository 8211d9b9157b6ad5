//! Executes step plans on one OS thread per rank. Each rank has a device, its shard of the model and its KV
//! cache.
//!
//! A plan is sent to every rank before any output is awaited. The first rank's output is the step's output. A
//! rank that fails or panics sends the reason instead. A rank that does not answer in time is abandoned, and
//! named in the error. One pool of threads computes the masks of grammars for all ranks. A draft model runs
//! on the same devices, and proposes the drafts of a step at its beginning (`draft`).

mod decoder;
mod draft;
mod inputs;
mod mask_pool;
mod memory;
mod rank;
mod sampler;
mod step_times;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use memory::{DoesNotFit, MemoryNeeds, MemoryPlan, WeightBytes, token_bytes};
pub(crate) use memory::{GRAPH_LAUNCH_BYTES, gib, graph_rows};
pub use rank::{DraftParts, RankParts};
pub(crate) use step_times::measure_step_times;

use mask_pool::MaskPool;

use crate::comm::Communicator;
use crate::device::Device;
use crate::engine::{EngineError, Executor};
use crate::scheduler::step_plan::{StepOutput, StepPlan};

// The scheduler and the device must use blocks of the same size.
const _: () = assert!(crate::scheduler::step_plan::BLOCK_TOKENS == crate::device::BLOCK_TOKENS);

/// A rank's answer to a plan.
type RankOutcome = Result<StepOutput, RankFailure>;

/// Why a rank has no output for a plan.
#[derive(Debug)]
enum RankFailure {
    /// The rank itself failed.
    Own(String),
    /// The rank has not answered in time.
    Late,
    /// The rank waited for another rank that did not answer.
    Peer(String),
}

/// The ranks of one model, as an [`Executor`].
#[derive(Debug)]
pub struct Runner {
    // Dropped first: the ranks use the pool.
    ranks: Vec<Rank>,
    _mask_pool: MaskPool,
    step_timeout: Duration,
}

/// Settings of a [`Runner`].
#[derive(Debug, Clone, Copy)]
pub struct RunnerOptions {
    /// A step that takes longer is an error.
    pub step_timeout: Duration,
    /// Threads that compute the masks of grammars beside the forward pass. Without any, the ranks compute
    /// them after it.
    pub mask_threads: usize,
}

/// The engine's handle on a rank.
#[derive(Debug)]
struct Rank {
    /// Channel for plans; `None` while the runner is dropped.
    plans: Option<flume::Sender<Arc<StepPlan>>>,
    outcomes: flume::Receiver<RankOutcome>,
    /// Receives a message once the rank is ready for plans; closed if it never will be.
    prepared: flume::Receiver<()>,
    /// `None` while the runner is dropped, or if the thread hangs and must not be joined.
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    /// Starts a thread per rank, and the threads for masks. A rank whose thread cannot be started is a failed
    /// rank.
    ///
    /// # Panics
    /// If `parts` is empty.
    pub fn start<D: Device, C: Communicator<D>>(parts: Vec<RankParts<D, C>>, options: RunnerOptions) -> Self {
        assert!(!parts.is_empty(), "a runner needs a rank");
        let mask_pool = MaskPool::start(options.mask_threads);
        let ranks = parts.len();
        let ranks = parts.into_iter().enumerate().map(|(index, parts)| {
            let place = mask_pool::RankPlace { rank: index, ranks, masks: mask_pool.submitter() };
            let (plans, inbox) = flume::unbounded();
            let (outbox, outcomes) = flume::unbounded();
            let (done, prepared) = flume::bounded(1);
            let refused = outbox.clone();
            let thread = std::thread::Builder::new()
                .name(format!("rank-{index}"))
                .spawn(move || rank::run_rank(parts, place, &inbox, &outbox, done));
            if let Err(error) = &thread {
                let failure = RankFailure::Own(format!("the system cannot start its thread: {error}"));
                let _unread = refused.send(Err(failure));
            }
            Rank { plans: Some(plans), outcomes, prepared, thread: thread.ok() }
        });
        Self { ranks: ranks.collect(), _mask_pool: mask_pool, step_timeout: options.step_timeout }
    }

    /// Waits until every rank has allocated its buffers, registered them with the other ranks and captured
    /// its graphs. Plans may be enqueued before that.
    ///
    /// # Errors
    /// The reason why a rank will never be ready. The runner cannot be used after that.
    pub fn prepared(&mut self) -> Result<(), EngineError> {
        let mut peer = None;
        for (index, rank) in self.ranks.iter().enumerate() {
            if rank.prepared.recv().is_ok() {
                continue;
            }
            // A thread that ends without this message has sent the reason as its outcome.
            match rank.outcomes.recv() {
                // The rank that it waited for may report the cause.
                Ok(Err(RankFailure::Peer(message))) => {
                    _ = peer.get_or_insert(format!("rank {index} failed: {message}"))
                }
                Ok(Err(RankFailure::Own(message))) => {
                    return Err(EngineError { message: format!("rank {index} failed: {message}") });
                }
                _ => return Err(EngineError { message: format!("rank {index} has ended") }),
            }
        }
        peer.map_or(Ok(()), |message| Err(EngineError { message }))
    }
}

impl Executor for Runner {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        for (index, rank) in self.ranks.iter().enumerate() {
            let sent = rank.plans.as_ref().is_some_and(|plans| plans.send(Arc::clone(plan)).is_ok());
            if !sent {
                return Err(EngineError { message: format!("rank {index} has ended") });
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let deadline = Instant::now() + self.step_timeout;
        let (mut first, mut peer, mut late) = (None, None, Vec::new());
        for (index, rank) in self.ranks.iter_mut().enumerate() {
            match rank.outcome(deadline) {
                Ok(output) => _ = first.get_or_insert(output),
                Err(RankFailure::Own(message)) => {
                    return Err(EngineError { message: format!("rank {index} failed: {message}") });
                }
                // The ranks that it waited for may report the cause.
                Err(RankFailure::Peer(message)) => {
                    _ = peer.get_or_insert(format!("rank {index} failed: {message}"))
                }
                Err(RankFailure::Late) => late.push(index.to_string()),
            }
        }
        let took = self.step_timeout.as_secs_f64();
        let message = match (late.len(), peer) {
            (0, None) => return Ok(first.expect("a runner has a rank")),
            (0, Some(message)) => message,
            (1, _) => format!("rank {} failed: a step did not end within {took} s", late[0]),
            (_, _) => format!("ranks {} failed: a step did not end within {took} s", late.join(", ")),
        };
        Err(EngineError { message })
    }
}

impl Rank {
    /// Waits until `deadline` for the output of the earliest step.
    fn outcome(&mut self, deadline: Instant) -> RankOutcome {
        match self.outcomes.recv_deadline(deadline) {
            Ok(outcome) => outcome,
            Err(flume::RecvTimeoutError::Disconnected) => {
                Err(RankFailure::Own("its thread has ended".to_owned()))
            }
            Err(flume::RecvTimeoutError::Timeout) => {
                self.thread = None;
                Err(RankFailure::Late)
            }
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // The thread ends when its channel closes, after the plans still in it.
        self.plans = None;
        if let Some(thread) = self.thread.take() {
            let _already_reported = thread.join();
        }
    }
}
