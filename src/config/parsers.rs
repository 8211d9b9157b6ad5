//! Value parsers that several commands share. Each error says what was expected and what was given.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::RangedU64ValueParser;

/// An integer of at least 1.
pub(super) fn at_least_1(text: &str) -> anyhow::Result<usize> {
    let value = text.parse().with_context(|| format!("expected at least 1, got `{text}`"))?;
    ensure!(value >= 1, "expected at least 1, got {value}");
    Ok(value)
}

/// A whole number of seconds, at least 1.
pub(super) fn at_least_1_second(text: &str) -> anyhow::Result<Duration> {
    at_least_1(text).map(|seconds| Duration::from_secs(seconds as u64))
}

/// A whole number of seconds.
pub(super) fn seconds(text: &str) -> anyhow::Result<Duration> {
    let seconds = text.parse().with_context(|| format!("expected whole seconds, got `{text}`"))?;
    Ok(Duration::from_secs(seconds))
}

/// A number from `min` to `max`, both included.
pub(super) fn number(min: f64, max: f64) -> impl Fn(&str) -> anyhow::Result<f64> + Clone + Send + Sync {
    move |text| match text.trim().parse::<f64>() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => bail!("expected a number from {min} to {max}, got `{text}`"),
    }
}

/// A positive number.
pub(super) fn positive(text: &str) -> anyhow::Result<f64> {
    match text.trim().parse::<f64>() {
        Ok(value) if (1e-6..=1e9).contains(&value) => Ok(value),
        _ => bail!("expected a number above 0, got `{text}`"),
    }
}

/// A count of ranks for measurements and simulations: 1 to 64.
pub(super) fn rank_count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=64)
}

/// A count of at least 1 and below 2^31, so that the sum of two counts is a valid position.
pub(super) fn position_count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..1 << 31)
}
