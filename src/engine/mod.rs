//! The step loop, the open requests, and the interface to executors.
//!
//! One OS thread owns the scheduler, the open requests and the executor (`thread`). It takes commands and
//! calls [`EngineCore::step`], again and again: schedule, launch, publish the previous step's updates,
//! collect, commit. With two steps in flight the next step is planned and enqueued while the device runs the
//! current one. The loop waits for the executor, and for commands while it is idle; it never waits for a
//! client. No refusal ends it. If the executor fails or the thread panics, every open request gets an error.
//!
//! `core` is the step, `admission` decides about the queue's room and about waits, `handle` is the clients'
//! side, `shared` is the state that both sides read, `usage` and `step_clock` divide device time between
//! requests.

pub mod admission;
mod core;
mod deadlines;
mod executor;
pub mod forecast;
mod handle;
mod heartbeat;
mod metrics;
mod open_requests;
mod options;
pub mod recorder;
mod shared;
mod stats;
mod step_clock;
mod thread;
mod usage;

pub use self::core::{CollectedStep, EngineCore, StepReport, Submission, SubmitOptions};
pub use executor::{EngineError, Executor};
pub use forecast::{Forecast, PromptLoad, QueueState, TargetItl};
pub use handle::{AbortedRequest, EngineHandle, QueuePermit, UpdateStream};
pub use heartbeat::{AtomicInstant, Heartbeat, Snapshot};
pub use metrics::{EngineMetrics, KeyCounters};
pub use open_requests::OpenRequests;
pub use options::{Clock, EngineOptions};
pub use recorder::Recorder;
pub use stats::Stats;
pub use step_clock::Published;
pub(crate) use thread::panic_text;
pub use thread::{Engine, EngineThread};
pub use usage::DeviceTotals;

pub use crate::scheduler::step_plan::BLOCK_TOKENS;
pub use crate::scheduler::{Counts, RequestId, SchedulerConfig};
