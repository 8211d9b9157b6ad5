//! Sizes in bytes with an optional unit, such as `4GiB`.

use std::str::FromStr;

use anyhow::{Context, ensure};

/// A number of bytes, written plainly or with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        const UNITS: [(&str, u64); 9] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("B", 1),
        ];
        let text = text.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((text, 1));
        let number: f64 =
            number.trim().parse().with_context(|| format!("expected a size such as 4GiB, got `{text}`"))?;
        let bytes = number * unit as f64;
        ensure!((1.0..1e18).contains(&bytes), "expected a size between 1 B and 10^18 B, got `{text}`");
        Ok(Self(bytes as u64))
    }
}
