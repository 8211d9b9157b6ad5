//! All tables of prompts in one recipe: ids, kinds, documents, requests and lineage.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::script::{Reply, usual};
use super::{ScriptServer, Setup, usual_but};

const RECIPE: &str = r#"
name = "Kinds"
seed = 3

[roles.prompt_writer]
endpoint = "SERVER"
model = "writer"
concurrency = CONCURRENCY

[roles.user]
endpoint = "SERVER"
model = "user"

[[roles.responders]]
endpoint = "SERVER"
model = "weak"

[[roles.responders]]
endpoint = "SERVER"
model = "strong"

[roles.judge]
endpoint = "SERVER"
model = "judge"

[topics]
generate = 1
given = ["Tea"]

[open_questions]
per_topic = 1

[writing]
per_topic = 2
document_types = ["letter", "poem"]

[closed_questions]
file = "documents.jsonl"
field = "body"
per_document = 2

[mathematics]
keywords = ["fractions"]
generate = 1
per_keyword = 1
level = "school"

[coding]
keywords = ["loops"]
generate = 1
per_keyword = 2
level = "hard"
language = "Rust"

[given]
file = "given.jsonl"

[refine]
per_prompt = 2

[dialogues]
turns = 2

[responses]
per_responder = 1
two_turn = true

[reward]
weights = { helpfulness = 1.0 }
threshold = 0.0
"#;

const DOCUMENTS: [&str; 2] = ["Bees dance.\nThey tell the way.", "Salt melts ice."];

fn setup() -> Setup {
    let setup = Setup::of(RECIPE);
    setup.rows("documents.jsonl", &DOCUMENTS.map(|body| json!({ "body": body, "source": "a book" })));
    setup.rows("given.jsonl", &[json!({ "prompt": "Say hello." })]);
    setup
}

/// Questions over the documents that name them; all else as usual.
fn server() -> ScriptServer {
    usual_but(|call| {
        let number =
            DOCUMENTS.iter().position(|text| call.last().starts_with(&format!("Read this text:\n\n{text}")));
        let questions = ["Who", "Why"].map(|word| format!("{word} in {}?", number.unwrap_or_default()));
        (number.is_some() && call.list().is_some()).then(|| Reply::list(&questions))
    })
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("{field}: {record}"))
}

#[test]
fn each_kind_of_prompt_has_its_ids_its_parent_and_its_document() {
    let setup = setup();
    setup.run(&server()).said();
    let prompts = setup.lines("04-prompts.jsonl");
    let expected = [
        ("open_question", "t0", "t0.q0"),
        ("writing", "t0", "t0.w0.0 t0.w0.1 t0.w1.0 t0.w1.1"),
        ("open_question", "t1", "t1.q0"),
        ("writing", "t1", "t1.w0.0 t1.w0.1 t1.w1.0 t1.w1.1"),
        ("mathematics", "m0", "m0.q0"),
        ("coding", "c0", "c0.q0 c0.q1"),
        ("mathematics", "m1", "m1.q0"),
        ("coding", "c1", "c1.q0 c1.q1"),
        ("closed_question", "d0", "d0.q0 d0.q1"),
        ("closed_question", "d1", "d1.q0 d1.q1"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .flat_map(|(kind, parent, ids)| ids.split(' ').map(move |id| (*kind, *parent, id)))
        .collect();
    let found: Vec<_> = prompts
        .iter()
        .map(|prompt| (text(prompt, "kind"), text(prompt, "parent"), text(prompt, "id")))
        .collect();
    assert_eq!(found, expected);
    for prompt in &prompts {
        let is_closed = prompt["kind"] == "closed_question";
        assert_eq!(prompt.get("document"), is_closed.then_some(&prompt["parent"]), "{prompt}");
    }
    // The prompt of a closed question is its text, unchanged, and the question.
    let joined: Vec<&str> =
        prompts[prompts.len() - 4..].iter().map(|prompt| text(prompt, "prompt")).collect();
    let expected = [
        "Bees dance.\nThey tell the way.\n\nWho in 0?",
        "Bees dance.\nThey tell the way.\n\nWhy in 0?",
        "Salt melts ice.\n\nWho in 1?",
        "Salt melts ice.\n\nWhy in 1?",
    ];
    assert_eq!(joined, expected);
    let selected = setup.lines("06-selected.jsonl");
    let given = selected.iter().find(|prompt| prompt["kind"] == "given").unwrap();
    let expected = json!({ "id": "g0", "parent": "given.jsonl:1", "kind": "given", "prompt": "Say hello." });
    assert_eq!(*given, expected);
    let keywords = setup.lines("03-keywords.jsonl");
    let keywords: Vec<_> =
        keywords.iter().map(|keyword| (text(keyword, "id"), text(keyword, "kind"))).collect();
    assert_eq!(keywords, [("m1", "mathematics"), ("c1", "coding")]);
}

#[test]
fn each_kind_of_prompt_is_asked_for_by_its_table() {
    let setup = setup();
    let server = server();
    setup.run(&server).said();
    let calls = server.calls();
    // The number of requests with all of these words, and the length of their lists.
    let asked = |words: &[&str]| -> Vec<Option<usize>> {
        let of_writer = calls.iter().filter(|call| call.body["model"] == "writer");
        of_writer
            .filter(|call| words.iter().all(|word| call.last().contains(word)))
            .map(|call| call.list())
            .collect()
    };
    assert_eq!(asked(&["question that a person could ask", "\"Tea\""]), [Some(1)]);
    assert_eq!(asked(&["of the type \"letter\"", "\"Tea\""]), [Some(2)]);
    assert_eq!(asked(&["of the type \"poem\""]), [Some(2), Some(2)]);
    assert_eq!(asked(&["1 mathematics problem of school difficulty", "\"fractions\""]), [Some(1)]);
    assert_eq!(asked(&["programming exercises of hard difficulty in Rust", "\"loops\""]), [Some(2)]);
    assert_eq!(asked(&["concepts or methods of school mathematics"]), [Some(1)]);
    assert_eq!(asked(&["that hard programming exercises in Rust can be set about"]), [Some(1)]);
    for document in DOCUMENTS {
        assert_eq!(asked(&["Read this text:", document, "from the text alone"]), [Some(2)]);
    }
    // Open questions and writing tasks are refined, the other kinds stay as they are.
    assert_eq!(asked(&["Here is a request to an assistant"]), [Some(2); 10]);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for prompt in setup.lines("05-refined.jsonl") {
        let is_refined = text(&prompt, "id").contains(".r");
        assert_eq!(is_refined, ["open_question", "writing"].contains(&text(&prompt, "kind")), "{prompt}");
        *kinds.entry(text(&prompt, "kind").to_owned()).or_default() += 1;
    }
    let expected = BTreeMap::from([("open_question", 4), ("writing", 16)].map(|(k, n)| (k.to_owned(), n)));
    assert_eq!(kinds, expected);
    // 20 refined prompts, and 11 of the other kinds.
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for prompt in setup.lines("06-selected.jsonl") {
        *kinds.entry(text(&prompt, "kind").to_owned()).or_default() += 1;
    }
    let rest = [("mathematics", 2), ("coding", 4), ("closed_question", 4), ("given", 1)];
    let all = expected.into_iter().chain(rest.map(|(k, n)| (k.to_owned(), n)));
    assert_eq!(kinds, all.collect());
}

#[test]
fn every_id_leads_to_a_topic_a_keyword_a_document_or_a_line_of_a_file() {
    let setup = setup();
    setup.run(&server()).said();
    let roots = ["t0", "m0", "c0", "d0", "d1", "given.jsonl:1"];
    let mut known: BTreeSet<String> = roots.map(str::to_owned).into();
    let stages = [
        "01-topics",
        "03-keywords",
        "04-prompts",
        "05-refined",
        "06-selected",
        "07-dialogues",
        "08-responses",
        "10-filtered",
        "11-pairs",
    ];
    for stage in stages {
        for record in setup.lines(&format!("{stage}.jsonl")) {
            let id = text(&record, "id");
            if let Some(parent) = record["parent"].as_str() {
                assert!(known.contains(parent), "{stage}: {record}");
                assert!(
                    id.starts_with(&format!("{parent}.")) || id == "g0" || stage == "10-filtered",
                    "{id}"
                );
            }
            known.insert(id.to_owned());
        }
    }
    let rated: BTreeSet<String> =
        setup.lines("09-rewards.jsonl").iter().map(|reward| text(reward, "id").to_owned()).collect();
    assert!(rated.is_subset(&known));
    // A closed question's text goes through to the pair.
    let pairs = setup.lines("11-pairs.jsonl");
    let pair = pairs.iter().find(|pair| pair["parent"] == "d1.q0").unwrap();
    assert_eq!(pair["prompt"], json!([{ "role": "user", "content": "Salt melts ice.\n\nWho in 1?" }]));
    assert_eq!(pair["id"], "d1.q0.p");
    let dialogues = setup.lines("07-dialogues.jsonl");
    let dialogue = dialogues.iter().find(|dialogue| dialogue["id"] == "d0.q1.d").unwrap();
    assert_eq!(dialogue["messages"][0]["content"], "Bees dance.\nThey tell the way.\n\nWhy in 0?");
    assert!(known.contains("d0.q1.d.a1.0") && known.contains("t1.w1.1.r1.a0.0") && known.contains("c1.q1.d"));
}

#[test]
fn a_changed_document_and_a_row_without_its_field_are_named() {
    let setup = setup();
    setup.run(&server()).said();
    let changed = json!({ "body": "Salt melts snow." });
    setup.rows("documents.jsonl", &[json!({ "body": DOCUMENTS[0] }), changed]);
    let error = setup.run(&ScriptServer::start(usual)).error();
    let expected = "04-prompts.jsonl: made before topics, templates or a table of prompts changed";
    assert!(error.contains(expected), "{error}");
    setup.rows("documents.jsonl", &[json!({ "body": DOCUMENTS[0] }), json!({ "text": "Salt" })]);
    let error = setup.run(&ScriptServer::start(usual)).error();
    assert!(error.ends_with("documents.jsonl:2: body: expected a text; got the fields text"), "{error}");
}

#[test]
fn a_template_of_the_recipe_joins_a_text_and_its_question() {
    let mut setup = setup();
    setup.replace(
        "[dialogues]",
        "[templates]\nclosed_prompt = \"{{ question }}\\n---\\n{{ document }}\"\n\n[dialogues]",
    );
    setup.run(&server()).said();
    let prompts = setup.lines("04-prompts.jsonl");
    assert_eq!(prompts.last().unwrap()["prompt"], "Why in 1?\n---\nSalt melts ice.");
}
