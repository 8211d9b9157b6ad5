//! The report's HTML.

use std::fmt::Write as _;

use crate::statistics::Distribution;

use super::histogram::Histogram;
use super::html::{duration, escape, grouped, number};
use super::{ExportReport, Fate, Report, ScoreReport, StageReport};

const STYLE: &str = include_str!("style.css");

/// The page may load nothing and run nothing, whatever a text contains.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Longest text of a sample, in characters; the JSONL file has all of it.
const MAX_TEXT: usize = 4000;

/// The report as one HTML file.
pub fn page(report: &Report) -> String {
    let title = escape(&report.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}: synthetic data</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<h1>{title}</h1>\n"
    );
    for line in &report.subtitle {
        _ = writeln!(out, "<p class=\"subtitle\">{}</p>", escape(line));
    }
    totals(&mut out, report);
    notices(&mut out, report);
    stages(&mut out, &report.stages);
    scores(&mut out, &report.scores);
    exports(&mut out, &report.exports);
    samples(&mut out, "Samples", report, Fate::Kept);
    rejects(&mut out, &report.stages);
    samples(&mut out, "Rejected items", report, Fate::Rejected);
    samples(&mut out, "Short lists", report, Fate::Short);
    out.push_str("</body>\n</html>\n");
    out
}

fn totals(out: &mut String, report: &Report) {
    let sum = |of: fn(&StageReport) -> u64| report.stages.iter().map(of).sum::<u64>();
    let seconds: f64 = report.stages.iter().map(|stage| stage.seconds).sum();
    let rejected = sum(|stage| stage.rejects.iter().map(|reject| reject.count).sum());
    let figures = [
        (grouped(sum(|stage| stage.requests)), "requests"),
        (grouped(sum(|stage| stage.prompt_tokens)), "prompt tokens"),
        (grouped(sum(|stage| stage.completion_tokens)), "completion tokens"),
        (grouped(rejected), "rejected items"),
        (duration(seconds), "time of all stages"),
    ];
    out.push_str("<div class=\"totals\">\n");
    for (figure, name) in figures {
        _ = writeln!(out, "<div><strong>{figure}</strong><span>{name}</span></div>");
    }
    out.push_str("</div>\n");
}

/// Targets that were not reached, and the notes.
fn notices(out: &mut String, report: &Report) {
    for stage in report.stages.iter().filter(|stage| stage.missing() > 0) {
        let wanted = stage.wanted.unwrap_or_default();
        _ = writeln!(
            out,
            "<p class=\"notice\"><strong>Underfilled:</strong> {} made {} of {} wanted items; \
             {} are missing.</p>",
            escape(&stage.name),
            grouped(stage.made),
            grouped(wanted),
            grouped(stage.missing())
        );
    }
    for note in &report.notes {
        _ = writeln!(out, "<p class=\"notice\">{}</p>", escape(note));
    }
}

fn stages(out: &mut String, stages: &[StageReport]) {
    out.push_str(
        "<h2>Stages</h2>\n<div class=\"scroll\"><table>\n<tr><th>stage</th><th class=\"n\">from</th>\
         <th class=\"n\">made</th><th class=\"n\">wanted</th><th class=\"n\">rejected</th>\
         <th class=\"n\">requests</th><th class=\"n\">prompt tokens</th>\
         <th class=\"n\">completion tokens</th><th class=\"n\">time</th></tr>\n",
    );
    for stage in stages {
        let rejected: u64 = stage.rejects.iter().map(|reject| reject.count).sum();
        let made = if stage.missing() > 0 { "n short" } else { "n" };
        _ = write!(out, "<tr><td>{}</td>", escape(&stage.name));
        _ = write!(out, "<td class=\"n\">{}</td>", grouped(stage.taken));
        _ = write!(out, "<td class=\"{made}\">{}</td>", grouped(stage.made));
        let wanted = stage.wanted.map_or_else(|| "–".to_owned(), grouped);
        let rest = [
            wanted,
            grouped(rejected),
            grouped(stage.requests),
            grouped(stage.prompt_tokens),
            grouped(stage.completion_tokens),
            duration(stage.seconds),
        ];
        for cell in rest {
            _ = write!(out, "<td class=\"n\">{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn rejects(out: &mut String, stages: &[StageReport]) {
    out.push_str("<h2>Rejects by reason</h2>\n");
    if stages.iter().all(|stage| stage.rejects.is_empty()) {
        out.push_str("<p>No item was rejected.</p>\n");
        return;
    }
    out.push_str(
        "<div class=\"scroll\"><table>\n<tr><th>stage</th><th>reason</th><th class=\"n\">items</th></tr>\n",
    );
    for stage in stages {
        for reject in &stage.rejects {
            let (stage, reason) = (escape(&stage.name), escape(&reject.reason));
            let count = grouped(reject.count);
            _ = writeln!(out, "<tr><td>{stage}</td><td>{reason}</td><td class=\"n\">{count}</td></tr>");
        }
    }
    out.push_str("</table></div>\n");
}

fn scores(out: &mut String, scores: &[ScoreReport]) {
    if scores.is_empty() {
        return;
    }
    out.push_str("<h2>Scores</h2>\n<p>All scored items, before the threshold dropped any.</p>\n");
    for score in scores {
        let finite: Vec<f64> = score.values.iter().copied().filter(|value| value.is_finite()).collect();
        _ = writeln!(out, "<figure>\n<h3>{}</h3>", escape(&score.name));
        if finite.is_empty() {
            out.push_str("<figcaption>no values</figcaption>\n</figure>\n");
            continue;
        }
        out.push_str(&Histogram::of(&finite).svg(&score.name, score.threshold));
        let reached = score.threshold.map(|least| {
            let reached = finite.iter().filter(|value| **value >= least).count();
            format!("; {reached} of {} reach the threshold {}", finite.len(), number(least))
        });
        let summary = Distribution::of(finite);
        _ = writeln!(
            out,
            "<figcaption>{} values, mean {}, median {}, from {} to {}{}</figcaption>\n</figure>",
            summary.count,
            number(summary.mean),
            number(summary.p50),
            number(summary.min),
            number(summary.max),
            reached.unwrap_or_default()
        );
    }
}

fn exports(out: &mut String, exports: &[ExportReport]) {
    if exports.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Data sets</h2>\n<div class=\"scroll\"><table>\n\
         <tr><th>file</th><th>trainer</th><th class=\"n\">rows</th><th>left out</th></tr>\n",
    );
    for export in exports {
        let (file, trainer) = (escape(&export.file), escape(&export.trainer));
        let rows = grouped(export.rows);
        let left_out = match export.left_out {
            0 => "–".to_owned(),
            count => format!("{}, the first: {}", grouped(count), escape(&export.why)),
        };
        _ = writeln!(
            out,
            "<tr><td>{file}</td><td>{trainer}</td><td class=\"n\">{rows}</td><td>{left_out}</td></tr>"
        );
    }
    out.push_str("</table></div>\n");
}

/// The items of one fate, under their headings.
fn samples(out: &mut String, title: &str, report: &Report, fate: Fate) {
    let mut samples = report.samples.iter().filter(|sample| sample.fate == fate).peekable();
    if samples.peek().is_none() {
        return;
    }
    _ = writeln!(out, "<h2>{title}</h2>");
    if fate != Fate::Kept {
        let ending = if fate == Fate::Short { "short" } else { "rejects" };
        _ = writeln!(out, "<p>Some of each kind. The stage's file <code>.{ending}.jsonl</code> has all.</p>");
    }
    let mut heading = "";
    for sample in samples {
        if heading != sample.heading {
            heading = &sample.heading;
            _ = writeln!(out, "<h3>{}</h3>", escape(heading));
        }
        let fate = match sample.fate {
            Fate::Kept => "kept",
            Fate::Rejected => "rejected",
            Fate::Short => "short",
        };
        _ = writeln!(
            out,
            "<details><summary><span class=\"{fate}\">{fate}</span> <code>{}</code> {}</summary><div>",
            escape(&sample.id),
            escape(&sample.remark)
        );
        for text in &sample.texts {
            _ = writeln!(
                out,
                "<p class=\"label\">{}</p><pre>{}</pre>",
                escape(&text.label),
                escape(&shortened(&text.text))
            );
        }
        out.push_str("</div></details>\n");
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.to_owned(),
        Some((end, _)) => {
            format!("{}\n… {} more characters", &text[..end], text[end..].chars().count())
        }
    }
}
