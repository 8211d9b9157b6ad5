//! How an engine is started, beside the scheduler's limits.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::forecast::Forecast;
use super::metrics::EngineMetrics;
use super::recorder::Recorder;
use crate::scheduler::{MAX_IN_FLIGHT, StepTimes};

/// How an engine is started, beside the scheduler's limits.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The most steps in flight: 1, or 2 to plan each step while the previous one runs.
    pub in_flight: usize,
    /// Records every call of the scheduler. Default: none.
    pub recorder: Option<Recorder>,
    /// Refuses requests whose first token is predicted to come later than this, unless the engine is idle.
    /// Default: no limit.
    pub max_ttft: Option<Duration>,
    /// Step times known before the first step. Default: nothing is known.
    pub forecast: Forecast,
    /// Step times by which drafts are chosen. Default: nothing is known.
    pub step_times: StepTimes,
    /// Updates that a client gets at a time, after its first token. Default: 1.
    pub stream_interval: usize,
    /// Time that a step may take beyond the stall timeout while no step time is known. Default: 0.
    pub unknown_step: Duration,
    /// Upper bound of every expected step time. Default: none.
    pub longest_step: Duration,
    /// Histograms and counters that the engine's thread writes. Default: new ones that no registry shows.
    pub metrics: EngineMetrics,
    /// The engine's clock. Default: the system's monotonic clock.
    pub clock: Clock,
}

impl EngineOptions {
    /// Options with at most `in_flight` steps in flight and defaults for everything else.
    pub fn new(in_flight: usize) -> Self {
        Self {
            in_flight,
            recorder: None,
            max_ttft: None,
            forecast: Forecast::default(),
            step_times: StepTimes::default(),
            stream_interval: 1,
            unknown_step: Duration::ZERO,
            longest_step: Duration::MAX,
            metrics: EngineMetrics::default(),
            clock: Clock::default(),
        }
    }

    /// # Panics
    /// If `in_flight` is neither 1 nor 2.
    pub(super) fn assert_sound(&self) {
        let in_flight = self.in_flight;
        assert!((1..=MAX_IN_FLIGHT).contains(&in_flight), "one or two steps in flight, got {in_flight}");
    }
}

/// The engine's source of time: the system's monotonic clock, or a virtual one in tests.
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<dyn Fn() -> Instant + Send + Sync>>);

impl Clock {
    /// A clock that reads `now`.
    pub fn virtual_time(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(now)))
    }

    /// The current time.
    pub fn now(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, |now| now())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "virtual time" } else { "system time" })
    }
}
