//! Starting an engine: which devices, what fits on them, and the model loaded onto them.
//!
//! The modules run one way. [`devices`] opens the devices, [`prepared`] reads everything but the weights and
//! plans the memory, [`start`] loads the weights and starts the engine.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
pub(crate) mod cuda;

pub(crate) mod cost_inputs;
pub(crate) mod devices;
pub(crate) mod draft;
pub mod loading_progress;
#[cfg(feature = "cuda")]
mod numa;
#[cfg(feature = "cuda")]
pub(crate) mod nvml;
pub(crate) mod prepared;
pub(crate) mod recording;
pub mod simulated;
pub(crate) mod start;

pub(crate) use devices::{DeviceChoice, Devices, NOTHING_TO_MEASURE};
pub(crate) use prepared::{Prepared, prepare};
pub(crate) use start::start;
