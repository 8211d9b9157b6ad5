//! Checkpoints: all storage formats, common mistakes in the two model families, and errors of broken files.
//! The models are two tiny random ones (`scripts/make_golden.py`).

pub mod checkpoints;
mod configurations;
mod contradictions;
mod direct_file;
mod errors;
mod lm_head;
mod loading;
mod quantization_configs;
mod reward_heads;
mod traps;

use std::path::Path;

use crate::device::model::{fixture, load, logits};

/// Copies a fixture's model to a temporary directory.
pub fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// Changes keys of `config.json`; `null` removes a key.
pub fn edit(dir: &Path, changes: serde_json::Value) {
    let path = dir.join("config.json");
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            config.remove(key);
        } else {
            config.insert(key.clone(), value.clone());
        }
    }
    std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
}
