//! Tests of the tokenizer: encoding, single tokens, and the files that it reads.

use std::fs;

use octant::text::{ChatTemplate, RenderOptions, Role, TextError, Tokenizer};
use serde_json::{Value, json};

use super::{FIXTURES, data, golden, ids, load, message};

#[test]
fn encodes_as_transformers_does() {
    for fixture in FIXTURES {
        let (tokenizer, golden) = (load(fixture), golden(fixture));
        assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"]);
        for case in golden["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let got = tokenizer.encode(text).unwrap();
            assert_eq!(got, ids(&case["ids"]), "{fixture} {text:?}");
            assert_eq!(tokenizer.add_special(got), ids(&case["with_special"]), "{fixture} {text:?}");
        }
    }
}

#[test]
fn special_tokens_are_parsed_in_prompts_and_not_in_messages() {
    for (fixture, marker) in
        [("byte_level", "<|im_end|>"), ("sentencepiece", "<s>"), ("sentencepiece_legacy", "</s>")]
    {
        let tokenizer = load(fixture);
        let template = ChatTemplate::from_source("{{ messages[0].content }}", &tokenizer).unwrap();
        let id = tokenizer.token_id(marker).unwrap();
        for text in [marker.to_owned(), format!("a{marker}b {marker}"), format!("\u{10FFFE}{marker}")] {
            let ids = tokenizer.encode(&text).unwrap();
            assert!(ids.contains(&id));
            let prompt = template.render(&[message(Role::User, &text)], &RenderOptions::default()).unwrap();
            let ids = tokenizer.encode_prompt(&prompt).unwrap();
            assert!(!ids.contains(&id), "{fixture} {text:?}");
            assert_eq!(tokenizer.decode(&ids, true), text);
        }
    }
}

#[test]
fn added_tokens_that_are_ordinary_text_are_used_in_plain_text() {
    let tokenizer = load("byte_level");
    let id = tokenizer.token_id("        ").unwrap();
    assert!(tokenizer.encode("        x").unwrap().contains(&id));
    assert!(!tokenizer.is_special(id));
}

#[test]
fn bytes_of_the_tokens_join_to_the_bytes_of_the_text() {
    for fixture in FIXTURES {
        let tokenizer = load(fixture);
        for text in ["Hello world\n", "é 東京 😀", "\u{0}\u{7f}\u{ad}"] {
            let ids = tokenizer.encode(text).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
            let lead = if fixture == "byte_level" { "" } else { " " };
            assert_eq!(bytes, format!("{lead}{text}").into_bytes(), "{fixture}");
        }
    }
}

#[test]
fn tokens_that_are_not_utf_8_are_shown_as_bytes() {
    let tokenizer = load("byte_level");
    let emoji = tokenizer.encode("😀").unwrap();
    let strings: String = emoji.iter().map(|&id| tokenizer.token_str(id).replace("bytes:", "")).collect();
    assert_eq!(strings, "\\xf0\\x9f\\x98\\x80");
    assert!(tokenizer.token_str(emoji[0]).starts_with("bytes:\\xf0"));
    let tokenizer = load("sentencepiece");
    assert_eq!(tokenizer.token_str(tokenizer.token_id("<0xE6>").unwrap()), "bytes:\\xe6");
    assert_eq!(tokenizer.token_str(tokenizer.token_id("<0x41>").unwrap()), "A");
    assert_eq!(tokenizer.token_str(5), "<extra_id_1>");
}

#[test]
fn ids_without_a_token_are_harmless() {
    for fixture in FIXTURES {
        let tokenizer = load(fixture);
        for id in [tokenizer.vocab_size() as u32, u32::MAX, 1 << 31] {
            assert_eq!(tokenizer.token_bytes(id), b"");
            assert_eq!(tokenizer.token_str(id), "");
            assert!(!tokenizer.is_special(id));
            assert_eq!(tokenizer.decode(&[id], false), "");
        }
        assert_eq!(tokenizer.token_id("no such token"), None);
        assert_eq!(tokenizer.token_id("\u{10FFFE}<|im_end|>"), None);
    }
}

#[test]
fn special_tokens_are_found_by_name() {
    let tokenizer = load("sentencepiece");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(2), Some(3)));
    assert_eq!(tokenizer.token_id("<unk>"), Some(1));
    assert!(tokenizer.is_special(3) && !tokenizer.is_special(5), "user-defined pieces are not special");
    assert_eq!(tokenizer.decode(&[2, 5, 3], true), "<extra_id_1>");
}

/// A directory with a copy of a fixture's files after an edit.
pub fn edited(fixture: &str, edit: impl Fn(&mut Value, &mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| serde_json::from_slice(&fs::read(data(fixture).join(name)).unwrap()).unwrap();
    let (mut tokenizer, mut config): (Value, Value) = (read("tokenizer.json"), read("tokenizer_config.json"));
    edit(&mut tokenizer, &mut config);
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn add_bos_token_of_the_configuration_overrides_the_post_processor() {
    let dir = edited("sentencepiece", |_, config| config["add_bos_token"] = json!(false));
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().add_special(vec![7]), [7]);
    let dir = edited("byte_level", |_, config| config["add_bos_token"] = json!(true));
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().add_special(vec![7]), [1, 7]);
}

#[test]
fn byte_tokens_among_the_added_tokens_decode_to_bytes() {
    let dir = edited("sentencepiece", |tokenizer, _| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        for byte in 0..256 {
            let mut token = added[0].clone();
            (token["id"], token["content"]) = (json!(7 + byte), json!(format!("<0x{byte:02X}>")));
            added.push(token);
        }
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let ids = tokenizer.encode("€").unwrap();
    assert_eq!(ids[ids.len() - 3..], [7 + 0xE2, 7 + 0x82, 7 + 0xAC]);
    assert_eq!(tokenizer.decode(&ids, false), "€");
}

#[test]
fn leading_spaces_are_removed_as_the_decoder_says() {
    let hello = |tokenizer: &Tokenizer| tokenizer.encode("Hello").unwrap();
    let tokenizer = load("sentencepiece");
    // An id without a token does not count as the first token.
    assert_eq!(tokenizer.decode(&[&[9999], &hello(&tokenizer)[..]].concat(), false), "Hello");
    let dir = edited("sentencepiece", |tokenizer, _| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut token = added[6].clone();
        (token["id"], token["content"]) = (json!(513), json!(" <x"));
        added.push(token);
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.decode(&[513, 513], false), " <x <x", "an added token must keep its spaces");
    let dir = edited("sentencepiece", |tokenizer, _| {
        tokenizer["decoder"]["decoders"][1]["prepend_scheme"] = json!("never");
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.decode(&hello(&tokenizer), false), " Hello");
}

#[test]
fn tokens_that_only_the_configuration_flags_are_special() {
    let dir = edited("sentencepiece", |tokenizer, config| {
        tokenizer["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<extra_id_2>");
        config["additional_special_tokens"] = json!(["<extra_id_1>", {"content": "<extra_id_2>"}]);
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert!(tokenizer.is_special(5) && tokenizer.is_special(6));
    assert_eq!(tokenizer.encode("<extra_id_2>").unwrap(), [6]);
}

fn file_of(error: TextError) -> (String, String) {
    assert!(!error.is_client());
    match error {
        TextError::File { path, message } => {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), message)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn errors_name_the_invalid_file() {
    let fails = |dir: &tempfile::TempDir| file_of(Tokenizer::from_dir(dir.path()).err().unwrap());
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(fails(&empty), ("tokenizer.json".into(), "no such file".into()));
    for (name, text, expected) in [
        ("tokenizer.json", "{\"version\": ", "not JSON"),
        ("tokenizer.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "nonsense", "not JSON"),
        ("special_tokens_map.json", "\u{0}", "not JSON"),
    ] {
        let dir = edited("byte_level", |_, _| {});
        fs::write(dir.path().join(name), text).unwrap();
        let (file, message) = fails(&dir);
        assert!(file == name && message.contains(expected), "{file}: {message}");
    }
    type Edit = fn(&mut Value, &mut Value);
    let edits: [(Edit, &str); 6] = [
        (|tokenizer, _| tokenizer["decoder"] = json!({"type": "CTC"}), "decoder"),
        (|tokenizer, _| tokenizer["decoder"] = Value::Null, "decoder"),
        (|tokenizer, _| tokenizer["model"]["vocab"] = json!(3), "vocab"),
        (|tokenizer, _| tokenizer["model"]["vocab"]["a"] = json!(4_000_000_000_u32), "highest id"),
        (|tokenizer, _| tokenizer["added_tokens"][0]["id"] = json!(77), "its id is 77"),
        (|tokenizer, _| tokenizer["model"]["merges"] = json!(["not there"]), "not a tokenizer"),
    ];
    for (edit, expected) in edits {
        let (file, message) = fails(&edited("byte_level", edit));
        assert!(file == "tokenizer.json" && message.contains(expected), "{message}");
    }
}

#[test]
fn templates_are_read_from_each_file_and_form() {
    let tokenizer = load("byte_level");
    let text = |dir: &tempfile::TempDir, tools: bool| {
        let template = ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap()?;
        let mut options = RenderOptions::default();
        if tools {
            options.kwargs.insert("tools".into(), json!([{}]));
        }
        Some(template.render(&[message(Role::User, "x")], &options).unwrap().text())
    };
    let dir = edited("byte_level", |_, config| config["chat_template"] = Value::Null);
    assert_eq!(text(&dir, false), None);
    fs::write(dir.path().join("chat_template.json"), "{\"chat_template\": \"json\"}").unwrap();
    assert_eq!(text(&dir, false).unwrap(), "json");
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    let dir = edited("byte_level", |_, config| config["chat_template"] = named.clone());
    assert_eq!((text(&dir, false).unwrap(), text(&dir, true).unwrap()), ("plain".into(), "tools".into()));
    fs::write(dir.path().join("chat_template.jinja"), "file\n").unwrap();
    assert_eq!(text(&dir, true).unwrap(), "file");
    let fails =
        |dir: &tempfile::TempDir| file_of(ChatTemplate::from_dir(dir.path(), &tokenizer).err().unwrap());
    fs::write(dir.path().join("chat_template.jinja"), "{% if %}").unwrap();
    assert_eq!(fails(&dir).0, "chat_template.jinja");
    let dir = edited("byte_level", |_, config| config["chat_template"] = json!(["x"]));
    assert_eq!(fails(&dir).0, "tokenizer_config.json");
}
