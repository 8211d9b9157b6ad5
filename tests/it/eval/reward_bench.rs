//! RewardBench: the score of an answer is the number that its text has.

use serde_json::{Value, json};

use super::server::{ScriptedRequest, ScriptedServer};
use super::{Folder, failure, near, report};

/// The number in each answer; an answer without one is refused.
fn answer(request: &ScriptedRequest) -> (u16, Value) {
    assert_eq!(request.path, "/v1/reward");
    let answers = request.body["answers"].as_array().unwrap();
    let scores = answers.iter().map(|answer| answer.as_str().unwrap().parse::<f64>());
    let Ok(scores) = scores.collect::<Result<Vec<_>, _>>() else {
        return (400, json!({ "error": { "message": "the conversation is too long" } }));
    };
    let data = scores.iter().enumerate().map(|(index, score)| json!({ "index": index, "score": score }));
    // The order of the data is not that of the answers.
    (200, json!({ "data": data.rev().collect::<Vec<_>>() }))
}

fn pair(subset: &str, chosen: &str, rejected: &str) -> Value {
    json!({ "prompt": "p", "chosen": chosen, "rejected": rejected, "subset": subset, "id": 1 })
}

fn several(subset: &str, id: &str, chosen: &[&str], rejected: &[&str]) -> Value {
    json!({ "prompt": "p", "chosen": chosen, "rejected": rejected, "subset": subset, "id": id })
}

#[test]
fn sections_are_weighted_means_and_a_tie_is_wrong() {
    let folder = Folder::new();
    let file = folder.rows(
        "rows.jsonl",
        &[
            pair("alpacaeval-easy", "2", "1"),
            pair("alpacaeval-easy", "1", "1"),
            pair("mt-bench-med", "-1", "-2"),
            pair("llmbar-natural", "0.5", "1"),
            pair("donotanswer", "1", "0"),
            pair("math-prm", "3", "1"),
            pair("hep-rust", "0", "1"),
            pair("shp", "1", "0"),
            pair("summarize", "0", "1"),
        ],
    );
    let server = ScriptedServer::start(answer);
    let (table, json) = report(&["rewardbench", &file, "--url", &server.url()], &folder.output());
    let chat = (0.5 * 100.0 + 1.0 * 40.0) / 140.0;
    let reasoning = 984.0 / (984.0 + 164.0);
    let mean = (chat + 0.0 + 1.0 + reasoning) / 4.0;
    near(&json["sections"]["Chat"], chat);
    near(&json["sections"]["Chat Hard"], 0.0);
    near(&json["sections"]["Reasoning"], reasoning);
    near(&json["mean"], mean);
    near(&json["mean_with_prior_sets"], (mean * 8.0 + 0.5) / 9.0);
    let missing = json["missing_subsets"].as_array().unwrap();
    assert!(missing.contains(&json!("hep-cpp")) && !missing.contains(&json!("math-prm")), "{missing:?}");
    assert_eq!(json["missing_prior_sets"], json!(["anthropic_helpful", "anthropic_hhh"]));
    assert!(table.contains("not in the file, skipped: alpacaeval-length"), "{table}");
    assert_eq!(json["rows"][1]["chosen"], json!([1.0]));
    // Without prior sets there is one mean.
    let file = folder.rows("some.jsonl", &[pair("alpacaeval-easy", "2", "1")]);
    let (table, json) = report(&["rewardbench", &file, "--url", &server.url()], &folder.output());
    assert_eq!((&json["mean"], &json["mean_with_prior_sets"]), (&json!(1.0), &Value::Null));
    assert!(!table.contains("prior"), "{table}");
}

#[test]
fn a_refused_row_is_wrong_and_named_and_other_rows_count() {
    let folder = Folder::new();
    let rows = [pair("shp", "2", "1"), pair("shp", "long", "1")];
    let file = folder.rows("rows.jsonl", &rows);
    let server = ScriptedServer::start(answer);
    let (table, json) = report(&["rewardbench", &file, "--url", &server.url()], &folder.output());
    near(&json["sections"]["Prior Sets"], 0.5);
    assert_eq!(json["refused"][0]["line"], 2);
    assert!(table.contains("line 2: the conversation is too long (HTTP 400)"), "{table}");
    let file = folder.rows("rows.jsonl", &rows[1..]);
    let error = failure(&["rewardbench", &file, "--url", &server.url()]);
    assert!(error.contains("the server has refused all 1 rows: the conversation is too long"), "{error}");
}

#[test]
fn version_2_shares_credit_and_ties_have_a_score_of_their_own() {
    let folder = Folder::new();
    let file = folder.rows(
        "rows.jsonl",
        &[
            several("Math", "1", &["3"], &["1", "2", "0"]),
            several("Math", "2", &["3"], &["3", "2", "3"]),
            several("Math", "3", &["3"], &["4", "2", "0"]),
            several("Ties", "ref:1", &["5"], &["1", "2"]),
            several("Ties", "tied:1", &["6", "5", "4"], &["1", "0"]),
            several("Ties", "ref:2", &["1"], &["2"]),
            several("Ties", "tied:2", &["3", "2"], &["1.5"]),
            // With one correct answer there is no spread to compare with.
            several("Ties", "ref:3", &["2"], &["1"]),
            several("Ties", "tied:3", &["2"], &["1"]),
        ],
    );
    let server = ScriptedServer::start(answer);
    let (_, json) = report(&["rewardbench", &file, "--url", &server.url()], &folder.output());
    let math = (1.0 + 1.0 / 3.0) / 3.0;
    // Margins: ref 3 and -1, tied 3 and 0.5; spreads 2 and 1.
    let closeness = (0.5_f64.tanh() + (-2.0_f64).tanh()) / 2.0;
    let ties = 0.3 * 1.0 + 0.3 * (2.0 / 3.0) + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * closeness;
    near(&json["subsets"]["Math"]["score"], math);
    near(&json["subsets"]["Ties"]["score"], ties);
    near(&json["mean"], (math + ties) / 2.0);
    assert_eq!(json["missing_subsets"], json!(["Factuality", "Focus", "Precise IF", "Safety"]));
}

#[test]
fn weights_are_sent_and_rows_that_do_not_fit_are_named() {
    let folder = Folder::new();
    let file = folder.rows("rows.jsonl", &[pair("shp", "2", "1")]);
    let server = ScriptedServer::start(|request| {
        assert_eq!(request.body["weights"], json!({ "helpfulness": 1.5 }));
        assert_eq!(request.body["model"], "scripted");
        assert_eq!(request.body["prompt"], json!([{ "role": "user", "content": "p" }]));
        answer(request)
    });
    let weights = r#"{"helpfulness": 1.5}"#;
    report(&["rewardbench", &file, "--url", &server.url(), "--weights", weights], &folder.output());
    for (row, expected) in [
        (json!({ "prompt": "p", "chosen": "1", "rejected": "0" }), "subset: expected a string, got no such"),
        (pair("other", "1", "0"), "subset: expected one of alpacaeval-easy, "),
        (
            json!({ "prompt": 1, "chosen": "1", "rejected": "0", "subset": "shp" }),
            "prompt: expected a string, or",
        ),
        (
            json!({ "prompt": "p", "chosen": 1, "rejected": "0", "subset": "shp" }),
            "chosen: expected a string (Re",
        ),
        (several("Math", "1", &["1", "2"], &["0"]), "chosen: expected one answer in the subset Math, got 2"),
        (several("Math", "1", &["1"], &[]), "rejected: expected at least one answer, got none"),
        (several("shp", "1", &["1"], &["0"]), "subset: expected one of Factuality, "),
    ] {
        let file = folder.rows("bad.jsonl", &[row]);
        let error = failure(&["rewardbench", &file, "--url", &server.url()]);
        assert!(error.contains("bad.jsonl, line 1: ") && error.contains(expected), "{error}");
    }
    let server = ScriptedServer::start(answer);
    let file = folder.rows("bad.jsonl", &[several("Ties", "7", &["1"], &["0"])]);
    let error = failure(&["rewardbench", &file, "--url", &server.url()]);
    assert!(error.contains("id: expected `ref:N` or `tied:N` in the subset Ties, got \"7\""), "{error}");
}
