//! The engine as its clients see it: take places in the queue, submit a group, read updates, drop to abort.
//!
//! The server checks the queue's room at a request's first byte and takes a place before it parses the body:
//! a burst that the queue cannot hold is refused before it costs parsing, rendering or tokenising.
//!
//! Commands reach the engine's thread over one channel. A command is sent while the lock of the refusal is
//! held and no refusal is set. The engine sets its final refusal before it empties the channel, so no command
//! stays unanswered.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::admission::{WaitLimits, retry_after};
use super::core::{Submission, SubmitOptions};
use super::heartbeat::Heartbeat;
use super::metrics::EngineMetrics;
use super::shared::SharedState;
use super::stats::Stats;
use crate::request::{Cost, Finish, Reject, Request, Tenant, Update};
use crate::scheduler::{RequestId, SchedulerConfig};

/// A command for the engine's thread.
pub(super) enum EngineCommand {
    /// Take a group, all or none, and reply.
    Submit(Box<SubmitCommand>),
    /// End a request whose client has left.
    Abort(RequestId),
    /// End every request and the thread.
    Stop,
}

/// A group with its place in the queue.
pub(super) struct SubmitCommand {
    pub(super) group: Vec<Submission>,
    pub(super) options: SubmitOptions,
    pub(super) permit: QueuePermit,
    pub(super) submitted_at: Instant,
    pub(super) reply: flume::Sender<Result<(), Reject>>,
}

/// A client's end of the engine; cheap to clone. The engine ends when all handles and streams are gone.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<SharedState>,
    commands: flume::Sender<EngineCommand>,
}

impl EngineHandle {
    pub(super) fn new(shared: Arc<SharedState>, commands: flume::Sender<EngineCommand>) -> Self {
        Self { shared, commands }
    }

    /// Takes a place in the queue for each request of a group. If the group's size is not known yet, take one
    /// place and change the permit later ([`QueuePermit::for_group`]). The scheduler checks again, since the
    /// prompts' tokens are not known yet.
    ///
    /// # Errors
    /// [`Reject::QueueFull`], [`Reject::QueueTokensFull`], or the refusal of all requests.
    pub fn enter(&self, requests: usize) -> Result<QueuePermit, Reject> {
        self.shared.take_places(requests)?;
        Ok(QueuePermit { engine: self.clone(), requests, batch: false })
    }

    /// Returns a permit for a line of a batch. Its requests run behind all live ones. They take no place in
    /// the queue, and no predicted wait refuses them.
    ///
    /// # Errors
    /// The refusal of all requests.
    pub(crate) fn enter_batch(&self) -> Result<QueuePermit, Reject> {
        self.shared.check_open()?;
        Ok(QueuePermit { engine: self.clone(), requests: 0, batch: true })
    }

    /// Checks the queue's room for `requests` more without taking a place.
    ///
    /// # Errors
    /// See [`Self::enter`].
    pub(crate) fn check_room(&self, requests: usize) -> Result<(), Reject> {
        self.shared.check_room(requests)
    }

    fn wait_limits(&self, options: &SubmitOptions) -> WaitLimits {
        let SubmitOptions { received_at, deadline, .. } = *options;
        WaitLimits { received_at, deadline, max_ttft: self.shared.max_ttft }
    }

    /// The predicted time after which a refused client should try again.
    pub fn retry_after(&self) -> Duration {
        retry_after(self.shared.with_stats(|stats| stats.next_end))
    }

    /// The stats published last. Never waits for a step.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The heartbeat, readable in every state of the engine.
    pub fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.shared.heartbeat
    }

    /// The metrics that the engine's thread writes.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// The scheduler's limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.shared.config
    }

    /// Refuses new requests with [`Reject::Draining`]. Requests already taken run to their end.
    pub fn drain(&self) {
        self.shared.refuse(Reject::Draining);
    }

    /// Ends the engine: open requests finish with an error, new ones are refused.
    pub fn stop(&self) {
        self.shared.refuse(Reject::EngineDown("the server is shutting down".to_owned()));
        let _already_gone = self.commands.send(EngineCommand::Stop);
    }

    fn open(&self, request: Request) -> (Submission, UpdateStream) {
        let id = self.shared.next_id();
        let (sender, updates) = mpsc::unbounded_channel();
        let stream = UpdateStream { id, updates, commands: self.commands.clone(), finished: false };
        (Submission { id, request, updates: sender }, stream)
    }

    fn send(&self, command: EngineCommand) -> Result<(), Reject> {
        let refusal = self.shared.refusal();
        if let Some(reject) = &*refusal {
            return Err(reject.clone());
        }
        self.shared.heartbeat.command_sent();
        self.commands.send(command).map_err(|_| engine_gone())
    }

    fn refusal(&self) -> Reject {
        self.shared.refusal().clone().unwrap_or_else(engine_gone)
    }
}

/// Places in the queue for the requests of one group, held from before they are tokenised until the scheduler
/// counts them. Dropping the permit gives the places back.
pub struct QueuePermit {
    engine: EngineHandle,
    /// Places held; 0 for a batch.
    requests: usize,
    batch: bool,
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        if self.requests > 0 {
            self.engine.shared.free_places(self.requests);
        }
    }
}

impl QueuePermit {
    /// Exchanges the permit for one of `requests` places. A queue that is empty but for this permit takes a
    /// group of any size.
    ///
    /// # Errors
    /// [`Reject::QueueFull`]; the places are given back.
    pub fn for_group(mut self, requests: usize) -> Result<Self, Reject> {
        if self.batch {
            return Ok(self);
        }
        self.engine.shared.change_places(self.requests, requests)?;
        self.requests = requests;
        Ok(self)
    }

    /// Whether the permit is for a line of a batch.
    pub(crate) fn is_batch(&self) -> bool {
        self.batch
    }

    /// Refuses a request that must wait too long even if its prompt has one token, by the last published
    /// stats. The engine's thread checks again with the prompt's tokens.
    ///
    /// # Errors
    /// [`Reject::DeadlineUnmet`] or [`Reject::Busy`].
    pub(crate) fn check_wait(
        &self,
        tenant: &Tenant,
        priority: i32,
        options: &SubmitOptions,
    ) -> Result<(), Reject> {
        let limits = self.wait_limits(options);
        if !limits.any() {
            return Ok(());
        }
        let estimate = |stats: &Stats| {
            let live = stats.counts.running + stats.counts.waiting;
            (stats.queue.wait_at_least(tenant, priority), !stats.pending() || live == 0)
        };
        let (estimate, idle) = self.engine.shared.with_stats(estimate);
        limits.check(&estimate, idle, Instant::now())
    }

    /// The longest acceptable wait of a group with these options. A batch waits as long as it must.
    pub(super) fn wait_limits(&self, options: &SubmitOptions) -> WaitLimits {
        let limits = self.engine.wait_limits(options);
        if self.batch { WaitLimits { deadline: None, max_ttft: None, ..limits } } else { limits }
    }

    /// Ends the permit without giving its places back, since the scheduler counts the requests now. Returns
    /// the number of places.
    pub(super) fn into_places(mut self) -> usize {
        std::mem::take(&mut self.requests)
    }

    /// Submits the group, all or none. Resolves when the scheduler has taken it into its queue or refused it.
    /// Dropping the future aborts the group.
    ///
    /// # Errors
    /// The group is refused.
    ///
    /// # Panics
    /// If the group's size is not the permit's.
    pub async fn submit(
        self,
        group: Vec<Request>,
        options: SubmitOptions,
    ) -> Result<Vec<UpdateStream>, Reject> {
        let places = if self.batch { 0 } else { group.len() };
        assert_eq!(places, self.requests, "a live group has as many requests as its permit has places");
        let (reply, answer) = flume::bounded(1);
        let (engine, batch) = (self.engine.clone(), self.batch);
        // The streams exist before the command is sent: dropping them aborts the group at any time after it.
        let (group, mut streams): (Vec<_>, Vec<_>) =
            group.into_iter().map(|request| engine.open(Request { batch, ..request })).unzip();
        let submitted_at = Instant::now();
        let command = SubmitCommand { group, options, permit: self, submitted_at, reply };
        let outcome = match engine.send(EngineCommand::Submit(Box::new(command))) {
            Ok(()) => answer.recv_async().await.unwrap_or_else(|_| Err(engine.refusal())),
            Err(reject) => Err(reject),
        };
        match outcome {
            Ok(()) => Ok(streams),
            Err(reject) => {
                streams.iter_mut().for_each(|stream| stream.finished = true);
                Err(reject)
            }
        }
    }
}

fn engine_gone() -> Reject {
    Reject::EngineDown("the engine's thread has ended".to_owned())
}

/// The updates of one request. Dropping the stream before its finish aborts the request: its KV blocks are
/// free within the step.
pub struct UpdateStream {
    id: RequestId,
    updates: mpsc::UnboundedReceiver<Update>,
    commands: flume::Sender<EngineCommand>,
    finished: bool,
}

impl UpdateStream {
    /// Aborts the request, unless it has ended. The result yields the request's cost.
    pub fn abort(mut self) -> AbortedRequest {
        self.send_abort();
        AbortedRequest(self)
    }

    /// Whether the last update has been read.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn send_abort(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            let _engine_gone = self.commands.send(EngineCommand::Abort(self.id));
        }
    }

    /// The request's id, for logs.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Waits for the next update. The last one has a [`Finish`].
    ///
    /// # Panics
    /// If called after the finish.
    pub async fn next(&mut self) -> Update {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Polls for the next update.
    ///
    /// # Panics
    /// If called after the finish.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Update> {
        assert!(!self.finished, "request {} was read after its finish", self.id.0);
        let update = ready!(self.updates.poll_recv(context)).unwrap_or_else(|| {
            let finish = Some(Finish::Error("the engine ended without an answer".to_owned()));
            Update { finish, ..Update::default() }
        });
        self.finished = update.finish.is_some();
        Poll::Ready(update)
    }
}

impl Drop for UpdateStream {
    fn drop(&mut self) {
        self.send_abort();
    }
}

/// An aborted request, whose cost can still be read.
pub struct AbortedRequest(UpdateStream);

impl AbortedRequest {
    /// Waits for the request's total cost; `None` if the engine ended before it computed the cost.
    pub async fn cost(mut self) -> Option<Cost> {
        loop {
            let update = self.0.updates.recv().await?;
            if update.finish.is_some() {
                return Some(update.cost);
            }
        }
    }
}
