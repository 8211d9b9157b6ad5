//! The figures of one GPU: memory, bandwidth, arithmetic and all-reduce times, from a TOML file as in
//! `models/`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::figures::{Efficiency, Figure, Kernel, Limit, Origin, Source, TermOrigin};
use crate::model::LoadError;

/// The built-in file of the GPU of a DGX H100.
const H100_80GB: &str = include_str!("../../models/h100-80gb.toml");
/// The same with more and faster memory.
const H200_141GB: &str = include_str!("../../models/h200-141gb.toml");
/// A card for PCIe slots.
const H100_NVL: &str = include_str!("../../models/h100-nvl.toml");

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
    /// Memory bandwidth in bytes per second. Kernels reach shares of this and the next three rates.
    pub read: f64,
    /// Bytes per second that all multiprocessors together copy from L2.
    pub l2: f64,
    /// FLOP per second of the tensor cores with E4M3 inputs.
    pub products: f64,
    /// FLOP per second of the tensor cores with F16 inputs, which attention uses.
    pub attention: f64,
    /// Seconds of a launch of a product beyond its copies and arithmetic.
    pub launch: f64,
    /// Seconds per step that no other term covers.
    pub step_overhead: f64,
    /// Seconds per layer that no other term covers.
    pub layer_overhead: f64,
    /// All-reduce times as pairs (bytes, seconds), in ascending order of bytes.
    pub all_reduce: Vec<(f64, f64)>,
    /// Shares of the rates that kernels reach. A kernel that is not listed reaches all of a rate.
    #[serde(default)]
    pub efficiency: Vec<Efficiency>,
    /// Sources by key. A figure without one counts as estimated.
    #[serde(default)]
    pub sources: BTreeMap<String, Source>,
}

/// The figures in the formula of a term of a step's time.
struct TermFigures {
    term: &'static str,
    keys: &'static [&'static str],
    /// The kernel whose share of a rate is in the formula.
    kernel: Option<Kernel>,
    limit: Limit,
}

impl TermFigures {
    const fn new(term: &'static str, keys: &'static [&'static str]) -> Self {
        Self { term, keys, kernel: None, limit: Limit::Memory }
    }

    const fn of(self, kernel: Kernel, limit: Limit) -> Self {
        Self { kernel: Some(kernel), limit, ..self }
    }
}

/// The terms of [`StepTime`](super::StepTime).
const TERMS: [TermFigures; 11] = [
    TermFigures::new("weights", &["read"]).of(Kernel::Linear, Limit::Memory),
    TermFigures::new("staging", &["l2"]).of(Kernel::Linear, Limit::L2),
    TermFigures::new("products", &["products"]).of(Kernel::Linear, Limit::Arithmetic),
    TermFigures::new("cuts", &["l2", "launch"]).of(Kernel::Linear, Limit::L2),
    TermFigures::new("head", &["read", "products"]).of(Kernel::Linear, Limit::Memory),
    TermFigures::new("kv", &["read"]).of(Kernel::Attention, Limit::Memory),
    TermFigures::new("attention", &["attention"]).of(Kernel::Attention, Limit::Arithmetic),
    TermFigures::new("activations", &["read", "cache"]).of(Kernel::Rows, Limit::Memory),
    TermFigures::new("reduce", &["all_reduce", "l2", "launch", "read"]).of(Kernel::Linear, Limit::L2),
    TermFigures::new("gather", &["all_reduce"]),
    TermFigures::new("overhead", &["step_overhead", "layer_overhead", "l2"]),
];

impl Hardware {
    /// Name of the built-in GPU, and the default wherever a GPU is chosen.
    pub const H100: &str = "h100-80gb";

    /// Names of all built-in GPUs.
    pub const NAMES: [&str; 3] = [Self::H100, Self::H200, Self::NVL];
    const H200: &str = "h200-141gb";
    const NVL: &str = "h100-nvl";

    /// Looks up a built-in GPU by name, or reads a TOML file.
    ///
    /// # Errors
    /// The name is unknown, or the file or a value in it is wrong. The error names the file or the key.
    pub fn named(name: &str) -> Result<Self, LoadError> {
        let (text, from) = match name {
            Self::H100 => (H100_80GB.to_owned(), name.to_owned()),
            Self::H200 => (H200_141GB.to_owned(), name.to_owned()),
            Self::NVL => (H100_NVL.to_owned(), name.to_owned()),
            path if path.ends_with(".toml") => {
                let text = std::fs::read_to_string(Path::new(path));
                (text.map_err(|e| LoadError::Gpu(format!("{path}: {e}")))?, path.to_owned())
            }
            other => {
                let names = Self::NAMES.join(", ");
                let message = format!("expected {names} or a .toml file, got `{other}`");
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
            ("l2", self.l2),
            ("products", self.products),
            ("attention", self.attention),
        ];
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(LoadError::Gpu(format!("{key}: expected a number above 0, got {value}")));
            }
        }
        for (key, value) in [
            ("launch", self.launch),
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
        self.check_table()?;
        self.check_efficiency()?;
        match self.sources.keys().find(|key| self.value(key).is_none() && *key != "all_reduce") {
            Some(key) => Err(LoadError::Gpu(format!("sources.{key}: expected the key of a figure"))),
            None => Ok(()),
        }
    }

    fn check_efficiency(&self) -> Result<(), LoadError> {
        for (at, one) in self.efficiency.iter().enumerate() {
            let Efficiency { kernel, limit, share, .. } = one;
            if !(*share > 0.0 && *share <= 1.0) {
                return Err(LoadError::Gpu(format!(
                    "efficiency: expected a share above 0 and at most 1, got {share}"
                )));
            }
            let before =
                self.efficiency[..at].iter().rev().find(|x| (x.kernel, x.limit) == (*kernel, *limit));
            if before.is_some_and(|x| x.rows.is_none_or(|rows| one.rows.is_some_and(|more| more <= rows))) {
                return Err(LoadError::Gpu(format!(
                    "efficiency: expected growing rows of {kernel:?}, {limit:?}"
                )));
            }
        }
        Ok(())
    }

    /// The figure of a key, in the unit of the file.
    fn value(&self, key: &str) -> Option<f64> {
        Some(match key {
            "memory" => self.memory as f64,
            "context" => self.context as f64,
            "usable" => self.usable,
            "cache" => self.cache,
            "read" => self.read,
            "l2" => self.l2,
            "products" => self.products,
            "attention" => self.attention,
            "launch" => self.launch,
            "step_overhead" => self.step_overhead,
            "layer_overhead" => self.layer_overhead,
            _ => return None,
        })
    }

    /// The share of a rate that a kernel reaches in a launch of `rows` rows.
    pub fn share(&self, kernel: Kernel, limit: Limit, rows: usize) -> f64 {
        let mut entries = self.efficiency.iter().filter(|x| (x.kernel, x.limit) == (kernel, limit));
        let last = entries.clone().next_back();
        entries.find(|x| x.rows.is_none_or(|most| rows <= most)).or(last).map_or(1.0, |x| x.share)
    }

    /// All figures that step times are computed from, with their sources.
    pub fn figures(&self) -> Vec<Figure> {
        let keys = ["read", "l2", "products", "attention", "cache", "launch", "step_overhead"];
        let keys = keys.into_iter().chain(["layer_overhead", "all_reduce"]);
        let rates = keys.map(|key| {
            let source = self.sources.get(key);
            Figure {
                name: key.to_owned(),
                value: self.value(key),
                origin: source.map_or(Origin::Estimated, |source| source.origin),
                from: source.map_or_else(|| "no source given".to_owned(), |source| source.from.clone()),
            }
        });
        let shares = self.efficiency.iter().map(|x| {
            let rows = x.rows.map_or_else(String::new, |rows| format!(", to {rows} rows"));
            let name = format!("{:?} of {:?}{rows}", x.kernel, x.limit).to_lowercase();
            Figure { name, value: Some(x.share), origin: x.origin, from: x.from.clone() }
        });
        rates.chain(shares).collect()
    }

    /// The weakest source of each term of a step's time.
    pub(crate) fn term_origins(&self) -> Vec<TermOrigin> {
        let of_key = |key: &&str| self.sources.get(*key).map_or(Origin::Estimated, |source| source.origin);
        TERMS
            .iter()
            .map(|figures| {
                let of_term = |x: &&Efficiency| Some(x.kernel) == figures.kernel && x.limit == figures.limit;
                let shares = self.efficiency.iter().filter(of_term).map(|x| x.origin);
                let origin = figures.keys.iter().map(of_key).chain(shares).max();
                TermOrigin { term: figures.term, origin: origin.unwrap_or(Origin::Estimated) }
            })
            .collect()
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
