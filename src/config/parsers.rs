//! Value parsers that several commands share. Each error says what was expected and what was given.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use clap::builder::{PathBufValueParser, TypedValueParser};

use crate::engine::TargetItl;
use crate::hub::ModelName;
use crate::tools::ToolFormat;

/// A model as operators name it: a directory, or `ORG/NAME[@REVISION]` on the Hugging Face hub. A name that
/// cannot be one is refused, unless a directory or file has it.
pub(super) fn model() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match ModelName::from_path(&path) {
        Ok(_) => Ok(path),
        Err(message) => Err(anyhow!(message)),
    })
}

/// A value in an error message.
pub(super) fn got(text: &str) -> String {
    if text.trim().is_empty() { "got an empty value".to_owned() } else { format!("got `{text}`") }
}

/// A whole number from `min` to `max`, both included.
pub(super) fn whole<T: TryFrom<u64>>(
    min: u64,
    max: u64,
) -> impl Fn(&str) -> anyhow::Result<T> + Clone + Send + Sync {
    move |text| {
        let value = text.trim().parse::<u64>().ok().filter(|value| (min..=max).contains(value));
        let value = value.and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| anyhow!("expected a whole number from {min} to {max}, {}", got(text)))
    }
}

/// A TCP port.
pub(super) fn port(text: &str) -> anyhow::Result<u16> {
    text.trim().parse().map_err(|_| anyhow!("expected a port from 0 to 65535, {}", got(text)))
}

/// A whole number of at least 0.
pub(super) fn at_least_0<T: TryFrom<u64>>(text: &str) -> anyhow::Result<T> {
    let value = text.trim().parse::<u64>().ok().and_then(|value| T::try_from(value).ok());
    value.ok_or_else(|| anyhow!("expected a whole number of at least 0, {}", got(text)))
}

/// A whole number of at least 1.
pub(super) fn at_least_1(text: &str) -> anyhow::Result<usize> {
    match text.trim().parse() {
        Ok(0) => bail!("expected at least 1, got 0"),
        Ok(value) => Ok(value),
        Err(_) => bail!("expected a whole number of at least 1, {}", got(text)),
    }
}

/// A number as `parser` reads it, at most `max`.
pub(super) fn at_most(
    max: usize,
    parser: fn(&str) -> anyhow::Result<usize>,
) -> impl Fn(&str) -> anyhow::Result<usize> + Clone + Send + Sync {
    move |text| {
        // A number that no variable can hold is above the limit too.
        let digits = text.trim();
        let huge = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && digits.parse::<usize>().is_err();
        ensure!(!huge, "expected at most {max}, {}", got(text));
        let value = parser(text)?;
        ensure!(value <= max, "expected at most {max}, {}", got(text));
        Ok(value)
    }
}

/// A number of tokens, at least 1: a whole number, or a number with one of vLLM's units. A small letter is a
/// power of 1000 (`1.5k` is 1500); a capital one is a power of 1024 (`4K` is 4096).
pub(super) fn tokens(text: &str) -> anyhow::Result<usize> {
    const UNITS: [(char, f64); 6] = [
        ('k', 1e3),
        ('m', 1e6),
        ('g', 1e9),
        ('K', 1024.0),
        ('M', 1024.0 * 1024.0),
        ('G', 1024.0 * 1024.0 * 1024.0),
    ];
    let trimmed = text.trim();
    let Some((number, unit)) =
        UNITS.iter().find_map(|(name, unit)| Some((trimmed.strip_suffix(*name)?, unit)))
    else {
        return at_least_1(text)
            .map_err(|error| if trimmed.parse::<u64>().is_ok() { error } else { not_tokens(text) });
    };
    let value = number.parse::<f64>().map_or(0.0, |number| number * unit);
    ensure!((1.0..1e15).contains(&value) && value.fract() == 0.0, not_tokens(text));
    Ok(value as usize)
}

fn not_tokens(text: &str) -> anyhow::Error {
    anyhow!("expected a number of tokens of at least 1, such as 4096, 4k (4000) or 4K (4096), {}", got(text))
}

/// A length of time in whole seconds, or with a unit: `90`, `90s`, `5m`, `1h`.
pub(super) fn seconds(text: &str) -> anyhow::Result<Duration> {
    let trimmed = text.trim();
    let unit = [('s', 1), ('m', 60), ('h', 3600)];
    let (number, unit) = unit
        .iter()
        .find_map(|(name, unit)| Some((trimmed.strip_suffix(*name)?, *unit)))
        .unwrap_or((trimmed, 1));
    let seconds = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    // At most a thousand years, so that adding it to the current time does not overflow.
    ensure!(
        seconds.is_none_or(|seconds| seconds <= 31_536_000_000),
        "expected at most 1000 years, {}",
        got(text)
    );
    let seconds = seconds
        .ok_or_else(|| anyhow!("expected whole seconds, or a time such as 30s, 5m or 1h, {}", got(text)))?;
    Ok(Duration::from_secs(seconds))
}

/// A length of time as for [`seconds`], at least 1 second.
pub(super) fn at_least_1_second(text: &str) -> anyhow::Result<Duration> {
    let duration = seconds(text)?;
    ensure!(!duration.is_zero(), "expected at least 1, got 0");
    Ok(duration)
}

/// A number from `min` to `max`, both included.
pub(super) fn number(min: f64, max: f64) -> impl Fn(&str) -> anyhow::Result<f64> + Clone + Send + Sync {
    move |text| match text.trim().parse::<f64>() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => bail!("expected a number from {min} to {max}, {}", got(text)),
    }
}

/// A positive number.
pub(super) fn positive(text: &str) -> anyhow::Result<f64> {
    match text.trim().parse::<f64>() {
        Ok(value) if (1e-6..=1e9).contains(&value) => Ok(value),
        Ok(value) if value > 0.0 => bail!("expected a number from 1e-6 to 1e9, {}", got(text)),
        _ => bail!("expected a number above 0, {}", got(text)),
    }
}

/// A target for the inter-token latency: seconds, `auto` or `off`.
pub(crate) fn target_itl(text: &str) -> anyhow::Result<TargetItl> {
    match text.trim().to_ascii_lowercase().as_str() {
        "auto" => Ok(TargetItl::Auto),
        "off" => Ok(TargetItl::Off),
        number => match number.parse::<f64>() {
            Ok(seconds) if (1e-6..=1e9).contains(&seconds) => Ok(TargetItl::Seconds(seconds)),
            _ => bail!("expected seconds from 1e-6 to 1e9, auto or off, {}", got(text)),
        },
    }
}

/// A fraction from 0 to 1, both included.
pub(super) fn fraction(text: &str) -> anyhow::Result<f32> {
    match text.trim().parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => bail!("expected a fraction from 0 to 1, {}", got(text)),
    }
}

/// A fraction above 0, at most 1.
pub(super) fn positive_fraction(text: &str) -> anyhow::Result<f64> {
    let hint = match text.trim().trim_end_matches('%').parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 && !text.contains('%') => return Ok(value),
        Ok(percent) if (1.0..=100.0).contains(&percent) => format!("; {percent} % is {}", percent / 100.0),
        _ => String::new(),
    };
    bail!("expected a fraction above 0, at most 1, {}{hint}", got(text))
}

/// A boolean: true, yes, on or 1, or false, no, off or 0, in any case.
pub(super) fn boolean(text: &str) -> anyhow::Result<bool> {
    is_boolean(text).ok_or_else(|| anyhow!("expected true or false, {}", got(text)))
}

/// The value of a word for true or false.
pub(super) fn is_boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// A name without spaces around it.
pub(super) fn trimmed_name(text: &str) -> anyhow::Result<String> {
    let name = text.trim();
    ensure!(!name.is_empty(), "expected a name, {}", got(text));
    ensure!(!name.chars().any(char::is_control), "expected a name without control characters, got {name:?}");
    Ok(name.to_owned())
}

/// A secret without spaces around it.
pub(super) fn trimmed_secret(text: &str) -> anyhow::Result<String> {
    Ok(text.trim().to_owned())
}

/// A count of ranks for measurements and simulations: 1 to 64.
pub(super) fn rank_count() -> impl Fn(&str) -> anyhow::Result<usize> + Clone + Send + Sync {
    whole(1, 64)
}

/// A count of at least 1 and below 2^31, so that the sum of two counts is a valid position.
pub(super) fn position_count() -> impl Fn(&str) -> anyhow::Result<usize> + Clone + Send + Sync {
    whole(1, (1 << 31) - 1)
}

/// The name of a format of tool calls.
pub(super) fn tool_format(text: &str) -> anyhow::Result<ToolFormat> {
    let names = ToolFormat::NAMES.map(|(name, _)| name).join(", ");
    ToolFormat::named(text.trim()).ok_or_else(|| anyhow!("expected one of {names}, {}", got(text)))
}

/// The weight of a reward model's value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RewardWeight {
    /// Name of the value.
    pub(crate) name: String,
    pub(crate) weight: f64,
}

/// `NAME=WEIGHT`.
pub(super) fn reward_weight(text: &str) -> anyhow::Result<RewardWeight> {
    let parts = text.split_once('=').map(|(name, weight)| (name.trim(), weight.trim().parse::<f64>()));
    match parts {
        Some((name, Ok(weight))) if !name.is_empty() && weight.is_finite() => {
            Ok(RewardWeight { name: name.to_owned(), weight })
        }
        _ => bail!("expected NAME=WEIGHT with a finite number, {}", got(text)),
    }
}

/// A JSON object.
pub(super) fn json_object(text: &str) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(text).map_err(|error| anyhow!("expected a JSON object, {}: {error}", got(text)))
}
