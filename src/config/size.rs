//! Sizes in bytes with an optional unit, such as `4GiB`.

use std::str::FromStr;

/// A number of bytes, written plainly or with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
            number.trim().parse().map_err(|_| format!("expected a size such as 4GiB, got `{text}`"))?;
        let bytes = number * unit as f64;
        if !(1.0..1e18).contains(&bytes) {
            return Err(format!("expected a size between 1 B and 10^18 B, got `{text}`"));
        }
        Ok(Self(bytes as u64))
    }
}
