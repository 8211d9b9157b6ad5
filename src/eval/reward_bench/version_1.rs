//! The report of version 1: subsets, sections, and their mean with and without the prior sets.

use serde_json::{Map, Value, json};

use super::pairs::{Credit, credit};
use super::row::BenchRow;
use super::sections::{PRIOR_SETS, SECTIONS, Section};
use super::{RewardBenchReport, Scored};
use crate::eval::table::{Table, percent};

/// Weight of each of the four sections beside the prior sets, which weigh 1.
const SECTION_WEIGHT: f64 = 2.0;

/// A section's subsets and their weighted mean.
struct SectionResult {
    section: &'static Section,
    subsets: Vec<Credit>,
    /// `None` if no subset has rows.
    score: Option<f64>,
}

/// The report of all rows.
pub(super) fn report(rows: &[BenchRow<'_>], scored: &[Scored]) -> RewardBenchReport {
    let four: Vec<SectionResult> = SECTIONS.iter().map(|section| result(section, rows, scored)).collect();
    let prior = result(PRIOR_SETS, rows, scored);
    let scores: Vec<f64> = four.iter().filter_map(|section| section.score).collect();
    let mean = (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
    let with_prior = prior.score.map(|prior| {
        let weight = SECTION_WEIGHT * scores.len() as f64 + 1.0;
        (SECTION_WEIGHT * scores.iter().sum::<f64>() + prior) / weight
    });
    let missing: Vec<&str> = four.iter().flat_map(missing_of).collect();
    let missing_prior: Vec<&str> = missing_of(&prior);
    let mut table = Table::new(&["subset", "rows", "ties", "weight", "accuracy %"]);
    for section in four.iter().chain([&prior]).filter(|section| section.score.is_some()) {
        add_section(&mut table, section);
    }
    let mut total = |name: &str, score: Option<f64>| {
        if let Some(score) = score {
            table.row(vec![name.to_owned(), String::new(), String::new(), String::new(), percent(score)]);
        }
    };
    total("mean of the sections", mean);
    total("mean with prior sets", with_prior);
    let mut text = table.text();
    if !missing.is_empty() {
        text.push_str(&format!("not in the file, skipped: {}\n", missing.join(", ")));
    }
    if prior.score.is_some() && !missing_prior.is_empty() {
        text.push_str(&format!("prior sets not in the file, skipped: {}\n", missing_prior.join(", ")));
    }
    let sections: Map<String, Value> = four
        .iter()
        .chain([&prior])
        .filter_map(|section| Some((section.section.name.to_owned(), json!(section.score?))))
        .collect();
    let json = json!({
        "benchmark": "rewardbench",
        "mean": mean,
        "mean_with_prior_sets": with_prior,
        "sections": sections,
        "subsets": four.iter().chain([&prior]).flat_map(subset_rows).collect::<Vec<_>>(),
        "missing_subsets": missing,
        "missing_prior_sets": missing_prior,
    });
    RewardBenchReport { table: text, json }
}

/// The accuracies of a section: right only if the chosen answer has the higher score, so a tie is wrong.
fn result(section: &'static Section, rows: &[BenchRow<'_>], scored: &[Scored]) -> SectionResult {
    let right = |chosen: f64, rejected: &[f64]| {
        f64::from(u8::from(rejected.iter().all(|rejected| chosen > *rejected)))
    };
    let credit = |(name, _): &(&str, u32)| credit(name, rows, scored, right);
    let subsets: Vec<Credit> = section.subsets.iter().map(credit).collect();
    let weighted = section.subsets.iter().zip(&subsets).filter_map(|((_, weight), credit)| {
        let weight = f64::from(*weight);
        Some((credit.mean()? * weight, weight))
    });
    let (sum, weights) = weighted.fold((0.0, 0.0), |(sum, all), (part, weight)| (sum + part, all + weight));
    SectionResult { section, subsets, score: (weights > 0.0).then(|| sum / weights) }
}

/// The subsets of a section that have no row.
fn missing_of(section: &SectionResult) -> Vec<&'static str> {
    let named = section.section.subsets.iter().zip(&section.subsets);
    named.filter(|(_, credit)| credit.rows == 0).map(|((name, _), _)| *name).collect()
}

fn add_section(table: &mut Table, section: &SectionResult) {
    for ((name, weight), credit) in section.section.subsets.iter().zip(&section.subsets) {
        if let Some(mean) = credit.mean() {
            let cells = [credit.rows.to_string(), credit.ties.to_string(), weight.to_string(), percent(mean)];
            table.row([format!("  {name}")].into_iter().chain(cells).collect());
        }
    }
    let rows: usize = section.subsets.iter().map(|credit| credit.rows).sum();
    let ties: usize = section.subsets.iter().map(|credit| credit.ties).sum();
    let score = section.score.map(percent).unwrap_or_default();
    table.row(vec![
        section.section.name.to_owned(),
        rows.to_string(),
        ties.to_string(),
        String::new(),
        score,
    ]);
}

fn subset_rows(section: &SectionResult) -> Vec<Value> {
    let named = section.section.subsets.iter().zip(&section.subsets);
    named
        .filter_map(|((name, weight), credit)| {
            Some(json!({
                "subset": name,
                "section": section.section.name,
                "rows": credit.rows,
                "ties": credit.ties,
                "weight": weight,
                "accuracy": credit.mean()?,
            }))
        })
        .collect()
}
