//! Value parsers that several commands share. Each error says what was expected and what was given.

use std::time::Duration;

use clap::builder::RangedU64ValueParser;

/// An integer of at least 1.
pub(super) fn at_least_1(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("expected at least 1, got 0".to_owned()),
        Ok(value) => Ok(value),
        Err(error) => Err(format!("expected at least 1: {error}")),
    }
}

/// A whole number of seconds, at least 1.
pub(super) fn at_least_1_second(text: &str) -> Result<Duration, String> {
    at_least_1(text).map(|seconds| Duration::from_secs(seconds as u64))
}

/// A whole number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|error| format!("expected seconds: {error}"))?;
    Ok(Duration::from_secs(seconds))
}

/// A number from `min` to `max`, both included.
pub(super) fn number(
    min: f64,
    max: f64,
) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| match text.trim().parse::<f64>() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(format!("expected a number from {min} to {max}, got `{text}`")),
    }
}

/// A positive number.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if (1e-6..=1e9).contains(&value) => Ok(value),
        _ => Err(format!("expected a number above 0, got `{text}`")),
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
