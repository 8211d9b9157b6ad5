//! The distribution of scores as text for a terminal, printed before a threshold drops anything.

use std::fmt::Write as _;

use crate::statistics::{percentile, sorted};

use super::ScoreReport;
use super::histogram::Histogram;
use super::html::number;

/// Percentiles of the table.
const SHARES: [(&str, f64); 5] = [("p10", 0.1), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p90", 0.9)];

/// A row for each score, then bars of the first one. The last column counts the values that reach the
/// threshold.
pub fn score_table(scores: &[ScoreReport]) -> String {
    let name_width = scores.iter().map(|score| score.name.chars().count()).max().unwrap_or(0).max(5);
    let mut out = format!("{:<name_width$} {:>8} {:>9} {:>9}", "score", "count", "mean", "min");
    for (name, _) in SHARES {
        _ = write!(out, " {name:>9}");
    }
    _ = writeln!(out, " {:>9}  at or above", "max");
    for score in scores {
        out.push_str(&row(score, name_width));
    }
    if let Some(first) = scores.first() {
        _ = write!(out, "\n{}\n{}", first.name, Histogram::of(&first.values).bars());
    }
    out
}

fn row(score: &ScoreReport, name_width: usize) -> String {
    let values: Vec<f64> = score.values.iter().copied().filter(|value| value.is_finite()).collect();
    let values = sorted(values);
    let mut out = format!("{:<name_width$} {:>8}", score.name, values.len());
    let (Some(min), Some(max)) = (values.first(), values.last()) else {
        out.push_str("  no values\n");
        return out;
    };
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    _ = write!(out, " {:>9} {:>9}", number(mean), number(*min));
    for (_, share) in SHARES {
        _ = write!(out, " {:>9}", number(percentile(&values, share)));
    }
    _ = write!(out, " {:>9}", number(*max));
    if let Some(least) = score.threshold {
        let reached = values.iter().filter(|value| **value >= least).count();
        let percent = 100.0 * reached as f64 / values.len() as f64;
        _ = write!(out, "  {}: {reached} ({percent:.1} %)", number(least));
    }
    out.push('\n');
    out
}
