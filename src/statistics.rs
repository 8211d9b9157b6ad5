//! Mean, standard deviation and percentiles of measured or simulated values. Every value is kept, so the
//! results are exact.
//!
//! All percentiles of this project have one definition, linear interpolation, which is numpy's default. The
//! values are sorted, `x[0] <= ... <= x[n - 1]`. The percentile of a share `q` from 0 to 1 is
//! `x[k] + (x[k + 1] - x[k]) * (h - k)`, where `h = q * (n - 1)` and `k = floor(h)`.

use serde::Serialize;

/// Summary of a set of values, in the unit of the values. All fields are 0 for an empty set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Number of values.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation: the divisor is `count`.
    pub std: f64,
    /// Smallest value.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
}

impl Distribution {
    /// Summarises values in any order.
    pub fn of(values: Vec<f64>) -> Self {
        let values = sorted(values);
        let (Some(min), Some(max)) = (values.first(), values.last()) else { return Self::default() };
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let at = |share| percentile(&values, share);
        Self {
            count: values.len(),
            mean,
            std: variance.sqrt(),
            min: *min,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: *max,
        }
    }
}

/// Sorts values in ascending order, as [`percentile`] expects them.
pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Percentile of ascending values by the formula in the module's header. `share` is clamped to 0..=1; an
/// empty slice gives 0.
pub(crate) fn percentile(ascending: &[f64], share: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return 0.0 };
    let position = share.clamp(0.0, 1.0) * last as f64;
    let low = position.floor() as usize;
    let high = (low + 1).min(last);
    ascending[low] + (ascending[high] - ascending[low]) * (position - low as f64)
}
