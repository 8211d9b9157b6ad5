//! GPUs that are not there: an executor that waits as long as the cost model says a step takes, and says words that
//! anyone can compute.
//!
//! `tokens` is what is said, `machine` is a step outside of time. [`Simulator`] runs steps on the wall clock, behind the
//! real engine and the real server; `virtual_time` drives the real scheduler on a clock that jumps, over requests of
//! `workload`. `trace` is a recording of the engine, `replay` does it again, `report` and `plot` are what one sees of it.

mod codec;
mod journey;
mod machine;
pub mod plot;
pub mod replay;
pub mod report;
mod tokens;
pub mod trace;
pub mod virtual_time;
pub mod workload;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use journey::{Journey, Outcome, Sample};
pub use machine::{Machine, shape};
pub use tokens::{Key, Voice};

use crate::engine::{Executor, ExecutorError};
use crate::scheduler::step_plan::{StepOutput, StepPlan};

/// What a sleeping thread wakes up too late by, usually; it sleeps so much less and spins for the rest. It does not yield
/// its core meanwhile: on a busy machine it would get it back milliseconds later.
const OVERSLEEP: Duration = Duration::from_micros(30);

/// An executor on the wall clock. A step begins when it is enqueued or when the one before ends, whichever is later,
/// so that ends do not drift: a late waking is not added to the next step as long as two are in flight.
pub struct Simulator {
    machine: Machine,
    pace: f64,
    /// When the last step enqueued ends.
    free_at: Instant,
    outstanding: VecDeque<(StepOutput, Instant)>,
    alert: bool,
}

impl Simulator {
    /// Steps take `pace` times what the machine's cost model says; with 0 they take no time, so that all that is left is
    /// the host's own.
    ///
    /// # Errors
    /// The pace is negative or not finite.
    pub fn new(machine: Machine, pace: f64) -> Result<Self, String> {
        if !(pace.is_finite() && pace >= 0.0) {
            return Err(format!("expected a pace of at least 0, got {pace}"));
        }
        let outstanding = VecDeque::new();
        Ok(Self { machine, pace, free_at: Instant::now(), outstanding, alert: false })
    }

    /// Asks for timers without the 50 µs by which Linux may defer those of ordinary threads. If it refuses, steps end a
    /// little late.
    fn be_alert(&mut self) {
        if !self.alert {
            let _refused = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            self.alert = true;
        }
    }
}

impl Executor for Simulator {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), ExecutorError> {
        let now = Instant::now();
        let (output, time) = self.machine.step(plan);
        let took = Duration::try_from_secs_f64(time.total() * self.pace)
            .map_err(|e| ExecutorError { message: format!("the cost model: {e}") })?;
        self.free_at = self.free_at.max(now) + took;
        self.outstanding.push_back((output, self.free_at));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, ExecutorError> {
        let (output, end) = self.outstanding.pop_front().expect("a step was enqueued");
        self.be_alert();
        wait_until(end);
        Ok(output)
    }

    fn predict(&self, plan: &StepPlan) -> Option<Duration> {
        Duration::try_from_secs_f64(self.machine.predict(plan).total() * self.pace).ok()
    }
}

/// Returns at `end` or some microseconds later, however short the wait.
fn wait_until(end: Instant) {
    let asleep = end.saturating_duration_since(Instant::now()).saturating_sub(OVERSLEEP);
    if !asleep.is_zero() {
        std::thread::sleep(asleep);
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
