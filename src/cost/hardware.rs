//! The figures of one GPU: memory, bandwidth, arithmetic and all-reduce times, from a TOML file as in
//! `models/`.

use std::path::Path;

use serde::Deserialize;

use crate::model::LoadError;

/// The built-in file of the GPU of a DGX H100.
const H100_80GB: &str = include_str!("../../models/h100-80gb.toml");

/// One of eight GPUs that are connected to one another. The TOML file names the source of each value.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Display name.
    pub name: String,
    /// Device memory in bytes.
    pub memory: u64,
    /// Bytes that are in use before a server allocates anything: the driver's context and the kernels.
    /// Default: 0.
    #[serde(default)]
    pub context: u64,
    /// Fraction of the remaining memory that a server may plan with.
    pub usable: f64,
    /// Last-level cache in bytes. Intermediate results that fit are not read from memory. Default: 0.
    #[serde(default)]
    pub cache: f64,
    /// Memory bandwidth in bytes per second.
    pub read: f64,
    /// FLOP per second of FP8 matrix products with many rows.
    pub products: f64,
    /// FLOP per second of attention over a prompt.
    pub attention: f64,
    /// Seconds per step that no other term covers.
    pub step_overhead: f64,
    /// Seconds per layer that no other term covers.
    pub layer_overhead: f64,
    /// All-reduce times as pairs (bytes, seconds), in ascending order of bytes.
    pub all_reduce: Vec<(f64, f64)>,
}

impl Hardware {
    /// Name of the built-in GPU, and the default wherever a GPU is chosen.
    pub const H100: &str = "h100-80gb";

    /// Looks up the built-in GPU by name, or reads a TOML file.
    ///
    /// # Errors
    /// The name is unknown, or the file or a value in it is wrong. The error names the file or the key.
    pub fn named(name: &str) -> Result<Self, LoadError> {
        let (text, from) = match name {
            Self::H100 => (H100_80GB.to_owned(), name.to_owned()),
            path if path.ends_with(".toml") => {
                let text = std::fs::read_to_string(Path::new(path));
                (text.map_err(|e| LoadError::Gpu(format!("{path}: {e}")))?, path.to_owned())
            }
            other => {
                let message = format!("expected {} or a .toml file, got `{other}`", Self::H100);
                return Err(LoadError::Gpu(message));
            }
        };
        let hardware: Self = toml::from_str(&text)
            .map_err(|e| LoadError::Gpu(format!("{from}: {}", e.to_string().trim_end())))?;
        hardware.check().map_err(|error| LoadError::Gpu(format!("{from}: {error}")))?;
        Ok(hardware)
    }

    /// Bytes of memory that a server may plan with.
    pub fn available(&self) -> u64 {
        ((self.memory - self.context) as f64 * self.usable) as u64
    }

    /// Rejects values that no GPU can have; the error names the key.
    fn check(&self) -> Result<(), LoadError> {
        let positive = [
            ("memory", self.memory as f64),
            ("usable", self.usable),
            ("read", self.read),
            ("products", self.products),
            ("attention", self.attention),
        ];
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(LoadError::Gpu(format!("{key}: expected a number above 0, got {value}")));
            }
        }
        for (key, value) in [
            ("step_overhead", self.step_overhead),
            ("layer_overhead", self.layer_overhead),
            ("cache", self.cache),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(LoadError::Gpu(format!("{key}: expected a number of at least 0, got {value}")));
            }
        }
        if self.usable > 1.0 {
            return Err(LoadError::Gpu(format!(
                "usable: expected a fraction of at most 1, got {}",
                self.usable
            )));
        }
        if self.context >= self.memory {
            return Err(LoadError::Gpu(format!(
                "context: expected less than memory = {}, got {}",
                self.memory, self.context
            )));
        }
        self.check_table()
    }

    fn check_table(&self) -> Result<(), LoadError> {
        if self.all_reduce.is_empty() {
            return Err(LoadError::Gpu(
                "all_reduce: expected at least one [bytes, seconds] pair, got none".to_owned(),
            ));
        }
        let sound = |x: f64| x.is_finite() && x > 0.0;
        if let Some((bytes, seconds)) = self.all_reduce.iter().find(|(b, s)| !sound(*b) || !sound(*s)) {
            return Err(LoadError::Gpu(format!(
                "all_reduce: expected numbers above 0, got [{bytes}, {seconds}]"
            )));
        }
        match self.all_reduce.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            None => Ok(()),
            Some(pair) => Err(LoadError::Gpu(format!(
                "all_reduce: expected growing sizes, got {} after {}",
                pair[1].0, pair[0].0
            ))),
        }
    }

    /// Seconds of one all-reduce of `bytes` bytes. Interpolates linearly between two sizes of the table; uses
    /// the smallest size's time below it, and the largest size's bandwidth above it.
    pub fn all_reduce_seconds(&self, bytes: f64) -> f64 {
        let table = &self.all_reduce;
        let (Some(smallest), Some(largest)) = (table.first(), table.last()) else { return 0.0 };
        if bytes >= largest.0 {
            return largest.1 * bytes / largest.0;
        }
        let after = table.iter().position(|(size, _)| *size > bytes).unwrap_or(0);
        if after == 0 {
            return smallest.1;
        }
        let ((a, x), (b, y)) = (table[after - 1], table[after]);
        x + (y - x) * (bytes - a) / (b - a)
    }
}
