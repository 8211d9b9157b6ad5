//! The tokens and the time that a dry run estimates.

use std::path::Path;

use octant::synth::{RunOptions, Stop, run};
use serde_json::json;

use super::Setup;

/// A recipe whose numbers are small enough to be computed by hand.
const RECIPE: &str = r#"
name = "Estimate"

[roles.prompt_writer]
endpoint = "SERVER"
model = "writer"
tokens_per_second = 10
prompt_tokens_per_second = 100

[roles.user]
endpoint = "SERVER"
model = "user"
tokens_per_second = 5
prompt_tokens_per_second = 50
sampling = { max_tokens = 40 }

[[roles.responders]]
endpoint = "SERVER"
model = "short"
tokens_per_second = 20
prompt_tokens_per_second = 200
sampling = { max_tokens = 200 }

[[roles.responders]]
endpoint = "SERVER"
model = "long"
tokens_per_second = 50
prompt_tokens_per_second = 400

[roles.judge]
endpoint = "SERVER"
model = "judge"
prompt_tokens_per_second = 1000

[topics]
given = ["A", "B"]

[open_questions]
per_topic = 3

[refine]
per_prompt = 2

[select]
most = 10

[dialogues]
turns = 3
most = 4

[responses]
per_responder = 2
two_turn = true

[reward]
weights = { helpfulness = 1.0 }
threshold = 1.0
"#;

fn dry_run(setup: &Setup) -> String {
    setup.run_with("http://127.0.0.1:1", true).said()
}

/// Requests, prompt tokens, completion tokens and seconds of a stage.
fn row<'a>(said: &'a str, stage: &str) -> Vec<&'a str> {
    let line = said.lines().find(|line| line.starts_with(stage)).unwrap_or_else(|| panic!("{said}"));
    line.split_whitespace().skip(1).collect()
}

#[test]
fn tokens_and_seconds_are_those_of_the_rates_of_each_role() {
    let said = dry_run(&Setup::of(RECIPE));
    // Two lists of 3 questions: 2 × 90 and 6 × 60 tokens; 180 / 100 + 360 / 10 s.
    assert_eq!(row(&said, "prompts"), ["2", "180", "360", "38"]);
    // Six prompts of 60 tokens in requests of 90, twice 60 tokens each; 900 / 100 + 720 / 10 s.
    assert_eq!(row(&said, "refined"), ["6", "900", "720", "81"]);
    // Four of ten prompts. The assistant reads 60, 180 and 300 tokens and writes 100 each time: 2,160 / 200 +
    // 1,200 / 20 s. The user reads 90 and 160 or 280, and writes 20 each time: 2,480 / 50 + 160 / 5 s.
    assert_eq!(row(&said, "dialogues"), ["20", "4640", "1360", "152"]);
    // Two answers of each responder to 10 prompts of 60 tokens and 4 of 180, of 100 and of 400 tokens:
    // 2,640 / 200 + 2,800 / 20 + 2,640 / 400 + 11,200 / 50 s.
    assert_eq!(row(&said, "responses"), ["56", "5280", "14000", "384"]);
    // Dialogues up to each answer, 3,360, and what the responders read and wrote, 19,280, by 1,000 a second.
    assert_eq!(row(&said, "rewards"), ["18", "22640", "0", "23"]);
    assert_eq!(row(&said, "total"), ["102", "33640", "16440", "678"]);
    assert!(!said.contains("not estimated"), "{said}");
}

#[test]
fn a_judge_that_is_asked_by_chat_gets_a_request_for_each_score() {
    let mut setup = Setup::of(RECIPE);
    setup.replace("model = \"judge\"", "model = \"judge\"\napi = \"chat\"");
    // 4 × 3 turns and 14 × 4 responses, each answered by one token, which takes no time of its own.
    assert_eq!(row(&dry_run(&setup), "rewards"), ["68", "22640", "68", "23"]);
}

#[test]
fn a_role_without_a_rate_is_named() {
    let mut setup = Setup::of(RECIPE);
    setup.replace("tokens_per_second = 5\n", "");
    setup.replace("prompt_tokens_per_second = 1000\n", "");
    setup.replace("tokens_per_second = 50\nprompt_tokens_per_second = 400\n", "");
    let said = dry_run(&setup);
    let seconds = |stage: &str| row(&said, stage)[3].to_owned();
    let found = ["prompts", "refined", "dialogues", "responses", "rewards", "total"].map(seconds);
    assert_eq!(found, ["38", "81", "unknown", "unknown", "unknown", "unknown"]);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("time: ")).collect();
    let expected = [
        "role `judge` states no prompt_tokens_per_second",
        "role `responders[1]` states no prompt_tokens_per_second and no tokens_per_second",
        "role `user` states no tokens_per_second",
    ];
    assert_eq!(lines, expected.map(|line| format!("time: not estimated, {line}")));
}

#[test]
fn prompts_of_files_have_their_own_length() {
    let recipe = "name = 'Files'\n[given]\nfile = 'given.jsonl'\n[closed_questions]\nfile = 'texts.jsonl'\n\
        per_document = 2\n[roles.prompt_writer]\nendpoint = 'SERVER'\nmodel = 'w'\n[[roles.responders]]\n\
        endpoint = 'SERVER'\nmodel = 'r'\nsampling = { max_tokens = 20 }\n[responses]\nper_responder = 1\n";
    let setup = Setup::of(recipe);
    setup.rows("given.jsonl", &[json!({ "prompt": "x".repeat(40), "note": "y".repeat(4000) })]);
    setup.rows("texts.jsonl", &[json!({ "text": "x".repeat(400) })]);
    let said = dry_run(&setup);
    // The request has the text, and each prompt the text and its question: 2 × (100 + 60) + 10.
    assert_eq!(row(&said, "prompts"), ["1", "190", "120", "unknown"]);
    assert_eq!(row(&said, "responses"), ["3", "330", "30", "unknown"]);
}

#[test]
fn a_stage_that_is_complete_needs_no_rate() {
    let mut setup = Setup::new();
    setup.replace("[roles.judge]", "[roles.judge]\nprompt_tokens_per_second = 100");
    let server = super::ScriptServer::start(super::script::usual);
    setup.run(&server).said();
    let said = setup.run_with(&format!("http://{}", server.address), true).said();
    assert_eq!(row(&said, "responses")[..3], ["20", "200", "100"]);
    assert!(!said.contains("unknown") && !said.contains("not estimated"), "{said}");
}

#[test]
fn the_recipes_of_the_repository_state_their_rates() {
    for name in ["synth.toml", "synth_demo.toml"] {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
        let folder = tempfile::tempdir().unwrap();
        let said = std::sync::Mutex::new(String::new());
        run(&RunOptions {
            recipe: &recipe,
            folder: folder.path(),
            binary: Path::new("octant"),
            restart: false,
            dry_run: true,
            say: &|text| said.lock().unwrap().push_str(text),
            stop: &Stop::default(),
        })
        .unwrap();
        let said = said.into_inner().unwrap();
        assert!(row(&said, "total")[3].parse::<u64>().unwrap() > 0, "{said}");
        assert!(!said.contains("unknown") && !said.contains("not estimated"), "{said}");
    }
}
