//! Simulated GPUs: answers, step times, forecasts, recordings and their replay.

mod binary;
mod chaos;
mod content;
mod forecasts;
mod replays;
mod virtual_time;
mod workloads;

use std::path::Path;

use octant::cost::{CostModel, Hardware};
use octant::device::KvDtype;
use octant::engine::{Recorder, Start};
use octant::model::{ModelConfig, Precision};

/// Cost model of the 340B on 8 H100s in FP8.
pub fn cost() -> CostModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct");
    let model = ModelConfig::from_dir(&dir).unwrap();
    let hardware = Hardware::named("h100-80gb").unwrap();
    CostModel::new(&model, 8, Precision::Fp8, KvDtype::Fp8, hardware).unwrap()
}

/// Two steps in flight, with a recorder.
pub fn recorded(recorder: Recorder) -> Start {
    Start { recorder: Some(recorder), ..Start::new(2) }
}
