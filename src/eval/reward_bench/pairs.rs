//! Accuracies of subsets.

use super::Scored;
use super::row::BenchRow;

/// The credit of the rows of a subset.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Credit {
    pub(super) rows: usize,
    pub(super) sum: f64,
    /// Rows whose chosen answer shares the maximum with a rejected one.
    pub(super) ties: usize,
}

impl Credit {
    /// Mean credit; `None` without rows.
    pub(super) fn mean(self) -> Option<f64> {
        (self.rows > 0).then(|| self.sum / self.rows as f64)
    }
}

/// The credit of a subset's rows, each by `credit` of the scores of its chosen and its rejected answers. A
/// row without scores has none.
pub(super) fn credit(
    subset: &str,
    rows: &[BenchRow<'_>],
    scored: &[Scored],
    credit: fn(chosen: f64, rejected: &[f64]) -> f64,
) -> Credit {
    let mut total = Credit::default();
    for (_, scored) in rows.iter().zip(scored).filter(|(row, _)| row.subset == subset) {
        total.rows += 1;
        if let Ok([chosen, rejected @ ..]) = scored.scores.as_deref() {
            total.sum += credit(*chosen, rejected);
            let best = rejected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            total.ties += usize::from(best == *chosen);
        }
    }
    total
}
