//! Simulated GPUs: an executor that waits as long as the cost model says a step takes, and generates tokens
//! by a formula.
//!
//! | file | content |
//! |---|---|
//! | `answers` | tokens that the simulated model generates |
//! | `simulated_model` | output and time of one step, without a clock |
//! | this file | [`Simulator`]: steps on the wall clock, behind the real engine and server |
//! | `virtual_time` | the real scheduler in virtual time: the clock jumps from one step's end to the next |
//! | `workload` | requests to simulate, random or from a file |
//! | `trace`, `replay` | a recording of the engine, and the replay of a recording |
//! | `timeline` | times of requests and states of the server in a run |
//! | `simulation_report`, `simulation_plot` | a run as figures and as SVG |

mod answers;
mod error;
pub mod replay;
mod simulated_model;
pub mod simulation_plot;
pub mod simulation_report;
mod timeline;
pub mod trace;
pub mod virtual_time;
pub mod workload;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use answers::SyntheticAnswers;
pub use error::SettingsError;
pub use simulated_model::{SimulatedDraftModel, SimulatedModel};
pub use timeline::{RequestOutcome, RequestTimeline, ServerSample};

use crate::engine::{EngineError, Executor};
use crate::scheduler::step_plan::{StepOutput, StepPlan};

/// Time by which a sleeping thread usually wakes up late. The simulator sleeps that much less and spins for
/// the rest. The thread does not yield while it spins: on a busy machine it would get its core back
/// milliseconds later.
const OVERSLEEP: Duration = Duration::from_micros(30);

/// An executor on the wall clock. A step begins when it is enqueued or when the step before it ends,
/// whichever is later. Ends therefore do not drift: while two steps are in flight, a late wake-up does not
/// delay the next step.
pub struct Simulator {
    model: SimulatedModel,
    pace: f64,
    /// End of the last step enqueued.
    free_at: Instant,
    outstanding: VecDeque<(StepOutput, Instant)>,
    has_exact_timers: bool,
}

impl Simulator {
    /// Creates an executor whose steps take `pace` times the cost model's time. With a pace of 0 the steps
    /// take no time, so that a run takes only the time of the host.
    ///
    /// # Errors
    /// The pace is negative or not finite.
    pub fn new(model: SimulatedModel, pace: f64) -> Result<Self, SettingsError> {
        if !(pace.is_finite() && pace >= 0.0) {
            return Err(SettingsError::Pace(pace));
        }
        let outstanding = VecDeque::new();
        Ok(Self { model, pace, free_at: Instant::now(), outstanding, has_exact_timers: false })
    }

    /// Turns off the timer slack of this thread, by which Linux may defer wake-ups (50 µs by default). If the
    /// system refuses, steps end a little late.
    fn use_exact_timers(&mut self) {
        if !self.has_exact_timers {
            let _refused = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            self.has_exact_timers = true;
        }
    }
}

impl Executor for Simulator {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        let now = Instant::now();
        let (output, time) = self.model.step(plan);
        let took = Duration::try_from_secs_f64(time.total() * self.pace)
            .map_err(|e| EngineError { message: format!("the cost model: {e}") })?;
        self.free_at = self.free_at.max(now) + took;
        self.outstanding.push_back((output, self.free_at));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let (output, end) = self.outstanding.pop_front().expect("a step was enqueued");
        self.use_exact_timers();
        wait_until(end);
        Ok(output)
    }

    fn predict(&self, plan: &StepPlan) -> Option<Duration> {
        Duration::try_from_secs_f64(self.model.predict(plan).total() * self.pace).ok()
    }
}

/// Waits until `end`, or some microseconds longer.
fn wait_until(end: Instant) {
    let asleep = end.saturating_duration_since(Instant::now()).saturating_sub(OVERSLEEP);
    if !asleep.is_zero() {
        std::thread::sleep(asleep);
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
