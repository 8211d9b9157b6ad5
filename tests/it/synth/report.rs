//! The report's page and the table of scores: counts, escaping, histograms, and nothing from elsewhere.

use octant::synth::report::{
    ExportReport, Fate, Histogram, LabelledText, RejectCount, Report, Sample, ScoreReport, StageReport, page,
    score_table, write_report,
};

const HOSTILE: &str =
    "</pre><script>alert('x')</script><img src=\"https://example.org/a.png\" onerror=x>&amp;";

fn reject(reason: &str, count: u64) -> RejectCount {
    RejectCount { reason: reason.to_owned(), count }
}

fn report() -> Report {
    let topics = StageReport {
        name: "topics".to_owned(),
        wanted: Some(50),
        taken: 1,
        made: 37,
        rejects: vec![reject("near duplicate", 9), reject("empty", 4)],
        requests: 5,
        prompt_tokens: 1_234_567,
        completion_tokens: 890,
        seconds: 75.0,
    };
    let prompts = StageReport { name: "prompts".to_owned(), made: 74, taken: 37, ..StageReport::default() };
    let score = ScoreReport {
        name: "helpfulness".to_owned(),
        values: vec![0.5, 1.0, 2.5, 2.9, 3.0, 3.1, 4.0],
        threshold: Some(3.0),
    };
    let text = LabelledText { label: "user".to_owned(), text: HOSTILE.to_owned() };
    let sample = Sample {
        heading: "Pairs".to_owned(),
        id: "pair-1".to_owned(),
        fate: Fate::Rejected,
        remark: "the scores are equal".to_owned(),
        texts: vec![text],
    };
    let export = ExportReport {
        file: "trl_sft.jsonl".to_owned(),
        trainer: "TRL".to_owned(),
        rows: 12,
        left_out: 2,
        why: "turns: <odd>".to_owned(),
    };
    Report {
        title: "Garden <recipe>".to_owned(),
        subtitle: vec!["judge: reward-demo".to_owned()],
        stages: vec![topics, prompts],
        scores: vec![score],
        samples: vec![sample],
        exports: vec![export],
        notes: vec!["2 pairs were decided by ground truth against the scores.".to_owned()],
    }
}

#[test]
fn text_of_models_is_escaped() {
    let html = page(&report());
    assert!(!html.contains("<script") && !html.contains("<img") && html.contains("&lt;script&gt;"));
    assert!(html.contains("&amp;amp;") && html.contains("&#39;x&#39;"));
    assert!(html.contains("<h1>Garden &lt;recipe&gt;</h1>"));
    let mut odd = report();
    odd.samples[0].texts[0].text = "a\u{0}b\u{202e}c\r\nd".to_owned();
    assert!(page(&odd).contains("a\u{fffd}b\u{fffd}c\nd"));
    for field in [&mut odd.stages[0].name, &mut odd.scores[0].name, &mut odd.samples[0].remark] {
        *field = HOSTILE.to_owned();
    }
    odd.stages[0].rejects[0].reason = HOSTILE.to_owned();
    odd.samples[0].heading = HOSTILE.to_owned();
    odd.samples[0].id = HOSTILE.to_owned();
    odd.exports[0].file = HOSTILE.to_owned();
    odd.notes[0] = HOSTILE.to_owned();
    let html = page(&odd);
    assert!(!html.contains("<script") && !html.contains("<img"));
}

#[test]
fn the_page_loads_nothing() {
    let mut plain = report();
    plain.samples.clear();
    let html = page(&plain);
    for outside in ["http://", "https://", "src=", "href=", "@import", "url(", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("default-src 'none'") && html.contains("prefers-color-scheme: dark"));
}

#[test]
fn an_underfilled_target_is_said() {
    let html = page(&report());
    let notice = "<strong>Underfilled:</strong> topics made 37 of 50 wanted items; 13 are missing.";
    assert!(html.contains(notice));
    assert!(!html.contains("prompts made"));
    let mut full = report();
    full.stages[0].made = 50;
    assert!(!page(&full).contains("Underfilled"));
}

#[test]
fn counts_rejects_and_totals_are_shown() {
    let html = page(&report());
    for shown in [
        "<td>topics</td><td class=\"n\">1</td><td class=\"n short\">37</td><td class=\"n\">50</td>",
        "<td>topics</td><td>near duplicate</td><td class=\"n\">9</td>",
        "<strong>1\u{202f}234\u{202f}567</strong><span>prompt tokens</span>",
        "<strong>13</strong><span>rejected items</span>",
        "<strong>1 min 15 s</strong><span>time of all stages</span>",
        "<td>trl_sft.jsonl</td><td>TRL</td><td class=\"n\">12</td><td>2, the first: turns: &lt;odd&gt;</td>",
        "2 pairs were decided by ground truth against the scores.",
        "<span class=\"rejected\">rejected</span> <code>pair-1</code> the scores are equal",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(page(&Report::default()).contains("No item was rejected."));
}

#[test]
fn kept_rejected_and_short_items_have_parts_of_their_own() {
    let mut report = report();
    let sample = |fate, id: &str| Sample { fate, id: id.to_owned(), ..report.samples[0].clone() };
    report.samples =
        vec![sample(Fate::Short, "s-1"), sample(Fate::Rejected, "r-1"), sample(Fate::Kept, "k-1")];
    let html = page(&report);
    let at = |text: &str| html.find(text).unwrap_or_else(|| panic!("{text}"));
    let order =
        ["<h2>Samples", "k-1", "<h2>Rejects by", "<h2>Rejected items", "r-1", "<h2>Short lists", "s-1"];
    assert!(order.map(at).is_sorted());
    report.samples.truncate(1);
    let html = page(&report);
    assert!(!html.contains("<h2>Samples") && !html.contains("<h2>Rejected items"));
}

#[test]
fn a_histogram_counts_every_value_once() {
    let values = [0.0, 0.1, 0.2, 0.3, 0.3, 2.4, f64::NAN, f64::INFINITY];
    let histogram = Histogram::of(&values);
    assert_eq!((histogram.start, histogram.step), (0.0, 0.1));
    assert_eq!(histogram.counts.iter().sum::<usize>(), 6);
    assert_eq!(histogram.counts[..4], [1, 1, 1, 2]);
    assert_eq!(Histogram::of(&[2.0, 2.0]).counts, [2]);
    assert!(Histogram::of(&[f64::NAN]).counts.is_empty());
    let wide = Histogram::of(&[-1e9, 0.0, 1e9]);
    assert!(wide.counts.len() < 30 && wide.start <= -1e9);
}

#[test]
fn bars_below_the_threshold_are_marked() {
    let html = page(&report());
    assert!(html.contains("threshold 3</text>") && html.contains("3 of 7 reach the threshold 3"));
    let svg = html.split("<svg").nth(1).unwrap();
    let bars = |class: &str| svg.matches(&format!("<rect class=\"{class}\"")).count();
    let histogram = Histogram::of(&report().scores[0].values);
    let below = histogram.counts.len() - bars("bar");
    assert_eq!(bars("bar dropped"), below);
    assert!((histogram.start + histogram.step * below as f64 - 3.0).abs() < 1e-9);
}

#[test]
fn a_long_sample_is_cut_and_says_so() {
    let mut long = report();
    long.samples[0].texts[0].text = "é".repeat(4321);
    assert!(page(&long).contains("é\n… 321 more characters"));
}

#[test]
fn the_table_has_a_row_for_each_score() {
    let mut scores = report().scores;
    scores.push(ScoreReport { name: "verbosity".to_owned(), ..ScoreReport::default() });
    let table = score_table(&scores);
    let lines: Vec<&str> = table.lines().collect();
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        cells(lines[0]),
        ["score", "count", "mean", "min", "p10", "p25", "p50", "p75", "p90", "max", "at", "or", "above"]
    );
    assert_eq!(
        cells(lines[1]),
        [
            "helpfulness",
            "7",
            "2.429",
            "0.5",
            "0.8",
            "1.75",
            "2.9",
            "3.05",
            "3.46",
            "4",
            "3:",
            "3",
            "(42.9",
            "%)"
        ]
    );
    assert_eq!(cells(lines[2]), ["verbosity", "0", "no", "values"]);
    assert_eq!(lines[4], "helpfulness");
    assert!(table.contains('█'));
}

#[test]
fn the_same_records_give_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    write_report(&report(), &path).unwrap();
    let first = std::fs::read_to_string(&path).unwrap();
    write_report(&report(), &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
    assert_eq!(first, page(&report()));
    assert!(write_report(&report(), &folder.path().join("missing/report.html")).is_err());
}
