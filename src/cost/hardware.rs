//! A GPU as numbers: what it can hold, read, multiply and say to its peers, from a file in `models/`.

use std::path::Path;

use serde::Deserialize;

/// The GPU of a DGX H100.
const H100_80GB: &str = include_str!("../../models/h100-80gb.toml");

/// One GPU of eight that are connected. The file says where each value is from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// For people.
    pub name: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// The part of it that a server may plan with.
    pub usable: f64,
    /// Bytes per second read from memory.
    pub read: f64,
    /// FLOP per second of FP8 products of many rows.
    pub products: f64,
    /// FLOP per second of attention over prompts.
    pub attention: f64,
    /// Seconds of a step beside all else.
    pub step_overhead: f64,
    /// Seconds of a layer beside all else.
    pub layer_overhead: f64,
    /// (bytes, seconds) of an all-reduce, by size.
    pub all_reduce: Vec<(f64, f64)>,
}

impl Hardware {
    /// By the name of one that is built in, or from a TOML file.
    ///
    /// # Errors
    /// What is wrong, naming the file or the key.
    pub fn named(name: &str) -> Result<Self, String> {
        let (text, from) = match name {
            "h100-80gb" => (H100_80GB.to_owned(), name.to_owned()),
            path if path.ends_with(".toml") => {
                let text = std::fs::read_to_string(Path::new(path)).map_err(|e| format!("{path}: {e}"))?;
                (text, path.to_owned())
            }
            other => return Err(format!("expected h100-80gb or a .toml file, got `{other}`")),
        };
        let hardware: Self =
            toml::from_str(&text).map_err(|e| format!("{from}: {}", e.to_string().trim_end()))?;
        Ok(hardware)
    }

    /// Seconds of one all-reduce of so many bytes: between two sizes of the table in proportion, below the smallest as
    /// that, and above the largest by its rate.
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
