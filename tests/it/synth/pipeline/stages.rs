//! Records and rejects of the stages.

use std::fs;

use serde_json::{Value, json};

use super::script::{Reply, rewards, usual};
use super::{ScriptServer, Setup, usual_but};

fn ids(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["id"].as_str().unwrap()).collect()
}

#[test]
fn ids_lead_from_a_topic_to_a_pair() {
    let setup = Setup::new();
    let said = setup.run(&ScriptServer::start(usual)).said();
    assert_eq!(ids(&setup.lines("01-topics.jsonl")), ["t1", "t2"]);
    assert_eq!(ids(&setup.lines("02-subtopics.jsonl")), ["t0.0", "t1.0", "t2.0"]);
    assert_eq!(ids(&setup.lines("03-keywords.jsonl")), ["m1"]);
    let prompts = setup.lines("04-prompts.jsonl");
    let expected = ["t0.0.q0", "t0.0.q1", "t1.0.q0", "t1.0.q1", "t2.0.q0", "t2.0.q1", "m0.q0", "m1.q0"];
    assert_eq!(ids(&prompts), expected);
    assert_eq!((&prompts[1]["parent"], &prompts[1]["kind"]), (&json!("t0.0"), &json!("open_question")));
    assert_eq!(ids(&setup.lines("05-refined.jsonl"))[0], "t0.0.q0.r0");
    assert_eq!(setup.lines("06-selected.jsonl").len(), 8);
    let dialogues = setup.lines("07-dialogues.jsonl");
    assert_eq!(dialogues.len(), 2);
    let roles: Vec<&str> = dialogues[0]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|turn| turn["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert_eq!(dialogues[0]["model"], "weak");
    // Eight prompts and two openings of dialogues, with two responders each.
    assert_eq!(setup.lines("08-responses.jsonl").len(), 20);
    let scores = setup.lines("09-rewards.jsonl");
    assert_eq!(scores.len(), 22);
    assert_eq!(scores[0]["turns"].as_array().unwrap().len(), 2);
    let pairs = setup.lines("11-pairs.jsonl");
    assert_eq!(pairs.len() + setup.lines("11-pairs.rejects.jsonl").len(), 10);
    for pair in &pairs {
        let parent = pair["parent"].as_str().unwrap();
        assert!(pair["chosen_id"].as_str().unwrap().starts_with(parent));
        assert!(pair["chosen_score"].as_f64() > pair["rejected_score"].as_f64());
    }
    // The distribution is printed before the threshold drops anything.
    let (table, filtered) = (said.find("at or above").unwrap(), said.find("filtered: ").unwrap());
    assert!(table < filtered, "{said}");
    assert!(said.contains("responses: 20 of 20 from 20 items; 20 requests, 200 prompt and 100 completion"));
    let report = fs::read_to_string(setup.path().join("out/report.html")).unwrap();
    assert!(report.contains("<title>Test: synthetic data</title>"));
    assert_eq!(setup.lines("exports/trl_preference.jsonl").len(), pairs.len());
}

#[test]
fn files_do_not_depend_on_concurrency() {
    let setup = Setup::new();
    setup.run(&ScriptServer::start(usual)).said();
    let mut wide = Setup::new();
    wide.concurrency = 8;
    wide.run(&ScriptServer::start(usual)).said();
    assert_eq!(setup.files(), wide.files());
}

#[test]
fn a_short_list_is_used_and_said() {
    let setup = Setup::new();
    // The list of topics is cut within its second item; prompts have one item, twice.
    let server = usual_but(|call| match call.list() {
        Some(_) if call.last().contains("broad subjects") => {
            Some(Reply::finished("{\"items\": [\"Tides\", \"Moo", "length"))
        }
        Some(2) => Some(Reply::text("```json\n{\"items\": [\"Why?\", \"Why?\"]}\n```")),
        _ => None,
    });
    let said = setup.run(&server).said();
    assert!(said.contains("topics: 1 of 2 from 1 items; lists were 1 short"), "{said}");
    assert_eq!(setup.lines("01-topics.jsonl")[0]["topic"], "Tides");
    assert_eq!(setup.reasons("04-prompts").get("repeated item"), Some(&2));
    let report = fs::read_to_string(setup.path().join("out/report.html")).unwrap();
    assert!(report.contains("Lists were 3 items shorter than asked for"));
    let short = setup.lines("01-topics.short.jsonl");
    let expected = json!({ "id": "topics", "wanted": 2, "made": 1, "raw": "{\"items\": [\"Tides\", \"Moo" });
    assert_eq!(short, [expected]);
    let part = report.split("<h2>Short lists</h2>").nth(1).unwrap();
    assert!(part.contains("topics (1 of 1)") && part.contains("<code>topics</code> 1 of 2 items"), "{part}");
    assert!(part.contains("[&quot;Tides&quot;, &quot;Moo"), "{part}");
}

#[test]
fn a_limited_number_of_prompts_is_chosen_evenly_and_by_the_seed() {
    let selected = |most: usize, seed: usize| {
        let mut setup = Setup::new();
        setup.replace("seed = 7", &format!("seed = {seed}"));
        setup.replace("per_topic = 2", "per_topic = 20");
        setup.replace("[dialogues]", &format!("[select]\nmost = {most}\n\n[dialogues]"));
        setup.run(&ScriptServer::start(usual)).said();
        let reasons = setup.reasons("06-selected");
        assert_eq!(reasons.get("more than select.most"), Some(&(62 - most)));
        let mut before = setup.lines("04-prompts.jsonl");
        before.extend(setup.lines("05-refined.jsonl"));
        for reject in setup.lines("06-selected.rejects.jsonl") {
            let prompt = before.iter().find(|prompt| prompt["id"] == reject["id"]).unwrap();
            assert_eq!(reject["raw"], prompt["prompt"]);
        }
        let lines = setup.lines("06-selected.jsonl");
        lines.iter().map(|prompt| prompt["id"].as_str().unwrap().to_owned()).collect::<Vec<String>>()
    };
    let chosen = selected(8, 7);
    // Both kinds have their turns; the two problems are all there are. Then three topics take turns.
    let of = |start: &str| chosen.iter().filter(|id| id.starts_with(start)).count();
    assert_eq!(["m", "t0.", "t1.", "t2."].map(of), [2, 2, 2, 2], "{chosen:?}");
    assert!(chosen.iter().any(|id| !id.contains(".q0.")), "{chosen:?}");
    assert_eq!(selected(8, 7), chosen);
    // One prompt more keeps the others, and another seed chooses others.
    let more = selected(9, 7);
    assert!(more.len() == 9 && chosen.iter().all(|id| more.contains(id)), "{more:?}");
    assert_ne!(selected(8, 8), chosen);
}

#[test]
fn a_reject_has_its_reason_and_the_raw_text() {
    let setup = Setup::new();
    let server = usual_but(|call| {
        let is_strong = call.body["model"] == "strong";
        match call.number {
            _ if call.last().contains("\"Given\"") => Some(Reply::text("I cannot list that.")),
            _ if is_strong && call.number % 3 == 0 => Some(Reply::finished("cut of", "length")),
            _ if is_strong && call.number % 3 == 1 => Some(Reply::error(400, "too long")),
            _ => None,
        }
    });
    setup.run(&server).said();
    let rejects = setup.lines("02-subtopics.rejects.jsonl");
    assert_eq!((&rejects[0]["id"], &rejects[0]["reason"]), (&json!("t0"), &json!("no list")));
    assert_eq!(rejects[0]["raw"], "I cannot list that.");
    let reasons = setup.reasons("08-responses");
    assert!(reasons["unfinished answer"] > 0 && reasons["refused by the server"] > 0, "{reasons:?}");
    for reject in setup.lines("08-responses.rejects.jsonl") {
        match reject["reason"].as_str().unwrap() {
            "unfinished answer" => assert_eq!(reject["raw"], "cut of"),
            _ => assert_eq!(reject["detail"], "status 400: too long"),
        }
    }
    let report = fs::read_to_string(setup.path().join("out/report.html")).unwrap();
    let part = report.split("<h2>Rejected items</h2>").nth(1).unwrap();
    assert!(part.contains("subtopics: no list (1 of 1)"), "{part}");
    assert!(part.contains("<pre>I cannot list that.</pre>") && part.contains("<pre>cut of</pre>"));
    assert!(part.contains("status 400: too long"));
}

#[test]
fn a_stage_that_makes_nothing_keeps_the_answers() {
    let setup = Setup::new();
    let refusing = usual_but(|call| call.list().map(|_| Reply::text("I will not.")));
    let error = setup.run(&refusing).error();
    assert!(
        error.contains("topics: nothing was made of 1 items; no list: expected a JSON object"),
        "{error}"
    );
    assert!(error.contains("01-topics.rejects.jsonl"), "{error}");
    assert_eq!(setup.lines("01-topics.rejects.jsonl")[0]["raw"], "I will not.");
    setup.run(&ScriptServer::start(usual)).said();
    assert!(setup.lines("01-topics.rejects.jsonl").is_empty());
}

#[test]
fn equal_scores_make_no_pair() {
    let setup = Setup::new();
    let server = usual_but(|call| {
        let body = (call.path == "/v1/reward").then(|| rewards(call, &|_| 2.0))?;
        Some(Reply { status: 200, retry_after: None, body })
    });
    let said = setup.run(&server).said();
    assert!(setup.lines("11-pairs.jsonl").is_empty());
    assert_eq!(setup.reasons("11-pairs").get("the scores are equal"), Some(&10));
    assert!(said.contains("pairs: 0 from 10 items; 10 rejected: the scores are equal"), "{said}");
    // 2 - 0.5 reaches the threshold.
    assert_eq!(setup.lines("10-filtered.jsonl").len(), 12);
    assert_eq!(setup.lines("10-filtered.jsonl")[0]["score"], 1.5);
    let report = fs::read_to_string(setup.path().join("out/report.html")).unwrap();
    let part = report.split("pairs: the scores are equal (3 of 10)").nth(1).unwrap();
    assert!(part.contains(".a0.0, score 1.500") && part.contains(".a1.0, score 1.500"), "{part}");
}

#[test]
fn a_response_that_the_judge_refuses_does_not_take_the_others_with_it() {
    let setup = Setup::new();
    let server = usual_but(|call| {
        let is_long = call.body.to_string().contains("Too long.");
        match call.path.as_str() {
            "/v1/reward" if is_long => Some(Reply::error(400, "messages: too many tokens")),
            "/v1/reward" => None,
            _ if call.body["model"] == "strong" && call.number % 4 == 0 => Some(Reply::text("Too long.")),
            _ => None,
        }
    });
    setup.run(&server).said();
    let long = setup.lines("08-responses.jsonl").iter().filter(|r| r["response"] == "Too long.").count();
    assert!(long > 0);
    let rejects = setup.lines("09-rewards.rejects.jsonl");
    assert_eq!((rejects.len(), setup.lines("09-rewards.jsonl").len()), (long, 22 - long));
    for reject in &rejects {
        let raw: Value = serde_json::from_str(reject["raw"].as_str().unwrap()).unwrap();
        let turns = raw["messages"].as_array().unwrap();
        assert!(turns.len() > 1 && turns.last().unwrap()["content"] == "Too long.", "{raw}");
        assert_eq!(raw["reply"], json!({ "error": { "message": "messages: too many tokens" } }).to_string());
    }
    assert!(rejects[0]["detail"].as_str().unwrap().contains("messages: too many tokens"));
}

#[test]
fn duplicates_and_texts_of_test_sets_are_rejected_with_their_source() {
    let mut setup = Setup::new();
    setup.replace(
        "[dialogues]",
        "[select]\ndedup = {}\ndecontaminate = { files = [\"test.txt\"] }\n\n[dialogues]",
    );
    let test = "What is the sum of all the numbers from one to one hundred inclusive";
    fs::write(setup.path().join("test.txt"), format!("{test}\n")).unwrap();
    let item = format!("Now: {test}?");
    let server = usual_but(move |call| match call.last() {
        text if text.contains("so that it is more specific") => {
            Some(Reply::list(&["Why do tides rise?".to_owned()]))
        }
        text if text.contains("\"fractions\"") => Some(Reply::list(std::slice::from_ref(&item))),
        _ => None,
    });
    setup.run(&server).said();
    let reasons = setup.reasons("06-selected");
    assert_eq!((reasons["duplicate"], reasons["shares words with a test set"]), (5, 1));
    let rejects = setup.lines("06-selected.rejects.jsonl");
    let shared = rejects.iter().find(|r| r["id"] == "m0.q0").unwrap();
    assert!(shared["detail"].as_str().unwrap().starts_with("test.txt:1: what is the sum of"));
    assert_eq!(shared["raw"], format!("Now: {test}?"));
    let duplicates = rejects.iter().filter(|reject| reject["reason"] == "duplicate");
    assert!(duplicates.map(|reject| &reject["raw"]).all(|raw| raw == "Why do tides rise?"));
}

#[test]
fn ground_truth_decides_where_an_answer_is_known() {
    let recipe = "name = 'Sums'\nanswers = { kind = 'number' }\n[given]\nfile = 'sums.jsonl'\n\
        answer_field = 'answer'\n[[roles.responders]]\nendpoint = 'SERVER'\nmodel = 'm'\n\
        concurrency = CONCURRENCY\n[responses]\nper_responder = 3\n";
    let setup = Setup::of(recipe);
    fs::write(
        setup.path().join("sums.jsonl"),
        "{\"prompt\": \"2 + 2\", \"answer\": 4}\n{\"prompt\": \"800 + 400\", \"answer\": \"#### 1,200\"}\n",
    )
    .unwrap();
    let server = usual_but(|call| {
        let right = call.last() == "800 + 400" && call.number % 3 == 1;
        Some(Reply::text(if right { "It is 1200.0, surely" } else { "It is 5." }))
    });
    setup.run(&server).said();
    let correct: Vec<Value> =
        setup.lines("08-responses.jsonl").iter().map(|response| response["correct"].clone()).collect();
    assert_eq!(correct.iter().filter(|correct| **correct == json!(true)).count(), 1);
    let pairs = setup.lines("11-pairs.jsonl");
    assert_eq!((pairs.len(), &pairs[0]["decided_by"]), (1, &json!("ground_truth")));
    assert_eq!(setup.reasons("11-pairs").get("every response is wrong"), Some(&1));
    let rejects = setup.lines("10-filtered.rejects.jsonl");
    let raw = json!(vec!["It is 5."; 3]).to_string();
    assert_eq!(rejects, [json!({ "id": "g0", "reason": "every response is wrong", "raw": raw })]);
}

#[test]
fn the_judge_can_be_a_chat_endpoint() {
    let mut setup = Setup::new();
    setup.replace("model = \"judge\"", "model = \"judge\"\napi = \"chat\"");
    let server = usual_but(|call| {
        (call.body["model"] == "judge").then(|| {
            assert_eq!(call.body["messages"].as_array().unwrap().last().unwrap()["role"], "assistant");
            Reply::text(&format!("helpfulness:{},verbosity:1.0", call.number % 4))
        })
    });
    setup.run(&server).said();
    let scores = setup.lines("09-rewards.jsonl");
    assert_eq!((scores.len(), scores[0]["turns"].as_array().unwrap().len()), (22, 2));
    assert_eq!(scores[0]["turns"][0]["verbosity"], 1.0);
}

#[test]
fn thanks_are_cut_from_the_user() {
    let setup = Setup::new();
    let server = usual_but(|call| {
        (call.body["model"] == "user").then(|| Reply::text("Thank you so much! Why is that?"))
    });
    setup.run(&server).said();
    assert_eq!(setup.lines("07-dialogues.jsonl")[0]["messages"][2]["content"], "Why is that?");
}
