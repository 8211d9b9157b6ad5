//! Identity of a conversion: its command, settings and input. Compared before an interrupted run continues.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Everything that the bytes of an output depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ConversionIdentity {
    /// Version of this program.
    octant: String,
    /// The command and its settings.
    pub(super) settings: Map<String, Value>,
    /// The files or arrays of the input, by name.
    pub(super) inputs: BTreeMap<String, InputState>,
}

/// The state of a file or an array; it differs if the input has been written to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct InputState {
    /// Sizes, names and shapes, or a hash of them.
    pub(super) layout: String,
    /// Modification time of the newest file, in nanoseconds since 1970.
    pub(super) newest: u64,
    /// Wrapping sum of the modification times of all files, in nanoseconds since 1970.
    pub(super) times: u64,
}

impl ConversionIdentity {
    pub(super) fn new(settings: Map<String, Value>, inputs: BTreeMap<String, InputState>) -> Self {
        Self { octant: env!("CARGO_PKG_VERSION").to_owned(), settings, inputs }
    }

    /// Returns a hash of everything except the times, so that a copy of the input has the same hash.
    pub(super) fn hash(&self) -> String {
        let layouts: Vec<_> = self.inputs.iter().map(|(name, input)| (name, &input.layout)).collect();
        hex(&Sha256::digest(json!([self.octant, self.settings, layouts]).to_string()))
    }

    /// Returns the modification time of the newest input, in nanoseconds since 1970.
    pub(super) fn newest(&self) -> u64 {
        self.inputs.values().map(|input| input.newest).max().unwrap_or(0)
    }

    /// Describes the first difference from the identity of an earlier run; `None` if they are equal.
    pub(super) fn difference(&self, earlier: &Self) -> Option<String> {
        if self.octant != earlier.octant {
            return Some(format!("the octant version was {} and is now {}", earlier.octant, self.octant));
        }
        for (key, value) in &self.settings {
            let before = earlier.settings.get(key).unwrap_or(&Value::Null);
            if before != value {
                return Some(format!("`{key}` was {before} and is now {value}"));
            }
        }
        let changed = |(name, state): &(&String, &InputState)| earlier.inputs.get(*name) != Some(*state);
        if let Some((name, _)) = self.inputs.iter().find(changed) {
            return Some(format!("`{name}` has changed or is new"));
        }
        let missing = earlier.inputs.keys().find(|name| !self.inputs.contains_key(*name));
        missing.map(|name| format!("`{name}` no longer exists"))
    }
}

impl InputState {
    /// Adds the modification time of one of its files.
    pub(super) fn add(&mut self, modified: SystemTime) {
        let time = nanoseconds(modified);
        self.newest = self.newest.max(time);
        self.times = self.times.wrapping_add(time);
    }
}

/// Returns a time in nanoseconds since 1970; 0 for an earlier time.
pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Returns bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
