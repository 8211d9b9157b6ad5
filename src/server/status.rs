//! The server's status in atomics: startup stage, shutdown phase, open requests, and the engine's heartbeat.
//! Health checks read it without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OnceCell};

use crate::engine::{AtomicInstant, Heartbeat, Snapshot};

/// Stages of startup, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Devices are opened.
    Opening,
    /// A model that was given by name is downloaded.
    Downloading,
    /// The model's configuration, tokenizer and weight headers are read.
    Reading,
    /// Weights are loaded.
    Loading,
    /// Ranks allocate memory, connect to each other, and capture their steps.
    Preparing,
    /// The engine runs.
    Started,
}

/// Phases of the shutdown, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ShutdownPhase {
    /// No shutdown has begun.
    Serving,
    /// Grace period: the server is not ready, but accepts requests until load balancers have noticed.
    Grace,
    /// New requests get a 503. Running requests go on.
    Refusing,
    /// The engine stops, and requests that still run are aborted.
    Aborting,
    /// No request is open.
    Drained,
}

/// The server's status.
#[derive(Debug)]
pub struct ServerStatus {
    /// Time beyond a step's expected duration after which an engine with pending work counts as stalled.
    stall_margin: Duration,
    stage: AtomicU8,
    /// When each stage began.
    stage_began: [AtomicInstant; 6],
    bytes_loaded: AtomicU64,
    bytes_total: AtomicU64,
    loading_since: AtomicInstant,
    phase: AtomicU8,
    drained_by: AtomicInstant,
    open_requests: AtomicUsize,
    drain_requested: Notify,
    engine: OnceCell<Arc<Heartbeat>>,
}

/// Values of a [`ServerStatus`] at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusSnapshot {
    /// Time beyond a step's expected duration after which an engine with pending work counts as stalled.
    pub stall_margin: Duration,
    /// Stage of startup.
    pub stage: Stage,
    /// Bytes of weights loaded, or of files downloaded in [`Stage::Downloading`].
    pub bytes_loaded: u64,
    /// Bytes to load or download in all; 0 while unknown.
    pub bytes_total: u64,
    /// When loading, or downloading, began.
    pub loading_since: Option<Instant>,
    /// Phase of the shutdown.
    pub phase: ShutdownPhase,
    /// Time by which the shutdown ends at the latest; `None` before it has begun.
    pub drained_by: Option<Instant>,
    /// Requests whose response is not complete.
    pub open_requests: usize,
    /// The engine's heartbeat; the default before the engine runs.
    pub engine: Snapshot,
}

impl ServerStatus {
    /// Makes the status of a server that begins to start.
    pub fn new(stall_margin: Duration) -> Arc<Self> {
        let stage_began: [AtomicInstant; 6] = Default::default();
        stage_began[Stage::Opening as usize].set_if_none(Instant::now());
        Arc::new(Self {
            stall_margin,
            stage: AtomicU8::new(Stage::Opening as u8),
            stage_began,
            bytes_loaded: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            loading_since: AtomicInstant::default(),
            phase: AtomicU8::new(ShutdownPhase::Serving as u8),
            drained_by: AtomicInstant::default(),
            open_requests: AtomicUsize::new(0),
            drain_requested: Notify::new(),
            engine: OnceCell::new(),
        })
    }

    /// Sets the stage of startup. Use [`ServerStatus::started`] for [`Stage::Started`].
    pub fn starting(&self, stage: Stage) {
        if matches!(stage, Stage::Downloading | Stage::Reading | Stage::Loading) {
            self.loading(0, 0);
            self.loading_since.set((stage != Stage::Reading).then(Instant::now));
        }
        self.begin_stage(stage);
    }

    fn begin_stage(&self, stage: Stage) {
        self.stage_began[stage as usize].set_if_none(Instant::now());
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// Durations of the stages of startup: the time so far for the current stage, and 0 for a stage that was
    /// skipped or has not begun.
    pub(crate) fn startup(&self) -> [(&'static str, Duration); 5] {
        let began: Vec<Option<Instant>> = self.stage_began.iter().map(AtomicInstant::get).collect();
        let duration = |stage: Stage| {
            let Some(begin) = began[stage as usize] else { return Duration::ZERO };
            let end = began[stage as usize + 1..].iter().flatten().next();
            end.copied().unwrap_or_else(Instant::now).saturating_duration_since(begin)
        };
        [
            ("opening", duration(Stage::Opening)),
            ("downloading", duration(Stage::Downloading)),
            ("reading", duration(Stage::Reading)),
            ("loading", duration(Stage::Loading)),
            ("preparing", duration(Stage::Preparing)),
        ]
    }

    /// Sets the bytes of weights that are loaded, or of files that are downloaded, and their total.
    pub fn loading(&self, done: u64, total: u64) {
        self.bytes_total.store(total, Ordering::Release);
        self.bytes_loaded.store(done, Ordering::Release);
    }

    /// Sets the stage to [`Stage::Started`] and takes the engine's heartbeat.
    pub fn started(&self, engine: &Arc<Heartbeat>) {
        let _set_once = self.engine.set(Arc::clone(engine));
        self.begin_stage(Stage::Started);
    }

    /// Requests a shutdown, as the first signal does. The server is not ready when this returns.
    pub fn request_drain(&self) {
        self.phase.fetch_max(ShutdownPhase::Grace as u8, Ordering::AcqRel);
        self.drain_requested.notify_one();
    }

    /// Resolves after [`ServerStatus::request_drain`].
    pub(super) async fn drain_requested(&self) {
        self.drain_requested.notified().await;
    }

    /// Phase of the shutdown.
    pub fn phase(&self) -> ShutdownPhase {
        match self.phase.load(Ordering::Acquire) {
            0 => ShutdownPhase::Serving,
            1 => ShutdownPhase::Grace,
            2 => ShutdownPhase::Refusing,
            3 => ShutdownPhase::Aborting,
            _ => ShutdownPhase::Drained,
        }
    }

    /// Enters a phase of the shutdown, unless a later one has begun. Also sets the time by which the shutdown
    /// ends at the latest.
    pub(super) fn enter_phase(&self, phase: ShutdownPhase, drained_by: Instant) {
        self.drained_by.set(Some(drained_by));
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn request_opened(&self) {
        self.open_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn request_closed(&self) {
        self.open_requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Reads all values. To compare them with the current time, read the clock before this call, as for
    /// [`Heartbeat::snapshot`].
    pub fn snapshot(&self) -> StatusSnapshot {
        let stage = match self.stage.load(Ordering::Acquire) {
            0 => Stage::Opening,
            1 => Stage::Downloading,
            2 => Stage::Reading,
            3 => Stage::Loading,
            4 => Stage::Preparing,
            _ => Stage::Started,
        };
        StatusSnapshot {
            stall_margin: self.stall_margin,
            stage,
            bytes_loaded: self.bytes_loaded.load(Ordering::Acquire),
            bytes_total: self.bytes_total.load(Ordering::Acquire),
            loading_since: self.loading_since.get(),
            phase: self.phase(),
            drained_by: self.drained_by.get(),
            open_requests: self.open_requests.load(Ordering::Relaxed),
            engine: self.engine.get().map(|heartbeat| heartbeat.snapshot()).unwrap_or_default(),
        }
    }
}
