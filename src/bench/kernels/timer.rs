//! Times runs of an operation. On devices that run asynchronously many runs are enqueued before one wait, so
//! that the wait does not count.

use std::time::Instant;

use serde::Serialize;

use crate::device::{Device, DeviceError, Floats};
use crate::statistics::{percentile, sorted};

/// How the runs of an operation are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// They are captured once, and replayed: the host's launches take no time.
    Graph,
    /// The host enqueues them one by one, and then waits for the last.
    Queue,
    /// Each run waits for its own end.
    Call,
}

impl Timing {
    /// The name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Queue => "queue",
            Self::Call => "call",
        }
    }
}

/// The median time of an operation's run.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunTime {
    pub(super) timing: Timing,
    /// Seconds of a run.
    pub(super) seconds: f64,
    /// Seconds that the host takes to enqueue a run, if it enqueues them one by one.
    pub(super) enqueue: Option<f64>,
}

/// Seconds of one measurement of several runs.
struct Measured {
    /// Until all runs were enqueued.
    enqueued: f64,
    /// Until the last one had ended.
    ended: f64,
}

/// The most seconds of a measurement of several runs.
const MOST_SECONDS: f64 = 0.02;

/// A graph may have this many times the runs of a queue. It needs no memory for results, and with
/// many runs its launch and the wait hardly count.
const GRAPH_RUNS: usize = 10;

/// Measures operations on a device.
pub(super) struct Timer<D: Device> {
    /// A small buffer: reading it waits for all work enqueued before.
    probe: Floats<D>,
    /// The most runs per measurement.
    most_runs: usize,
    /// Measurements, of which the median counts.
    reps: usize,
}

impl<D: Device> Timer<D> {
    /// Creates a timer that enqueues at most `most_runs` runs for each of `reps` measurements, more in a
    /// graph, and fewer of an operation that takes long. A device that captures nothing runs each operation
    /// at once, so that a measurement is one run there.
    pub(super) fn new(device: &D, most_runs: usize, reps: usize) -> Result<Self, DeviceError> {
        let mut probe = device.floats(1, 1)?;
        device.write(&[0.0], &mut probe)?;
        Ok(Self { probe, most_runs: if D::LAYOUT.captures() { most_runs } else { 1 }, reps })
    }

    /// The most runs per measurement of [`Self::queue`].
    pub(super) fn most_runs(&self) -> usize {
        self.most_runs
    }

    /// Times an operation that only launches kernels.
    pub(super) fn graph(
        &self,
        device: &D,
        mut run: impl FnMut() -> Result<(), DeviceError>,
    ) -> anyhow::Result<RunTime> {
        if !D::LAYOUT.captures() {
            return self.call(device, || Ok(run()?));
        }
        // The first launch of a kernel may load it. Nothing runs on the device when capturing begins, since a
        // measurement waits.
        self.measure(device, 1, || Ok(run()?))?;
        let runs = runs_of(&self.measure(device, 1, || Ok(run()?))?, GRAPH_RUNS * self.most_runs);
        let graph = device.capture(&mut || (0..runs).try_for_each(|_| run()))?;
        let mut measured = Vec::new();
        for _ in 0..=self.reps {
            measured.push(self.measure(device, 1, || Ok(graph()?))?);
        }
        Ok(run_time(Timing::Graph, runs, &measured[1..]))
    }

    /// Times an operation that also copies parameters, which cannot be captured. After each measurement `end`
    /// takes the results of the number of runs that it is given; this time does not count.
    pub(super) fn queue<S>(
        &self,
        device: &D,
        state: &mut S,
        mut run: impl FnMut(&mut S) -> anyhow::Result<()>,
        mut end: impl FnMut(&mut S, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<RunTime> {
        let mut once = || {
            let measured = self.measure(device, 1, || run(state))?;
            end(state, 1).map(|()| measured)
        };
        // The first launch of a kernel may load it.
        once()?;
        let runs = runs_of(&once()?, self.most_runs);
        let mut measured = Vec::new();
        for _ in 0..=self.reps {
            measured.push(self.measure(device, runs, || run(state))?);
            end(state, runs)?;
        }
        let timing = if D::LAYOUT.captures() { Timing::Queue } else { Timing::Call };
        Ok(run_time(timing, runs, &measured[1..]))
    }

    /// Times an operation that waits for its own end.
    pub(super) fn call(
        &self,
        device: &D,
        mut run: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<RunTime> {
        let mut measured = Vec::new();
        for _ in 0..=self.reps {
            measured.push(self.measure(device, 1, &mut run)?);
        }
        Ok(run_time(Timing::Call, 1, &measured[1..]))
    }

    /// Calls `run` this many times, and waits.
    fn measure(
        &self,
        device: &D,
        times: usize,
        mut run: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Measured> {
        let begun = Instant::now();
        for _ in 0..times {
            run()?;
        }
        let enqueued = begun.elapsed().as_secs_f64();
        device.read(&self.probe)?;
        Ok(Measured { enqueued, ended: begun.elapsed().as_secs_f64() })
    }
}

/// The number of runs of a measurement, by the time of one run.
fn runs_of(one: &Measured, most: usize) -> usize {
    ((MOST_SECONDS / one.ended) as usize).clamp(1, most)
}

/// The medians of measurements of `runs` runs each.
fn run_time(timing: Timing, runs: usize, measured: &[Measured]) -> RunTime {
    let median = |seconds: fn(&Measured) -> f64| {
        percentile(&sorted(measured.iter().map(seconds).collect()), 0.5) / runs as f64
    };
    let enqueue = (timing == Timing::Queue).then(|| median(|measured| measured.enqueued));
    RunTime { timing, seconds: median(|measured| measured.ended), enqueue }
}
