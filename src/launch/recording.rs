//! The recording of `octant serve --record`.

use std::path::Path;

use anyhow::Context;

use super::devices::Devices;
use super::prepared::{Prepared, scheduler_config};
use crate::config::name;
use crate::engine::Recorder;
use crate::simulator::trace::{Recording, TraceHeader};

/// Starts the recording in the file at `path`. The header stores the scheduler's configuration and the inputs
/// of the cost model.
pub(crate) fn record(p: &Prepared, devices: &Devices, path: &Path) -> anyhow::Result<(Recorder, Recording)> {
    let simulation = &p.config.simulation;
    let dir = simulation.simulate_config.as_ref().unwrap_or(&p.config.model.model);
    let mut about = vec![
        ("config", std::fs::read_to_string(dir.join("config.json"))?),
        ("gpu", simulation.gpu.clone()),
        ("ranks", devices.ranks().to_string()),
        ("precision", name(&p.precision)),
        ("lm_head_dtype", name(&p.model.head_dtype)),
        ("kv", name(&p.kv)),
        ("deterministic", p.config.device.deterministic.to_string()),
        ("target_itl", p.config.scheduling.target_itl.to_string()),
    ];
    if let Some(tokens) = p.config.device.two_batch_tokens {
        about.push(("two_batch_tokens", tokens.to_string()));
    }
    if let Some(draft) = &p.draft {
        about.push(("draft_config", std::fs::read_to_string(draft.dir.join("config.json"))?));
    }
    let about = about.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let header = TraceHeader { config: scheduler_config(p), in_flight: devices.in_flight(), about };
    Recording::start(path, &header).with_context(|| format!("--record: {}", path.display()))
}
