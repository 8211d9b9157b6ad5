//! Executes step plans: one OS thread per rank, each with a device, its shard of the model and a KV cache.
//!
//! Every rank is given a plan before any is waited for; the first rank's output is the step's. A rank that fails, or
//! panics, answers with the reason instead; one that does not answer in time is given up, and named.

mod inputs;
mod memory;
mod rank;
mod sampler;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use memory::{
    DoesNotFit, MemoryNeeds, MemoryPlan, RECORDED_LAUNCH, WeightBytes, gib, graph_rows, token_bytes,
};
pub use rank::RankParts;

use crate::comm::Communicator;
use crate::device::Device;
use crate::engine::{Executor, ExecutorError};
use crate::scheduler::step_plan::{StepOutput, StepPlan};

// The scheduler leases what the device stores.
const _: () = assert!(crate::scheduler::step_plan::BLOCK_TOKENS == crate::device::BLOCK_TOKENS);

/// What a rank's thread says of a step.
type RankOutcome = Result<StepOutput, RankFailure>;

/// Why a rank has no output.
#[derive(Debug)]
enum RankFailure {
    /// It failed.
    Own(String),
    /// It has not answered in time.
    Late,
    /// It waited for another in vain.
    Peer(String),
}

/// The ranks of one model, as an [`Executor`].
#[derive(Debug)]
pub struct Runner {
    ranks: Vec<Rank>,
    step_timeout: Duration,
}

/// The engine's end of a rank.
#[derive(Debug)]
struct Rank {
    /// `None` while dropping.
    plans: Option<flume::Sender<Arc<StepPlan>>>,
    outcomes: flume::Receiver<RankOutcome>,
    /// Says so once the rank takes plans; closed if it never will.
    prepared: flume::Receiver<()>,
    /// `None` while dropping, or if it hangs: nobody may wait for it then.
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    /// Starts a thread for each rank. A step that takes longer than `step_timeout` is a failure.
    ///
    /// # Panics
    /// If there is no rank, or the system has no thread to give.
    pub fn start<D: Device, C: Communicator<D>>(parts: Vec<RankParts<D, C>>, step_timeout: Duration) -> Self {
        assert!(!parts.is_empty(), "a runner needs a rank");
        let ranks = parts.into_iter().enumerate().map(|(index, parts)| {
            let (plans, inbox) = flume::unbounded();
            let (outbox, outcomes) = flume::unbounded();
            let (done, prepared) = flume::bounded(1);
            let thread = std::thread::Builder::new()
                .name(format!("rank-{index}"))
                .spawn(move || rank::live(parts, &inbox, &outbox, done))
                .expect("the system can start a thread");
            Rank { plans: Some(plans), outcomes, prepared, thread: Some(thread) }
        });
        Self { ranks: ranks.collect(), step_timeout }
    }

    /// Waits until every rank has allocated, met the others and recorded its steps. Plans may be enqueued before.
    ///
    /// # Errors
    /// Why a rank will never take a plan; it is no use to go on then.
    pub fn prepared(&mut self) -> Result<(), ExecutorError> {
        let mut peer = None;
        for (index, rank) in self.ranks.iter().enumerate() {
            if rank.prepared.recv().is_ok() {
                continue;
            }
            // A thread that ends without having said so has said why.
            match rank.outcomes.recv() {
                // The one that it waited for may have more to say.
                Ok(Err(RankFailure::Peer(message))) => {
                    _ = peer.get_or_insert(format!("rank {index} failed: {message}"))
                }
                Ok(Err(RankFailure::Own(message))) => {
                    return Err(ExecutorError { message: format!("rank {index} failed: {message}") });
                }
                _ => return Err(ExecutorError { message: format!("rank {index} has ended") }),
            }
        }
        peer.map_or(Ok(()), |message| Err(ExecutorError { message }))
    }
}

impl Executor for Runner {
    fn enqueue(&mut self, plan: &StepPlan) -> Result<(), ExecutorError> {
        let plan = Arc::new(plan.clone());
        for (index, rank) in self.ranks.iter().enumerate() {
            let sent = rank.plans.as_ref().is_some_and(|plans| plans.send(Arc::clone(&plan)).is_ok());
            if !sent {
                return Err(ExecutorError { message: format!("rank {index} has ended") });
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, ExecutorError> {
        let deadline = Instant::now() + self.step_timeout;
        let (mut first, mut peer, mut late) = (None, None, Vec::new());
        for (index, rank) in self.ranks.iter_mut().enumerate() {
            match rank.outcome(deadline) {
                Ok(output) => _ = first.get_or_insert(output),
                Err(RankFailure::Own(message)) => {
                    return Err(ExecutorError { message: format!("rank {index} failed: {message}") });
                }
                // The ones that it waited for may have more to say.
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
        Err(ExecutorError { message })
    }
}

impl Rank {
    /// Waits for the earliest step, and not for ever.
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
        // The thread ends when its inbox does, after the steps still in it.
        self.plans = None;
        if let Some(thread) = self.thread.take() {
            let _its_panic_was_answered = thread.join();
        }
    }
}
