//! Runs the lines of batches, and takes each batch from status to status.
//!
//! Each batch has a task. At most [`MAX_ACTIVE`] batches are open at once, oldest first, and their lines
//! share the places for lines in turns. The results of lines that end together reach the disk together.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::input::{Input, LinePlace};
use super::lines::{Line, LineIds, RunLine, RunningLines};
use super::records::{BatchRecord, LineError, Status};
use super::results::{LineOutcome, LineResult, NewRecords, Results};
use super::store::{Store, new_id};

/// The most batches whose files are open.
const MAX_ACTIVE: usize = 16;
/// Time between two looks at the end of the completion window.
const CLOCK_INTERVAL: Duration = Duration::from_millis(250);
/// Time after which a batch that a disk error stopped goes on.
const DISK_RETRY: Duration = Duration::from_secs(10);
/// Starts of the server in a row that may end without a shutdown and without a new result of a batch. After
/// that one of its lines is taken to be the cause, and the rest is not run.
const MAX_STALLED_STARTS: u32 = 10;

/// Runs batches.
pub(crate) struct Runner {
    store: Arc<Store>,
    run_line: RunLine,
    /// Returns the Unix time in seconds.
    clock: fn() -> u64,
    /// One permit for each line that may run.
    lines: Arc<Semaphore>,
    active: Semaphore,
    parked: CancellationToken,
    tasks: Mutex<Tasks>,
    /// Lines that succeeded and lines that failed or were not run, since the start.
    ended: [AtomicU64; 2],
}

/// The tasks of unfinished batches.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    /// Notified when a batch is to be cancelled.
    cancelled: HashMap<String, Arc<Notify>>,
}

/// Why a batch stops before all its lines have run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    /// The server shuts down.
    Parked,
    /// The engine has failed or was stopped.
    EngineGone,
    Cancelled,
    Expired,
    /// The server has stopped again and again while the batch ran.
    Stalled,
}

/// An open batch.
struct OpenBatch {
    record: BatchRecord,
    input: Arc<Input>,
    results: Arc<Mutex<Results>>,
}

impl Runner {
    /// Makes a runner of at most `max_lines` lines at a time.
    pub(crate) fn new(
        store: Arc<Store>,
        run_line: RunLine,
        max_lines: usize,
        clock: fn() -> u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            run_line,
            clock,
            lines: Arc::new(Semaphore::new(max_lines)),
            active: Semaphore::new(MAX_ACTIVE),
            parked: CancellationToken::new(),
            tasks: Mutex::default(),
            ended: Default::default(),
        })
    }

    /// Goes on with all batches that have not ended.
    pub(crate) fn resume(self: &Arc<Self>) {
        self.store.unfinished().into_iter().for_each(|id| self.start(id));
    }

    /// Begins to work on a batch.
    pub(crate) fn start(self: &Arc<Self>, id: String) {
        let cancelled = Arc::new(Notify::new());
        let mut tasks = self.tasks();
        while tasks.set.try_join_next().is_some() {}
        tasks.cancelled.insert(id.clone(), Arc::clone(&cancelled));
        let this = Arc::clone(self);
        tasks.set.spawn(async move {
            this.work_until_ended(&id, &cancelled).await;
            this.tasks().cancelled.remove(&id);
        });
    }

    /// Notifies the task of a batch whose status has become [`Status::Cancelling`].
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancelled) = self.tasks().cancelled.get(id) {
            cancelled.notify_one();
        }
    }

    /// Stops all lines without results; they run again after the next start. Returns when nothing is written
    /// any more.
    pub(crate) async fn park(&self) {
        self.parked.cancel();
        let mut set = std::mem::take(&mut self.tasks().set);
        while set.join_next().await.is_some() {}
    }

    /// Lines that succeeded, and lines that failed or were not run, since the start.
    pub(crate) fn ended(&self) -> [u64; 2] {
        [&self.ended[0], &self.ended[1]].map(|count| count.load(Ordering::Relaxed))
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on a batch until it ends or is parked. If the disk fails, it tries again after a pause.
    async fn work_until_ended(&self, id: &str, cancelled: &Notify) {
        let mut first = true;
        while let Err(error) = self.work(id, first, cancelled).await {
            first = false;
            tracing::error!(batch = id, %error, "the disk stopped a batch; it goes on in {DISK_RETRY:?}");
            tokio::select! {
                () = self.parked.cancelled() => return,
                () = tokio::time::sleep(DISK_RETRY) => {}
            }
        }
    }

    async fn work(&self, id: &str, first: bool, cancelled: &Notify) -> io::Result<()> {
        let Some(record) = self.store.any_batch(id).filter(|batch| !batch.status.is_final()) else {
            return Ok(());
        };
        let mut stop = pin!(self.stop(record.expires_at, cancelled));
        let turn = tokio::select! {
            biased;
            turn = self.active.acquire() => Ok(turn),
            stop = stop.as_mut() => Err(stop),
        };
        if matches!(turn, Err(Stop::Parked)) {
            return Ok(());
        }
        let Some(batch) = self.open(record, first).await? else { return Ok(()) };
        let stopped = match (turn, self.at_start(&batch)) {
            (_, Some(stop)) | (Err(stop), None) => Some(stop),
            (Ok(_turn), None) => self.run(&batch, stop).await?,
        };
        match stopped {
            Some(Stop::EngineGone) => Ok(()),
            Some(Stop::Parked) => self.update(id, |batch| batch.stalled_starts = 0).await.map(drop),
            stopped => self.finish(&batch, stopped).await,
        }
    }

    /// Resolves with the reason when the batch has to stop.
    async fn stop(&self, expires_at: u64, cancelled: &Notify) -> Stop {
        let expired = async {
            while (self.clock)() < expires_at {
                tokio::time::sleep(CLOCK_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            () = self.parked.cancelled() => Stop::Parked,
            () = cancelled.notified() => Stop::Cancelled,
            () = expired => Stop::Expired,
        }
    }

    /// Reads results and input, for the `first` time since the start of the server or again. `None` if the
    /// input is invalid, which ends the batch.
    async fn open(&self, record: BatchRecord, first: bool) -> io::Result<Option<OpenBatch>> {
        let store = Arc::clone(&self.store);
        let opened = blocking(move || {
            let mut done = HashSet::new();
            let results = store.results(&record, &mut done)?;
            let input = Input::check(store.input(&record)?, record.endpoint, &done)?;
            Ok((record, results, input))
        });
        let (record, results, input) = opened.await?;
        let input = match input {
            Ok(input) => Arc::new(input),
            Err(errors) => return self.fail(record, results, errors).await.map(|()| None),
        };
        let (now, total) = ((self.clock)(), input.total as u64);
        let found = results.completed() + results.failed();
        let record = self.update(&record.id, move |batch| {
            batch.total = total;
            if batch.status == Status::Validating {
                batch.enter(Status::InProgress, now);
            } else if first {
                let stalled = found == batch.results_at_start;
                batch.stalled_starts = if stalled { batch.stalled_starts + 1 } else { 0 };
            }
            batch.results_at_start = found;
        });
        let record = record.await?;
        self.store.count(&record.id, &results);
        Ok(Some(OpenBatch { record, input, results: Arc::new(Mutex::new(results)) }))
    }

    /// A reason to run no line at all.
    fn at_start(&self, batch: &OpenBatch) -> Option<Stop> {
        let record = &batch.record;
        if record.status == Status::Cancelling {
            Some(Stop::Cancelled)
        } else if batch.input.pending.is_empty() {
            None
        } else if (self.clock)() >= record.expires_at {
            Some(Stop::Expired)
        } else {
            (record.stalled_starts > MAX_STALLED_STARTS).then_some(Stop::Stalled)
        }
    }

    /// Ends a batch whose input is invalid.
    async fn fail(&self, record: BatchRecord, results: Results, errors: Vec<LineError>) -> io::Result<()> {
        let (store, now) = (Arc::clone(&self.store), (self.clock)());
        blocking(move || {
            let [has_output, has_errors] = store.publish_results(&record, &results, now)?;
            store.update(&record.id, |batch| {
                (batch.has_output, batch.has_errors, batch.errors) = (has_output, has_errors, errors);
                batch.enter(Status::Failed, now);
            })
        })
        .await
        .map(drop)
    }

    /// Runs the lines that have no result. Returns why not all were run.
    async fn run(
        &self,
        batch: &OpenBatch,
        mut stop: Pin<&mut impl Future<Output = Stop>>,
    ) -> io::Result<Option<Stop>> {
        let mut running = RunningLines::default();
        let mut left = batch.input.pending.iter();
        let mut next = left.next();
        while next.is_some() || !running.is_empty() {
            tokio::select! {
                biased;
                stop = stop.as_mut() => return Ok(Some(stop)),
                Some(ended) = running.next() => {
                    self.append(batch, ended.results).await?;
                    if ended.parked {
                        return Ok(Some(Stop::EngineGone));
                    }
                }
                Ok(place) = Arc::clone(&self.lines).acquire_owned(), if next.is_some() => {
                    if let Some(line) = next {
                        self.begin(batch, *line, place, &mut running).await?;
                    }
                    next = left.next();
                }
            }
        }
        Ok(None)
    }

    /// Begins to run a line.
    async fn begin(
        &self,
        batch: &OpenBatch,
        line: LinePlace,
        place: OwnedSemaphorePermit,
        running: &mut RunningLines,
    ) -> io::Result<()> {
        let (input, endpoint) = (Arc::clone(&batch.input), batch.record.endpoint);
        let read = blocking(move || input.read(line, endpoint)).await?;
        let request_id = new_id("batch_req_")?;
        let ids = LineIds { custom_id: read.custom_id, id: request_id.clone() };
        let owner = batch.record.owner.clone();
        let line = Line { endpoint, body: read.body, owner, request_id, offline: None };
        running.spawn((self.run_line)(line), place, ids);
        Ok(())
    }

    /// Puts results on disk and counts them.
    async fn append(&self, batch: &OpenBatch, ended: Vec<LineResult>) -> io::Result<()> {
        let (store, results, id) =
            (Arc::clone(&self.store), Arc::clone(&batch.results), batch.record.id.clone());
        let counts = blocking(move || {
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            let mut records = NewRecords::default();
            for result in ended {
                add(&store, &id, &mut records, result);
            }
            results.append(&records)?;
            store.count(&id, &results);
            Ok([records.completed, records.failed])
        });
        for (total, count) in self.ended.iter().zip(counts.await?) {
            total.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends a batch: lines without a result get a record that says why, and the results become files.
    async fn finish(&self, batch: &OpenBatch, stopped: Option<Stop>) -> io::Result<()> {
        let status = match stopped {
            None => Status::Completed,
            Some(Stop::Cancelled) => Status::Cancelled,
            Some(_) => Status::Expired,
        };
        if let Some(stop) = stopped {
            let (store, input, results) =
                (Arc::clone(&self.store), Arc::clone(&batch.input), Arc::clone(&batch.results));
            let record = batch.record.clone();
            let failed = blocking(move || {
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                write_unrun(&store, &record, &input, &mut results, stop)
            });
            self.ended[1].fetch_add(failed.await?, Ordering::Relaxed);
        } else {
            let now = (self.clock)();
            self.update(&batch.record.id, move |batch| batch.enter(Status::Finalizing, now)).await?;
        }
        let (store, results, now) = (Arc::clone(&self.store), Arc::clone(&batch.results), (self.clock)());
        let record = batch.record.clone();
        blocking(move || {
            let results = results.lock().unwrap_or_else(PoisonError::into_inner);
            let [has_output, has_errors] = store.publish_results(&record, &results, now)?;
            store.update(&record.id, |batch| {
                (batch.has_output, batch.has_errors) = (has_output, has_errors);
                (batch.completed, batch.failed) = (results.completed(), results.failed());
                batch.enter(status, now);
            })
        })
        .await?;
        tracing::info!(batch = batch.record.id, status = status.as_str(), "a batch has ended");
        Ok(())
    }

    async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut BatchRecord) + Send + 'static,
    ) -> io::Result<BatchRecord> {
        let (store, id) = (Arc::clone(&self.store), id.to_owned());
        blocking(move || store.update(&id, change)).await
    }
}

/// Adds a result's record. If it does not fit on the disk, a short one takes its place, for which the line
/// has held room.
fn add(store: &Store, batch: &str, records: &mut NewRecords, result: LineResult) {
    let mut alone = NewRecords::default();
    let bytes = alone.add(&result);
    if store.take_result_room(batch, bytes) {
        records.add(&result);
        return;
    }
    let message = format!(
        "The result of {bytes} bytes does not fit into the server's --data-dir-max-bytes. Delete files and \
         run this request again."
    );
    let outcome = LineOutcome::NotRun { code: "insufficient_storage", message };
    let bytes = records.add(&LineResult { outcome, ..result });
    store.take_result_room(batch, bytes);
}

/// Writes a record for each line that has none. Returns their number.
fn write_unrun(
    store: &Store,
    record: &BatchRecord,
    input: &Input,
    results: &mut Results,
    stop: Stop,
) -> io::Result<u64> {
    const RECORDS_AT_ONCE: usize = 1024;
    let mut done = HashSet::new();
    *results = store.results(record, &mut done)?;
    let mut written = 0;
    for lines in input.pending.chunks(RECORDS_AT_ONCE) {
        let mut records = NewRecords::default();
        for line in lines {
            let custom_id = input.read(*line, record.endpoint)?.custom_id;
            if !done.contains(&custom_id) {
                let outcome = stop.outcome();
                let result = LineResult { id: new_id("batch_req_")?, custom_id, outcome };
                let bytes = records.add(&result);
                store.take_result_room(&record.id, bytes);
            }
        }
        results.append(&records)?;
        store.count(&record.id, results);
        written += records.failed;
    }
    Ok(written)
}

impl Stop {
    /// The result of a line that is not run any more.
    fn outcome(self) -> LineOutcome {
        let (code, message) = match self {
            Self::Cancelled => {
                ("batch_cancelled", "This request was not run because the batch was cancelled.")
            }
            Self::Stalled => (
                "batch_stalled",
                "This request was not run because the server stopped again and again while the batch ran.",
            ),
            Self::Parked | Self::EngineGone | Self::Expired => {
                ("batch_expired", "This request could not be run before the completion window expired.")
            }
        };
        LineOutcome::NotRun { code, message: message.to_owned() }
    }
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
