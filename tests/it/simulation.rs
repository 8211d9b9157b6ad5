//! Simulated GPUs: answers, step times, forecasts, recordings and their replay.

pub(crate) mod binary;
mod chaos;
mod content;
mod forecasts;
mod replays;
mod scores;
mod virtual_time;
mod workloads;

use std::path::Path;

use octant::cost::{CostModel, Hardware};
use octant::device::KvDtype;
use octant::engine::{EngineOptions, Recorder};
use octant::model::{ModelConfig, Precision};
use octant::simulator::SimulatedDraftModel;

/// Cost model of the 340B on 8 H100s in FP8.
pub fn cost() -> CostModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct");
    let model = ModelConfig::from_dir(&dir).unwrap();
    let hardware = Hardware::named(Hardware::H100).unwrap();
    CostModel::new(&model, 8, Precision::Fp8, KvDtype::Fp8, hardware).unwrap()
}

/// A small draft model on the same GPUs.
pub fn draft_model(acceptance: f64) -> SimulatedDraftModel {
    let model = ModelConfig::from_dir(&crate::device::model::fixture("wide")).unwrap();
    let hardware = Hardware::named(Hardware::H100).unwrap();
    let cost = CostModel::new(&model, 8, Precision::Fp8, KvDtype::Fp8, hardware).unwrap();
    SimulatedDraftModel { cost, acceptance }
}

/// Two steps in flight, and everything recorded.
pub fn recorded(recorder: Recorder) -> EngineOptions {
    EngineOptions { recorder: Some(recorder), ..EngineOptions::new(2) }
}
