//! The report of version 2: best of four, and the subset with several correct answers.

use serde_json::{Map, Value, json};

use super::pairs::credit;
use super::row::BenchRow;
use super::sections::{SUBSETS_2, TIES};
use super::ties::{self, TiesScore};
use super::{RewardBenchReport, Scored};
use crate::eval::error::EvalError;
use crate::eval::table::{Table, percent};

/// The report of all rows.
pub(super) fn report(rows: &[BenchRow<'_>], scored: &[Scored]) -> Result<RewardBenchReport, EvalError> {
    let ties = ties::score(rows, scored)?;
    let mut table = Table::new(&["subset", "rows", "ties", "score %"]);
    let (mut subsets, mut scores, mut missing) = (Map::new(), Vec::new(), Vec::new());
    for name in SUBSETS_2 {
        let credit = credit(name, rows, scored, best_of);
        let score = if name == TIES { ties.as_ref().map(TiesScore::total) } else { credit.mean() };
        let Some(score) = score else {
            missing.push(name);
            continue;
        };
        scores.push(score);
        let tied = if name == TIES { String::new() } else { credit.ties.to_string() };
        table.row(vec![name.to_owned(), credit.rows.to_string(), tied, percent(score)]);
        subsets.insert(name.to_owned(), json!({ "rows": credit.rows, "score": score }));
    }
    // A file without rows is refused when it is read, so there is a subset.
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    table.row(vec!["mean".to_owned(), rows.len().to_string(), String::new(), percent(mean)]);
    let mut text = table.text();
    if let Some(ties) = &ties {
        text.push_str(&ties.describe());
    }
    if !missing.is_empty() {
        text.push_str(&format!("not in the file, skipped: {}\n", missing.join(", ")));
    }
    let json = json!({
        "benchmark": "rewardbench 2",
        "mean": mean,
        "subsets": subsets,
        "ties": ties.as_ref().map_or(Value::Null, TiesScore::json),
        "missing_subsets": missing,
    });
    Ok(RewardBenchReport { table: text, json })
}

/// 1 if the chosen answer alone has the highest score; shared between all that have it; else 0.
fn best_of(chosen: f64, rejected: &[f64]) -> f64 {
    if rejected.iter().any(|score| *score > chosen) {
        return 0.0;
    }
    let at_the_top = 1 + rejected.iter().filter(|score| **score == chosen).count();
    1.0 / at_the_top as f64
}
