//! The engine as its clients see it: enter the queue, submit a group, read updates, drop to abort.
//!
//! Whether the queue has room is asked at a request's first byte, and a place is taken before the body is parsed, let alone
//! rendered and tokenised, so that a burst that the queue cannot hold is refused before it costs anything.
//!
//! Everything crosses into the engine's thread as a command over one channel. A command is sent only while the gate
//! is open, under its lock, and the engine empties the channel after closing the gate, so that no command is ever
//! left unanswered in a channel that nobody reads.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::engine::core::Submission;
use crate::engine::forecast::retry_after;
use crate::engine::heartbeat::Heartbeat;
use crate::engine::metrics::{EngineMetrics, KeyCounters};
use crate::engine::stats::{Stats, Wait};
use crate::request::{Cost, Finish, Reject, Request, Tenant, Update};
use crate::scheduler::{RequestId, SchedulerConfig};

/// What a client asks of the engine's thread.
pub(super) enum Command {
    /// Take these, all or none, and say so.
    Submit {
        group: Vec<Submission>,
        place: QueuePermit,
        submitted: Instant,
        reply: flume::Sender<Result<(), Reject>>,
    },
    /// The client has gone.
    Abort(RequestId),
    /// End every request and the thread.
    Stop,
}

/// What the engine's thread and all handles share.
pub(super) struct Shared {
    pub(super) config: SchedulerConfig,
    /// What of the queue's stats a health check reads, without the lock.
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) metrics: EngineMetrics,
    /// As in [`super::Start`].
    pub(super) max_ttft: Option<Duration>,
    next_id: AtomicU64,
    /// What every submit is answered with, once set.
    refusal: Mutex<Option<Reject>>,
    queue: Mutex<Queue>,
}

/// What waits, as far as the handles know it.
struct Queue {
    /// What the engine's thread last said.
    stats: Stats,
    /// Places taken by requests that the scheduler has not yet counted among those that wait.
    entered: usize,
}

impl Shared {
    pub(super) fn new(config: SchedulerConfig, stats: Stats, max_ttft: Option<Duration>) -> Self {
        let queue = Mutex::new(Queue { stats, entered: 0 });
        let (heartbeat, metrics, next_id) = (Arc::default(), EngineMetrics::default(), AtomicU64::new(0));
        Self { config, heartbeat, metrics, max_ttft, next_id, refusal: Mutex::new(None), queue }
    }

    /// From here on every submit gets this answer; the first reason that ends the engine stands.
    pub(super) fn refuse(&self, reject: Reject) {
        let mut refusal = lock(&self.refusal);
        if !matches!(*refusal, Some(Reject::EngineDown(_))) {
            *refusal = Some(reject);
        }
    }

    pub(super) fn publish(&self, stats: Stats) {
        self.heartbeat.publish(&stats);
        lock(&self.queue).stats = stats;
    }

    /// The same, of a queue that counts the requests of `place` by now: at no time are they counted twice, or not.
    pub(super) fn publish_instead_of(&self, mut place: QueuePermit, stats: Stats) {
        self.heartbeat.publish(&stats);
        let mut queue = lock(&self.queue);
        queue.stats = stats;
        queue.entered -= std::mem::take(&mut place.requests);
        // Before the place is dropped, which locks too.
        drop(queue);
    }

    /// The engine has ended as it was told to: nobody runs or waits, and nothing is pending.
    pub(super) fn publish_end(&self) {
        let mut stats = lock(&self.queue).stats.clone();
        let counts = &mut stats.counts;
        (counts.running, counts.waiting, counts.waiting_tokens) = (0, 0, 0);
        (counts.blocks_used, counts.blocks_reserved) = (0, 0);
        counts.blocks_free = counts.blocks_total - counts.blocks_cached;
        (stats.in_flight, stats.busy_since) = (0, None);
        self.heartbeat.heard(false);
        self.publish(stats);
    }

    pub(super) fn set_failed(&self, reason: &str) {
        lock(&self.queue).stats.failed = Some(reason.to_owned());
        self.heartbeat.fail(reason);
    }
}

/// Data behind these locks is replaced whole, so that it is sound even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client's end of the engine; cheap to clone. When all handles and streams are gone the engine ends.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    commands: flume::Sender<Command>,
}

impl EngineHandle {
    pub(super) fn new(shared: Arc<Shared>, commands: flume::Sender<Command>) -> Self {
        Self { shared, commands }
    }

    /// Takes a place for each request of a group, or says that there is none; how many a group has may turn out later
    /// ([`QueuePermit::resize`]). The scheduler has the last word: it also counts the requests' tokens, which are not known
    /// yet.
    pub fn enter(&self, requests: usize) -> Result<QueuePermit, Reject> {
        self.room(requests)?.entered += requests;
        Ok(QueuePermit {
            engine: self.clone(),
            requests,
            taken: Instant::now(),
            due: None,
            each: false,
            payer: None,
        })
    }

    /// Whether there is room for so many requests now, which nobody holds for whoever asks.
    ///
    /// # Errors
    /// As of [`Self::enter`].
    pub fn check_room(&self, requests: usize) -> Result<(), Reject> {
        self.room(requests).map(|_| ())
    }

    /// The queue, if it has room.
    fn room(&self, requests: usize) -> Result<MutexGuard<'_, Queue>, Reject> {
        if let Some(reject) = &*lock(&self.shared.refusal) {
            return Err(reject.clone());
        }
        let config = &self.shared.config;
        let queue = lock(&self.shared.queue);
        let counts = &queue.stats.counts;
        config.check_queue_requests(counts.waiting + queue.entered, requests)?;
        config.check_queue_tokens(counts.waiting_tokens, 1)?;
        Ok(queue)
    }

    /// After how long someone whom the queue had no place for should try again, by what is predicted.
    pub fn retry_after(&self) -> Duration {
        let queue = lock(&self.shared.queue);
        retry_after(queue.stats.next_end)
    }

    /// The last snapshot. Never waits for a step.
    pub fn stats(&self) -> Stats {
        lock(&self.shared.queue).stats.clone()
    }

    /// The heartbeat, which can be read whatever state the engine is in.
    pub fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.shared.heartbeat
    }

    /// What the engine's thread counts.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// The limits that the engine was started with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.shared.config
    }

    /// Refuses new requests with [`Reject::Draining`]; those already taken run to their end.
    pub fn drain(&self) {
        self.shared.refuse(Reject::Draining);
    }

    /// Ends the engine: open requests finish with an error, new ones are refused.
    pub fn stop(&self) {
        self.shared.refuse(Reject::EngineDown("the server is shutting down".to_owned()));
        let _already_gone = self.commands.send(Command::Stop);
    }

    fn open(&self, request: Request, each: bool) -> (Submission, UpdateStream) {
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, updates) = mpsc::unbounded_channel();
        let stream = UpdateStream { id, updates, commands: self.commands.clone(), finished: false };
        (Submission { id, request, updates: sender, each }, stream)
    }

    fn send(&self, command: Command) -> Result<(), Reject> {
        let refusal = lock(&self.shared.refusal);
        if let Some(reject) = &*refusal {
            return Err(reject.clone());
        }
        self.shared.heartbeat.asked();
        self.commands.send(command).map_err(|_| gone())
    }

    fn refusal(&self) -> Reject {
        lock(&self.shared.refusal).clone().unwrap_or_else(gone)
    }
}

/// Room in the queue for the requests of one group, from before they are tokenised until the scheduler counts them.
pub struct QueuePermit {
    engine: EngineHandle,
    requests: usize,
    taken: Instant,
    pub(super) due: Option<Instant>,
    each: bool,
    pub(super) payer: Option<Arc<KeyCounters>>,
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        lock(&self.engine.shared.queue).entered -= self.requests;
    }
}

impl QueuePermit {
    /// Whoever got the place has waited since then, by which times are counted.
    pub fn asked_for(&mut self, at: Instant) {
        self.taken = at;
    }

    /// The group's answers are worth nothing unless they are there within so long of when they were asked for. Of several
    /// such times the shortest holds.
    pub fn due_within(&mut self, time: Duration) {
        let due = self.taken.checked_add(time);
        self.due = self.due.into_iter().chain(due).min();
    }

    /// Each token is told as soon as it is there, whatever the stream interval: its reader may want no more after any.
    pub fn tell_each(&mut self) {
        self.each = true;
    }

    /// Whose counters get what the group costs; without this it is on nobody's.
    pub fn bill_to(&mut self, payer: Arc<KeyCounters>) {
        self.payer = Some(payer);
    }

    /// Refuses at once what would have been refused when the last step began, however short its prompt. What is not
    /// refused here may still be: the engine's thread predicts again, from the prompt's tokens and what has ended since.
    ///
    /// # Errors
    /// [`Reject::DeadlineUnmet`] or [`Reject::Busy`].
    pub fn check_wait(&self, tenant: &Tenant, priority: i32) -> Result<(), Reject> {
        if !self.may_come_too_late() {
            return Ok(());
        }
        let (wait, idle) = {
            let queue = lock(&self.engine.shared.queue);
            (queue.stats.outlook.at_least(tenant, priority), !queue.stats.pending())
        };
        self.check(&wait, idle)
    }

    /// Whether there is a time by which the group's tokens must be there.
    pub(super) fn may_come_too_late(&self) -> bool {
        self.due.is_some() || self.engine.shared.max_ttft.is_some()
    }

    /// Refuses a group that must wait for too long for the client or for the operator.
    pub(super) fn check(&self, wait: &Wait, idle: bool) -> Result<(), Reject> {
        let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        if let Some(due) = self.due {
            let (predicted, left) = (time(wait.whole), due.saturating_duration_since(Instant::now()));
            if left < predicted || left.is_zero() {
                let ever = time(wait.alone) <= due.saturating_duration_since(self.taken);
                return Err(Reject::DeadlineUnmet { predicted, left, ever });
            }
        }
        let predicted = time(wait.first);
        match self.engine.shared.max_ttft {
            // Otherwise a bound that is too small for any request would refuse all.
            Some(limit) if limit < predicted && !idle => Err(Reject::Busy { predicted, limit }),
            _ => Ok(()),
        }
    }

    /// Makes it a place for so many requests, as if it were taken now: a queue that is empty but for this place takes
    /// a group of any size.
    ///
    /// # Errors
    /// [`Reject::QueueFull`]; the place stays as it was.
    pub fn resize(&mut self, requests: usize) -> Result<(), Reject> {
        let mut queue = lock(&self.engine.shared.queue);
        let others = queue.entered - self.requests;
        if requests > self.requests {
            let waiting = queue.stats.counts.waiting + others;
            self.engine.shared.config.check_queue_requests(waiting, requests)?;
        }
        queue.entered = others + requests;
        self.requests = requests;
        Ok(())
    }

    /// Submits the group, all or none, and resolves when the scheduler has taken it into its bounded queue or
    /// refused. Dropping the future aborts the group, wherever it has got to.
    ///
    /// # Panics
    /// If the group is of another size than the place.
    pub async fn submit(self, group: Vec<Request>) -> Result<Vec<UpdateStream>, Reject> {
        assert_eq!(group.len(), self.requests, "a group fills the place that was taken for it");
        let (reply, answer) = flume::bounded(1);
        let engine = self.engine.clone();
        // The streams exist before the command is sent, so that their drop covers every moment after it.
        let open = |request| engine.open(request, self.each);
        let (group, mut streams): (Vec<_>, Vec<_>) = group.into_iter().map(open).unzip();
        let submitted = Instant::now();
        let outcome = match engine.send(Command::Submit { group, place: self, submitted, reply }) {
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

fn gone() -> Reject {
    Reject::EngineDown("the engine's thread has ended".to_owned())
}

/// The answer to one request. Dropping it before its finish aborts the request: its KV blocks are free within the
/// step.
pub struct UpdateStream {
    id: RequestId,
    updates: mpsc::UnboundedReceiver<Update>,
    commands: flume::Sender<Command>,
    finished: bool,
}

impl UpdateStream {
    /// Aborts the request, unless it has ended. What it has cost is there soon.
    pub fn leave(mut self) -> Leaving {
        self.abort();
        Leaving(self)
    }

    /// Whether its last update has been read.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn abort(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            let _engine_gone = self.commands.send(Command::Abort(self.id));
        }
    }

    /// The request's id, for logs.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Waits for the next update. The last has a [`Finish`].
    ///
    /// # Panics
    /// If called after the finish, which is a bug in the caller.
    pub async fn next(&mut self) -> Update {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Self::next`], for those who wait for several.
    ///
    /// # Panics
    /// As [`Self::next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Update> {
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
        self.abort();
    }
}

/// A request that was aborted, of which only the cost is still of interest.
pub struct Leaving(UpdateStream);

impl Leaving {
    /// What it has cost in all; `None` if the engine ended before it said so.
    pub async fn cost(mut self) -> Option<Cost> {
        loop {
            let update = self.0.updates.recv().await?;
            if update.finish.is_some() {
                return Some(update.cost);
            }
        }
    }
}
