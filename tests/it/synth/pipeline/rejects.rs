//! The raw text of each kind of reject: whole, with the turns before it.

use std::fs;

use serde_json::{Value, json};

use super::script::{Call, Reply, rewards};
use super::{ScriptServer, Setup, usual_but};

/// Dialogues of two turns that begin with the prompts of a file, and a response to each prompt.
const RECIPE: &str = "name = 'Rejects'
[given]
file = 'given.jsonl'
[roles.user]
endpoint = 'SERVER'
model = 'user'
concurrency = CONCURRENCY
[[roles.responders]]
endpoint = 'SERVER'
model = 'assistant'
concurrency = CONCURRENCY
";

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// A text that is longer than a message shows.
fn long() -> String {
    "A long explanation. ".repeat(50)
}

/// A text that is longer than what is kept of a reply.
fn huge() -> String {
    "é".repeat(40 << 10)
}

/// A reply without a text of the assistant.
fn without_content() -> Reply {
    let mut reply = Reply::text("");
    let message = json!({ "role": "assistant", "content": null, "refusal": long() });
    reply.body["choices"][0]["message"] = message;
    reply
}

fn rejects_of(setup: &Setup, stage: &str) -> Vec<Value> {
    setup.lines(&format!("{stage}.rejects.jsonl"))
}

fn raw(reject: &Value) -> &str {
    reject["raw"].as_str().unwrap_or_else(|| panic!("{reject}"))
}

/// The reply to a request of a dialogue, by the prompt that the dialogue begins with.
fn in_dialogue(call: &Call) -> Reply {
    let messages = call.body["messages"].as_array().unwrap();
    let is_user = call.body["model"] == "user";
    let is_second = messages.len() == 3;
    let is = |case: &str| messages[0]["content"].as_str().unwrap().contains(case);
    match () {
        () if is_user && is("case thanks") => Reply::text("Thank you so much!"),
        () if is_user && is("case user refused") => Reply::error(422, &long()),
        () if is_user => Reply::text("And then?"),
        () if is_second && is("case empty") => Reply::text(" \n "),
        () if is_second && is("case cut") => Reply::finished("It is beca", "length"),
        () if is_second && is("case refused") => Reply::error(400, &long()),
        () if is_second && is("case silent") => without_content(),
        () => Reply::text("It is so."),
    }
}

#[test]
fn a_rejected_dialogue_keeps_its_turns_and_the_reply_that_ended_it() {
    let setup = Setup::of(&format!("{RECIPE}[dialogues]\nturns = 2\n"));
    let cases = ["empty", "cut", "thanks", "refused", "user refused", "silent", "good"];
    setup.rows("given.jsonl", &cases.map(|case| json!({ "prompt": format!("case {case}") })));
    setup.run(&ScriptServer::start(in_dialogue)).said();
    let refusal = json!({ "error": { "message": long() } }).to_string();
    let silence = without_content().body.to_string();
    // The reason, the number of turns before the reply, and the reply.
    let expected = [
        ("empty answer", 3, " \n "),
        ("unfinished answer", 3, "It is beca"),
        ("empty turn of the user", 2, "Thank you so much!"),
        ("refused by the server", 3, &refusal),
        ("refused by the server", 2, &refusal),
        ("refused by the server", 3, &silence),
    ];
    let rejects = rejects_of(&setup, "07-dialogues");
    assert_eq!(rejects.len(), expected.len());
    for (number, (reject, (reason, count, reply))) in rejects.iter().zip(expected).enumerate() {
        assert_eq!(reject["id"], format!("g{number}.d"));
        assert_eq!(reject["reason"], reason);
        let prompt = format!("case {}", cases[number]);
        let turns = [turn("user", &prompt), turn("assistant", "It is so."), turn("user", "And then?")];
        assert_eq!(raw(reject), json!({ "messages": turns[..count], "reply": reply }).to_string());
    }
    assert!(rejects[3]["detail"].as_str().unwrap().len() < raw(&rejects[3]).len() - 500);
    assert_eq!(setup.lines("07-dialogues.jsonl").len(), 1);
    // The report shows the turns one by one.
    let report = fs::read_to_string(setup.path().join("out/report.html")).unwrap();
    let part = report.split("dialogues: empty turn of the user (1 of 1)").nth(1).unwrap();
    for text in ["case thanks", "It is so.", "Thank you so much!"] {
        assert!(part.contains(&format!("<pre>{text}</pre>")), "{text}");
    }
}

#[test]
fn a_refused_response_keeps_its_prompt_and_the_reply() {
    let setup = Setup::of(&format!("{RECIPE}[responses]\nper_responder = 1\n"));
    let cases = ["refused", "silent", "page", "empty", "cut", "huge", "good"];
    setup.rows("given.jsonl", &cases.map(|case| json!({ "prompt": case })));
    let server = ScriptServer::start(|call| match call.last() {
        "refused" => Reply::error(400, &long()),
        "silent" => without_content(),
        "page" => Reply { body: json!(long()), ..Reply::error(413, "") },
        "empty" => Reply::text("\n"),
        "cut" => Reply::finished("Because of", "length"),
        "huge" => Reply { body: json!(huge()), ..Reply::error(400, "") },
        _ => Reply::text("Because."),
    });
    setup.run(&server).said();
    let refusal = json!({ "error": { "message": long() } }).to_string();
    let refused =
        |prompt: &str, reply: &str| json!({ "messages": [turn("user", prompt)], "reply": reply }).to_string();
    let expected = [
        ("g0.a0.0", "refused by the server", refused("refused", &refusal)),
        ("g1.a0.0", "refused by the server", refused("silent", &without_content().body.to_string())),
        ("g2.a0.0", "refused by the server", refused("page", &json!(long()).to_string())),
        ("g3.a0.0", "empty answer", "\n".to_owned()),
        ("g4.a0.0", "unfinished answer", "Because of".to_owned()),
        // The start of 64 KiB, without a part of a character. One quotation mark is before it, one after it.
        ("g5.a0.0", "refused by the server", {
            let start = &huge()[..(64 << 10) - 2];
            refused("huge", &format!("\"{start} … ({} more bytes)", huge().len() + 1 - start.len()))
        }),
    ];
    let rejects = rejects_of(&setup, "08-responses");
    let found: Vec<_> = rejects
        .iter()
        .map(|reject| (reject["id"].as_str().unwrap(), reject["reason"].as_str().unwrap(), raw(reject)))
        .collect();
    let expected: Vec<_> = expected.iter().map(|(id, reason, raw)| (*id, *reason, raw.as_str())).collect();
    assert_eq!(found, expected);
    // Without a judge and without known answers, no response is known to be good.
    let filtered = rejects_of(&setup, "10-filtered");
    let expected = json!({ "id": "g6", "reason": "neither a score nor a known answer",
                           "raw": json!(["Because."]).to_string() });
    assert_eq!(filtered, [expected]);
}

#[test]
fn a_rejected_list_and_its_items_keep_their_texts() {
    let mut setup = Setup::new();
    setup.replace("given = [\"Given\"]", "given = [\"Stars\", \"Salt\", \"Sails\"]");
    setup.replace("subtopics = 1", "subtopics = 2");
    let items = json!({ "items": ["Deep sky", " ", "Deep sky ", "Dust", "Dwarfs"] }).to_string();
    let server = usual_but(move |call| match call.last() {
        text if text.contains("within \"Stars\"") => Some(Reply::text(&items)),
        text if text.contains("within \"Salt\"") => Some(Reply::error(400, &long())),
        text if text.contains("within \"Sails\"") => Some(Reply::text(&long())),
        _ => None,
    });
    setup.run(&server).said();
    let rejects = rejects_of(&setup, "02-subtopics");
    let found: Vec<_> = rejects
        .iter()
        .map(|reject| (reject["id"].as_str().unwrap(), reject["reason"].as_str().unwrap()))
        .collect();
    let expected = [
        ("t0", "empty item"),
        ("t0", "repeated item"),
        ("t0", "surplus item"),
        ("t1", "refused by the server"),
        ("t2", "no list"),
    ];
    assert_eq!(found, expected);
    assert_eq!([0, 1, 2].map(|number| raw(&rejects[number])), [" ", "Deep sky ", "Dwarfs"]);
    assert_eq!(raw(&rejects[4]), long());
    let refused: Value = serde_json::from_str(raw(&rejects[3])).unwrap();
    let request = server.calls().into_iter().find(|call| call.last().contains("within \"Salt\"")).unwrap();
    assert_eq!(refused["messages"], request.body["messages"]);
    assert_eq!(refused["reply"], json!({ "error": { "message": long() } }).to_string());
}

#[test]
fn a_conversation_without_a_score_keeps_its_turns() {
    let mut setup = Setup::new();
    setup.replace("model = \"judge\"", "model = \"judge\"\napi = \"chat\"");
    let server = usual_but(|call| {
        if call.body["model"] != "judge" {
            return None;
        }
        Some(match call.body["messages"].as_array().unwrap().len() {
            2 => Reply::text("helpfulness:nan,verbosity:1.0"),
            _ => without_content(),
        })
    });
    let error = setup.run(&server).error();
    assert!(error.starts_with("rewards: nothing was made of"), "{error}");
    let rejects = rejects_of(&setup, "09-rewards");
    assert_eq!(rejects.len(), 22);
    let dialogues = setup.lines("07-dialogues.jsonl");
    for reject in &rejects {
        let ended: Value = serde_json::from_str(raw(reject)).unwrap();
        let turns = ended["messages"].as_array().unwrap();
        assert_eq!(reject["reason"], "refused by the server");
        match turns.len() {
            // The fault of a response's score.
            2 => assert!(ended["reply"].as_str().unwrap().contains("\"helpfulness\": NaN"), "{ended}"),
            _ => assert_eq!(ended["reply"], without_content().body.to_string()),
        }
    }
    let whole: Value = serde_json::from_str(raw(&rejects[0])).unwrap();
    assert_eq!(whole["messages"], dialogues[0]["messages"]);
}

#[test]
fn what_the_threshold_drops_keeps_its_text() {
    let setup = Setup::new();
    let server = usual_but(|call| {
        let body = (call.path == "/v1/reward").then(|| rewards(call, &|_| 0.0))?;
        Some(Reply { status: 200, retry_after: None, body })
    });
    setup.run(&server).said();
    let rejects = rejects_of(&setup, "10-filtered");
    assert_eq!(rejects.len(), 12);
    let dialogue = &setup.lines("07-dialogues.jsonl")[0];
    assert_eq!(rejects[0]["id"], dialogue["id"]);
    assert_eq!(rejects[0]["detail"], "-0.5 is below 1");
    assert_eq!(rejects[0]["raw"], dialogue["messages"][3]["content"]);
    let responses = setup.lines("08-responses.jsonl");
    for reject in &rejects[2..] {
        let response = responses.iter().find(|response| response["id"] == reject["id"]).unwrap();
        assert_eq!(reject["raw"], response["response"]);
    }
}

#[test]
fn a_prompt_without_scores_keeps_its_responses() {
    let judge = "[roles.judge]\nendpoint = 'SERVER'\nmodel = 'judge'\n[responses]\nper_responder = 2\n\
        [reward]\nweights = { helpfulness = 1.0 }\nthreshold = 1.0\n";
    let setup = Setup::of(&format!("{RECIPE}{judge}"));
    setup.rows("given.jsonl", &["An odd one.", "A plain one."].map(|text| json!({ "prompt": text })));
    let server = usual_but(|call| {
        let is_odd = call.path == "/v1/reward" && call.body.to_string().contains("An odd one.");
        is_odd.then(|| Reply::error(400, "no odd ones"))
    });
    setup.run(&server).said();
    let responses = setup.lines("08-responses.jsonl");
    let odd: Vec<&Value> = responses.iter().filter(|response| response["parent"] == "g0").collect();
    let texts: Vec<&Value> = odd.iter().map(|response| &response["response"]).collect();
    let filtered = rejects_of(&setup, "10-filtered");
    let of_odd = filtered.iter().find(|reject| reject["id"] == odd[0]["id"]).unwrap();
    assert_eq!((&of_odd["reason"], &of_odd["raw"]), (&json!("no score"), texts[0]));
    let pairs = rejects_of(&setup, "11-pairs");
    let of_odd = pairs.iter().find(|reject| reject["id"] == "g0.p").unwrap();
    assert_eq!(raw(of_odd), json!(texts).to_string());
}
