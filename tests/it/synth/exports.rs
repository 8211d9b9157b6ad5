//! The columns of every trainer's format, to the letter.

use std::collections::BTreeMap;
use std::fs::read_to_string;

use octant::synth::export::{
    DataSet, Dialogue, Export, Format, LeftOut, Preference, Rating, Turn, Unfit, write_exports,
};
use serde_json::{Value, json};

fn turn(role: &str, content: &str) -> Turn {
    Turn { role: role.to_owned(), content: content.to_owned() }
}

fn rating(name: &str, value: f64) -> Rating {
    Rating { name: name.to_owned(), value }
}

fn dialogue() -> Dialogue {
    Dialogue {
        id: "d1".to_owned(),
        turns: vec![
            turn("system", "Be kind."),
            turn("user", "Hello"),
            turn("assistant", "Hi!"),
            turn("user", "Bye"),
            turn("assistant", "See you."),
        ],
        ratings: vec![Vec::new(), vec![rating("helpfulness", 3.5), rating("verbosity", -0.25)]],
    }
}

fn preference() -> Preference {
    Preference {
        id: "p1".to_owned(),
        prompt: vec![turn("user", "One and one?")],
        chosen: "Two.".to_owned(),
        rejected: "Three.".to_owned(),
        chosen_score: Some(3.25),
        rejected_score: Some(1.0),
    }
}

/// The rows of one format, and what was written.
fn export(format: Format, dialogues: &[Dialogue], preferences: &[Preference]) -> (Vec<Value>, Export) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exports");
    let mut written = write_exports(&path, &[format], DataSet { dialogues, preferences }).unwrap();
    let text = read_to_string(path.join(format.file())).unwrap();
    assert!(!path.join(format!("{}.partial", format.file())).exists());
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let written = written.remove(0);
    assert_eq!(written.rows, rows.len() as u64);
    (rows, written)
}

/// The rows of the example data.
fn rows(format: Format) -> Vec<Value> {
    let (rows, written) = export(format, &[dialogue()], &[preference()]);
    assert!(written.left_out.is_empty(), "{:?}", written.left_out);
    rows
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

#[test]
fn trl_sft_has_messages() {
    let messages = [
        message("system", "Be kind."),
        message("user", "Hello"),
        message("assistant", "Hi!"),
        message("user", "Bye"),
        message("assistant", "See you."),
    ];
    assert_eq!(rows(Format::TrlSft), [json!({ "messages": messages })]);
}

#[test]
fn trl_preferences_have_lists_of_messages() {
    let prompt = message("user", "One and one?");
    let (chosen, rejected) = (message("assistant", "Two."), message("assistant", "Three."));
    assert_eq!(
        rows(Format::TrlPreference),
        [json!({ "prompt": [prompt], "chosen": [chosen], "rejected": [rejected] })]
    );
    assert_eq!(
        rows(Format::TrlPreferenceImplicit),
        [json!({ "chosen": [prompt, chosen], "rejected": [prompt, rejected], "margin": 2.25 })]
    );
    assert_eq!(
        rows(Format::TrlKto),
        [
            json!({ "prompt": [prompt], "completion": [chosen], "label": true }),
            json!({ "prompt": [prompt], "completion": [rejected], "label": false }),
        ]
    );
}

#[test]
fn nemo_aligner_conversations_have_its_fields() {
    let conversations = |label: Value| {
        json!([
            { "from": "User", "value": "Hello", "label": null },
            { "from": "Assistant", "value": "Hi!", "label": null },
            { "from": "User", "value": "Bye", "label": null },
            { "from": "Assistant", "value": "See you.", "label": label },
        ])
    };
    let row = |kind: Value, label: Value| {
        let conversations = conversations(label);
        json!({ "system": "Be kind.", "mask": "User", "type": kind, "conversations": conversations })
    };
    assert_eq!(rows(Format::NemoAlignerSft), [row(Value::Null, Value::Null)]);
    let labelled = row(json!("VALUE_TO_TEXT"), json!("helpfulness:4,verbosity:0"));
    assert_eq!(rows(Format::NemoAlignerSteerlm), [labelled]);
}

#[test]
fn labels_are_rounded_and_clamped_and_only_of_known_attributes() {
    let values = [("reward", 2.0), ("coherence", 2.49), ("helpfulness", 9.0), ("toxicity", f64::NAN)];
    let ratings = values.map(|(name, value)| rating(name, value)).to_vec();
    let one = Dialogue { ratings: vec![ratings], ..dialogue() };
    let (rows, _) = export(Format::NemoAlignerSteerlm, &[one], &[]);
    assert_eq!(rows[0]["conversations"][1]["label"], "helpfulness:4,coherence:2");
    assert_eq!(rows[0]["conversations"][3]["label"], Value::Null);
    let scalar = Dialogue { ratings: vec![vec![rating("reward", 2.0)]], ..dialogue() };
    let (rows, written) = export(Format::NemoAlignerSteerlm, &[scalar], &[]);
    assert!(rows.is_empty());
    assert_eq!(written.left_out, [LeftOut { id: "d1".to_owned(), reason: Unfit::NoRatings }]);
}

#[test]
fn nemo_aligner_pairs_are_templated_strings_with_rewards() {
    assert_eq!(
        rows(Format::NemoAlignerDpo),
        [json!({
            "prompt": "<extra_id_0>System\n\n<extra_id_1>User\nOne and one?\n<extra_id_1>Assistant\n",
            "chosen_response": "Two.\n<extra_id_1>",
            "rejected_response": "Three.\n<extra_id_1>",
            "chosen_reward": 3.25,
            "rejected_reward": 1.0,
        })]
    );
    let mut longer = preference();
    longer.prompt = dialogue().turns[..4].to_vec();
    let (rows, _) = export(Format::NemoAlignerDpo, &[], &[longer]);
    assert_eq!(
        rows[0]["prompt"],
        "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\nHi!\n\
         <extra_id_1>User\nBye\n<extra_id_1>Assistant\n"
    );
}

#[test]
fn nemo_rl_has_ranks_and_strings() {
    let prompt = [message("user", "One and one?")];
    assert_eq!(
        rows(Format::NemoRlPreference),
        [json!({
            "context": prompt,
            "completions": [
                { "rank": 0, "completion": [message("assistant", "Two.")] },
                { "rank": 1, "completion": [message("assistant", "Three.")] },
            ],
        })]
    );
    assert_eq!(
        rows(Format::NemoRlBinaryPreference),
        [json!({ "prompt": prompt, "chosen": "Two.", "rejected": "Three." })]
    );
}

#[test]
fn scores_that_contradict_the_pair_are_not_exported() {
    let scores =
        [(Some(1.0), Some(3.0)), (Some(2.0), Some(2.0)), (None, Some(1.0)), (Some(f64::NAN), Some(1.0))];
    for (chosen_score, rejected_score) in scores {
        let pair = Preference { chosen_score, rejected_score, ..preference() };
        let (rows, _) = export(Format::NemoAlignerDpo, &[], std::slice::from_ref(&pair));
        let rewards = (rows[0]["chosen_reward"].clone(), rows[0]["rejected_reward"].clone());
        assert_eq!(rewards, (json!(1.0), json!(0.0)));
        let (rows, _) = export(Format::TrlPreferenceImplicit, &[], &[pair]);
        assert_eq!(rows[0]["margin"], json!(0.0));
    }
}

#[test]
fn items_that_a_format_cannot_express_are_left_out_with_the_reason() {
    let marked = Preference { id: "p2".to_owned(), chosen: "<extra_id_1>User".to_owned(), ..preference() };
    let swapped = Preference { id: "p3".to_owned(), prompt: vec![turn("assistant", "?")], ..preference() };
    let pairs = [marked, swapped, preference()];
    let (rows, written) = export(Format::NemoAlignerDpo, &[], &pairs);
    assert_eq!(rows.len(), 1);
    let reasons: BTreeMap<_, _> =
        written.left_out.iter().map(|left| (left.id.as_str(), left.reason.to_string())).collect();
    let expected = [
        ("p2", "the text contains `<extra_id_`, which the format's template uses as a marker"),
        ("p3", "turns: expected an optional system turn, then user and assistant in turn; got assistant"),
    ];
    assert_eq!(reasons, BTreeMap::from(expected.map(|(id, reason)| (id, reason.to_owned()))));
    assert_eq!(export(Format::TrlPreference, &[], &pairs).0.len(), 2);

    let mut open = dialogue();
    open.turns.pop();
    let empty = Dialogue { turns: Vec::new(), ..dialogue() };
    let (_, written) = export(Format::TrlSft, &[open, empty], &[]);
    let reasons: Vec<String> = written.left_out.iter().map(|left| left.reason.to_string()).collect();
    assert_eq!(
        reasons,
        [
            "turns: expected the last one by the assistant; got system, user, assistant, user",
            "turns: expected the last one by the assistant; got no turns"
        ]
    );
}

#[test]
fn rows_keep_the_order_of_the_data_and_the_bytes_of_a_rerun() {
    let pairs: Vec<Preference> =
        (0..50).map(|i| Preference { chosen: format!("answer {i}\n\"é\""), ..preference() }).collect();
    let data = DataSet { dialogues: &[dialogue()], preferences: &pairs };
    let read = || {
        let folder = tempfile::tempdir().unwrap();
        // A second write replaces the first.
        for _ in 0..2 {
            assert_eq!(write_exports(folder.path(), &Format::ALL, data).unwrap().len(), 9);
        }
        Format::ALL.map(|format| read_to_string(folder.path().join(format.file())).unwrap())
    };
    let files = read();
    assert_eq!(files, read());
    let chosen = files[1].lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let chosen: Vec<Value> = chosen.map(|row| row["chosen"][0]["content"].clone()).collect();
    assert_eq!(chosen, (0..50).map(|i| format!("answer {i}\n\"é\"")).collect::<Vec<_>>());
}

#[test]
fn the_names_of_recipes_are_the_names_of_files() {
    for format in Format::ALL {
        let name = serde_json::to_value(format).unwrap();
        assert_eq!(format!("{}.jsonl", name.as_str().unwrap().replace('-', "_")), format.file());
        assert_eq!(serde_json::from_value::<Format>(name).unwrap(), format);
        assert!(!format.trainer().is_empty());
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let data = DataSet { dialogues: &[], preferences: &[] };
    assert!(write_exports(&folder.path().join("file/exports"), &Format::ALL, data).is_err());
}
