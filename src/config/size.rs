//! Sizes in bytes with an optional unit, such as `4GiB`.

use std::str::FromStr;

use anyhow::{anyhow, ensure};

use super::parsers::got;

/// A number of bytes, written plainly or with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let wrong = || anyhow!("expected a size such as 4GiB, {}", got(text));
        let unit = unit_of(unit.trim_start()).ok_or_else(wrong)?;
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = number * unit;
        ensure!((1.0..1e18).contains(&bytes), "expected a size between 1 B and 10^18 B, {}", got(text));
        Ok(Self(bytes as u64))
    }
}

/// Bytes of a unit. One letter alone is as vLLM has it: a capital is a power of 1024, a small letter a power
/// of 1000.
fn unit_of(unit: &str) -> Option<f64> {
    let lower = unit.to_ascii_lowercase();
    let (prefix, rest) = match lower.chars().next() {
        None | Some('b') => (None, lower.as_str()),
        Some(letter) => (Some(letter), &lower[letter.len_utf8()..]),
    };
    let power = match prefix {
        None => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some(_) => return None,
    };
    let capital = unit.starts_with(|c: char| c.is_ascii_uppercase());
    let base: f64 = match rest {
        "i" | "ib" => 1024.0,
        "b" => 1000.0,
        "" if capital => 1024.0,
        "" => 1000.0,
        _ => return None,
    };
    Some(base.powi(power))
}
