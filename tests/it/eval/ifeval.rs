//! IFEval: verdicts of lm-eval (`scripts/compare_ifeval.py`), and a server that answers.

use std::path::Path;

use serde_json::{Value, json};

use super::server::ScriptedServer;
use super::{Folder, failure, near, report};

fn row(rule: &str, kwargs: &Value) -> Value {
    json!({ "key": 12, "prompt": "p", "instruction_id_list": [rule], "kwargs": [kwargs], "response": "a, b" })
}

#[test]
fn verdicts_are_those_of_lm_eval() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/eval/ifeval.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let golden: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let folder = Folder::new();
    let file = file.to_string_lossy();
    let (_, json) = report(&["ifeval", &file, "--responses", &file], &folder.output());
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), golden.len());
    for (row, golden) in rows.iter().zip(&golden) {
        assert_eq!(row["key"], golden["key"]);
        assert_eq!(row["follow_instruction_list_strict"], golden["strict"], "{golden}");
        assert_eq!(row["follow_instruction_list_loose"], golden["loose"], "{golden}");
    }
    let rules = json["rules"].as_object().unwrap();
    assert_eq!(rules.len(), 25, "{rules:?}");
}

/// The counts are those of NLTK.
#[test]
fn sentences_end_after_initials_abbreviations_and_numbers_as_in_nltk() {
    let folder = Folder::new();
    let texts = [
        (2, "We sat in row o. Let us go now."),
        (1, "Look at point k. I like it."),
        (1, "Row k. Hartley wrote it."),
        (2, "We met at Smith & Co. Despite that it grew."),
        (1, "Mr. H. C. Lind met J.K. Rowling."),
        (2, "He came on Tues. Despite that it rained."),
        (1, "It began in 1995. Business grew."),
        (2, "It began in 1995. Trade grew."),
    ];
    let rows = texts.map(|(count, text)| {
        let kwargs = [("at least", count), ("less than", count + 1)]
            .map(|(relation, count)| json!({ "num_sentences": count, "relation": relation }));
        let rules = ["length_constraints:number_sentences"; 2];
        json!({ "key": 1, "prompt": text, "instruction_id_list": rules, "kwargs": kwargs, "response": text })
    });
    let file = folder.rows("rows.jsonl", &rows);
    let (_, json) = report(&["ifeval", &file, "--responses", &file], &folder.output());
    for (row, (count, text)) in json["rows"].as_array().unwrap().iter().zip(texts) {
        assert_eq!(row["follow_instruction_list_strict"], json!([true, true]), "{count}: {text}");
    }
}

#[test]
fn answers_of_a_server_are_scored_at_both_levels() {
    let folder = Folder::new();
    let prompt = |key: u32, text: &str, rules: &[&str]| {
        let kwargs = vec![json!({}); rules.len()];
        json!({ "key": key, "prompt": text, "instruction_id_list": rules, "kwargs": kwargs })
    };
    let rows = [
        prompt(1, "\"no comma\"", &["punctuation:no_comma", "startend:quotation"]),
        prompt(2, "Intro\n<<t>>, *x*", &["punctuation:no_comma", "detectable_format:title"]),
        prompt(3, "Sure, yes:\nno comma here", &["punctuation:no_comma"]),
    ];
    let file = folder.rows("rows.jsonl", &rows);
    let server = ScriptedServer::start(|request| {
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!((&request.body["temperature"], &request.body["max_tokens"]), (&json!(0), &json!(99)));
        (200, json!({ "choices": [{ "message": { "content": request.body["messages"][0]["content"] } }] }))
    });
    let args = ["ifeval", &file, "--url", &server.url(), "--max-tokens", "99"];
    let (table, json) = report(&args, &folder.output());
    near(&json["prompt_level_strict_acc"], 1.0 / 3.0);
    near(&json["inst_level_strict_acc"], 3.0 / 5.0);
    // Without its first line the third answer follows, and the second one's first line has no comma.
    near(&json["prompt_level_loose_acc"], 1.0);
    near(&json["inst_level_loose_acc"], 1.0);
    assert!(table.contains("all prompts") && table.contains("startend:quotation"), "{table}");
    // The output has the answers in the form that --responses reads.
    assert_eq!(json["rows"][1]["response"], "Intro\n<<t>>, *x*");
    let server = ScriptedServer::start(|_| (400, json!({ "error": { "message": "too long" } })));
    let error = failure(&["ifeval", &file, "--url", &server.url()]);
    assert!(error.contains("the server has refused all 3 prompts: too long"), "{error}");
}

#[test]
fn an_unknown_rule_and_a_missing_argument_name_key_and_rule() {
    let folder = Folder::new();
    let frequency =
        |frequency: Value| json!({ "keyword": "a", "frequency": frequency, "relation": "at least" });
    for (row, expected) in [
        (
            row("new:rule", &json!({})),
            "key 12, rule `new:rule`: expected one of the 25 rules: keywords:existence",
        ),
        (
            row("keywords:existence", &json!({})),
            "rule `keywords:existence`: keywords: expected an array of texts",
        ),
        (
            row("keywords:existence", &json!({ "keywords": [1] })),
            "keywords: expected an array of texts, got the",
        ),
        (
            row("keywords:existence", &json!({ "keywords": ["("] })),
            "keywords: not usable as a regular expression",
        ),
        (row("keywords:existence", &json!({ "keywords": ["(?a)x"] })), "the group `(?a)` is not supported"),
        (
            row("keywords:frequency", &frequency(json!(-1))),
            "frequency: expected a whole number of at least 0, got",
        ),
        (
            row("keywords:frequency", &frequency(Value::Null)),
            "frequency: expected a whole number of at least 0",
        ),
        (
            row("length_constraints:number_words", &json!({ "num_words": 3, "relation": "at most" })),
            "relation: expected `less than` or `at least`, got the string \"at most\"",
        ),
        (row("language:response_language", &json!({ "language": "xx" })), "language: expected one of en, "),
        (row("punctuation:no_comma", &json!({ "num": 3 })), "expected no arguments, got `num`"),
        (row("punctuation:no_comma", &json!([])), "kwargs: expected an object for each rule"),
        (
            row(
                "length_constraints:nth_paragraph_first_word",
                &json!({ "num_paragraphs": 2, "nth_paragraph": 3, "first_word": "x" }),
            ),
            "nth_paragraph: expected 1 to num_paragraphs (2), got 3",
        ),
    ] {
        let file = folder.rows("bad.jsonl", &[row]);
        let error = failure(&["ifeval", &file, "--responses", &file]);
        assert!(error.contains("bad.jsonl, line 1: ") && error.contains(expected), "{expected}: {error}");
    }
    // Arguments that are empty are no arguments: the data set pads with null.
    let padded = row("punctuation:no_comma", &json!({ "num_words": null, "keywords": [], "relation": "" }));
    let file = folder.rows("padded.jsonl", &[padded]);
    let (_, json) = report(&["ifeval", &file, "--responses", &file], &folder.output());
    near(&json["prompt_level_strict_acc"], 0.0);
}

#[test]
fn what_the_reference_does_at_random_is_decided_and_noted() {
    let folder = Folder::new();
    let letter = json!({ "letter": "#", "let_frequency": 2, "let_relation": "at least" });
    let rows = [
        json!({ "key": 1122, "prompt": "a", "instruction_id_list": ["keywords:letter_frequency"],
                "kwargs": [letter], "response": "# one # two" }),
        json!({ "key": 2, "prompt": "b", "instruction_id_list": ["detectable_format:number_bullet_lists"],
                "kwargs": [{ "num_bullets": 0.0 }], "response": "no list" }),
    ];
    let file = folder.rows("rows.jsonl", &rows);
    let (table, json) = report(&["ifeval", &file, "--responses", &file], &folder.output());
    near(&json["prompt_level_strict_acc"], 1.0);
    assert!(
        table.contains("note: key 1122, rule `keywords:letter_frequency`: the character `#` is"),
        "{table}"
    );
    assert!(table.contains("num_bullets is 0; lm-eval takes a random number"), "{table}");
    // Answers are found by their prompt.
    let other = folder.rows("other.jsonl", &[json!({ "prompt": "a", "response": "x" })]);
    let error = failure(&["ifeval", &file, "--responses", &other]);
    for part in ["line 2: key 2: ", "has no response left for this prompt"] {
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    }
}
