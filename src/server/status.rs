//! Where the server stands, in atomics: how far starting has got, how far the shutdown, and the engine's heartbeat.
//! Written by whoever gets on; read by health checks, which wait for nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OnceCell};

use crate::engine::{AtomicInstant, Heartbeat, Snapshot};

/// What is being done before there is an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Devices are being opened.
    Opening,
    /// The model's configuration, tokenizer and headers are being read.
    Reading,
    /// Weights are being loaded.
    Loading,
    /// Ranks allocate, meet, and record their steps.
    Preparing,
    /// Nothing: there is an engine.
    Started,
}

/// How far the shutdown has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Not begun.
    Serving,
    /// Not ready any more, and still taking requests: those who send them have not heard yet.
    Leaving,
    /// New requests get a 503.
    Refusing,
    /// The engine has been told to end.
    Stopped,
    /// No request is open.
    Drained,
}

/// The status.
#[derive(Debug)]
pub struct ServerStatus {
    /// With work pending and no step ended for this long beyond what a step is expected to take, the server calls
    /// itself dead.
    pub stall_margin: Duration,
    stage: AtomicU8,
    /// When each stage was entered.
    entered: [AtomicInstant; 5],
    loaded: AtomicU64,
    to_load: AtomicU64,
    loading_since: AtomicInstant,
    phase: AtomicU8,
    drained_by: AtomicInstant,
    /// Requests whose response is not complete.
    open: AtomicUsize,
    drain_asked: Notify,
    engine: OnceCell<Arc<Heartbeat>>,
}

/// A reading of a [`ServerStatus`].
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// As in [`ServerStatus`].
    pub stall_margin: Duration,
    /// What is being done before there is an engine.
    pub stage: Stage,
    /// Bytes of weights that are in, and that there are.
    pub loaded: (u64, u64),
    /// When the first of them was asked for.
    pub loading_since: Option<Instant>,
    /// How far the shutdown has got.
    pub phase: Phase,
    /// When the shutdown is over at the latest.
    pub drained_by: Option<Instant>,
    /// Requests whose response is not complete.
    pub open: usize,
    /// The engine, where there is one.
    pub beat: Snapshot,
}

impl ServerStatus {
    /// A server that begins to start.
    pub fn new(stall_margin: Duration) -> Arc<Self> {
        let entered: [AtomicInstant; 5] = Default::default();
        entered[Stage::Opening as usize].set_if_none(Instant::now());
        Arc::new(Self {
            stall_margin,
            stage: AtomicU8::new(Stage::Opening as u8),
            entered,
            loaded: AtomicU64::new(0),
            to_load: AtomicU64::new(0),
            loading_since: AtomicInstant::default(),
            phase: AtomicU8::new(Phase::Serving as u8),
            drained_by: AtomicInstant::default(),
            open: AtomicUsize::new(0),
            drain_asked: Notify::new(),
            engine: OnceCell::new(),
        })
    }

    /// Starting has got so far. [`Stage::Started`] is [`ServerStatus::started`]'s to say.
    pub fn starting(&self, stage: Stage) {
        if stage == Stage::Loading {
            self.loading_since.set_if_none(Instant::now());
        }
        self.enter_stage(stage);
    }

    fn enter_stage(&self, stage: Stage) {
        self.entered[stage as usize].set_if_none(Instant::now());
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// What each stage of starting took, or has taken so far; nothing for one that was left out.
    pub fn startup(&self) -> [(&'static str, Duration); 4] {
        let entered: Vec<Option<Instant>> = self.entered.iter().map(AtomicInstant::get).collect();
        let took = |stage: Stage| {
            let Some(began) = entered[stage as usize] else { return Duration::ZERO };
            let ended = entered[stage as usize + 1..].iter().flatten().next();
            ended.copied().unwrap_or_else(Instant::now).saturating_duration_since(began)
        };
        [
            ("opening", took(Stage::Opening)),
            ("reading", took(Stage::Reading)),
            ("loading", took(Stage::Loading)),
            ("preparing", took(Stage::Preparing)),
        ]
    }

    /// Of so many bytes of weights so many are in.
    pub fn loading(&self, done: u64, total: u64) {
        self.to_load.store(total, Ordering::Release);
        self.loaded.store(done, Ordering::Release);
    }

    /// There is an engine, and its heart beats here.
    pub fn started(&self, engine: &Arc<Heartbeat>) {
        let _one_engine_only = self.engine.set(Arc::clone(engine));
        self.enter_stage(Stage::Started);
    }

    /// Asks for a shutdown as the first signal does. Readiness is down when this returns.
    pub fn ask_drain(&self) {
        self.phase.fetch_max(Phase::Leaving as u8, Ordering::AcqRel);
        self.drain_asked.notify_one();
    }

    pub(super) async fn drain_asked(&self) {
        self.drain_asked.notified().await;
    }

    /// How far the shutdown has got.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Leaving,
            2 => Phase::Refusing,
            3 => Phase::Stopped,
            _ => Phase::Drained,
        }
    }

    /// The shutdown gets on, and will be over by then. It never goes back.
    pub(super) fn enter(&self, phase: Phase, drained_by: Option<Instant>) {
        self.drained_by.set(drained_by);
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Reads everything. Take the time by which it is judged before the call, as for [`Heartbeat::beat`].
    pub fn read(&self) -> Reading {
        let stage = match self.stage.load(Ordering::Acquire) {
            0 => Stage::Opening,
            1 => Stage::Reading,
            2 => Stage::Loading,
            3 => Stage::Preparing,
            _ => Stage::Started,
        };
        Reading {
            stall_margin: self.stall_margin,
            stage,
            loaded: (self.loaded.load(Ordering::Acquire), self.to_load.load(Ordering::Acquire)),
            loading_since: self.loading_since.get(),
            phase: self.phase(),
            drained_by: self.drained_by.get(),
            open: self.open.load(Ordering::Relaxed),
            beat: self.engine.get().map(|pulse| pulse.snapshot()).unwrap_or_default(),
        }
    }
}
