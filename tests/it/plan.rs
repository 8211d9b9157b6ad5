//! `octant plan`: its figures compared with published tables for the 340B on eight H100s and with the
//! allocations of a device, and the command's output and errors.

mod allocated;
mod command;
mod tables;
mod time;
mod two_batches;

use std::path::PathBuf;

use octant::cost::{CostModel, Hardware, RowShape, StepTime};
use octant::device::KvDtype;
use octant::model::{ModelConfig, Precision};

fn dir_340b() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct")
}

fn model_340b() -> ModelConfig {
    ModelConfig::from_dir(&dir_340b()).unwrap()
}

fn h100() -> Hardware {
    Hardware::named(Hardware::H100).unwrap()
}

/// An H100 without overheads, whose kernels reach every rate and whose all-reduces take a picosecond per
/// byte, so that a test sees single terms.
fn bare(read: f64, products: f64) -> Hardware {
    Hardware {
        read,
        products,
        l2: 1e18,
        attention: 5e14,
        launch: 0.0,
        step_overhead: 0.0,
        layer_overhead: 0.0,
        all_reduce: vec![(1.0, 1e-12)],
        efficiency: Vec::new(),
        ..h100()
    }
}

fn cost(kv: KvDtype, hardware: Hardware) -> CostModel {
    CostModel::new(&model_340b(), 8, Precision::Fp8, kv, hardware).unwrap()
}

/// A decode step of `batch` sequences with `tokens` tokens each, including the one fed.
fn decode(cost: &CostModel, batch: usize, tokens: u32) -> StepTime {
    cost.step(std::iter::repeat_n(RowShape { tokens: 1, position: tokens - 1, logits: 1 }, batch))
}

/// Asserts that a figure equals the printed one, to half a unit of its last digit.
#[track_caller]
fn printed(what: &str, got: f64, expected: f64, unit: f64) {
    assert!((got - expected).abs() <= 0.5001 * unit, "{what}: expected {expected}, got {got}");
}
