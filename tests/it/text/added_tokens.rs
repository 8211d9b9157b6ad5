//! Added tokens with all flags and in all files of a tokenizer, compared with results of `tokenizers` and
//! `transformers` (`scripts/compare_tokenization.py`).

use std::fs;

use octant::text::{ChatTemplate, RenderOptions, Role, Tokenizer};
use serde_json::{Value, json};

use super::tokenizer::edited;
use super::{data, ids, message};

/// The cases of one kind. The script that makes the file can name another one.
fn cases(kind: &str) -> Vec<Value> {
    let path = std::env::var_os("OCTANT_TOKENIZATION_CASES");
    let path = path.map_or_else(|| data("added_tokens.json"), Into::into);
    let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    file[kind].as_array().unwrap().clone()
}

/// Puts the normalizer of a case before that of the fixture.
fn with_normalizer(tokenizer: &mut Value, normalizer: &Value) {
    if normalizer.is_null() {
        return;
    }
    let mut parts = vec![normalizer.clone()];
    parts.extend(tokenizer["normalizer"]["normalizers"].as_array().cloned().unwrap_or_default());
    tokenizer["normalizer"] = json!({ "type": "Sequence", "normalizers": parts });
}

#[test]
fn random_added_tokens_are_found_as_tokenizers_finds_them() {
    let mut prompts = 0;
    for case in cases("random") {
        let fixture = case["fixture"].as_str().unwrap();
        let markers: Vec<&str> =
            case["markers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let dir = edited(fixture, |tokenizer, config| {
            with_normalizer(tokenizer, &case["normalizer"]);
            tokenizer["added_tokens"] = case["tokens"].clone();
            *config = json!({ "bos_token": markers[0], "eos_token": markers[1] });
        });
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let bare = ChatTemplate::from_source("{{ messages[0].content }}", &tokenizer).unwrap();
        let source = "{{ bos_token + messages[0].content }}{{ eos_token }}";
        let ended = ChatTemplate::from_source(source, &tokenizer).unwrap();
        let ids_of = |template: &ChatTemplate, text: &str| {
            let prompt = template.render(&[message(Role::User, text)], &RenderOptions::default()).unwrap();
            tokenizer.encode_prompt(&prompt).unwrap()
        };
        for text in case["texts"].as_array().unwrap() {
            let (expected, prompt) = (ids(&text["ids"]), &text["prompt"]);
            let text = text["text"].as_str().unwrap();
            let label = format!("{text:?} {} {} {}", case["fixture"], case["normalizer"], case["tokens"]);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{label}");
            assert_eq!(tokenizer.ranges(text).unwrap().len(), expected.len(), "{label}");
            let spelled: Vec<u32> = markers.iter().filter_map(|marker| tokenizer.token_id(marker)).collect();
            let got = ids_of(&bare, text);
            assert!(!got.iter().any(|id| spelled.contains(id)), "{label} {got:?}");
            if !expected.iter().any(|id| spelled.contains(id)) {
                assert_eq!(got, expected, "{label}");
            }
            if !prompt.is_null() {
                assert_eq!(ids_of(&ended, text), ids(prompt), "in a prompt: {label}");
                prompts += 1;
            }
        }
    }
    assert!(prompts > 100, "{prompts}");
}

#[test]
fn tokens_of_all_files_are_added_as_transformers_adds_them() {
    for case in cases("files") {
        let dir = edited("byte_level", |_, config| *config = json!({}));
        for (name, file) in case["files"].as_object().unwrap() {
            fs::write(dir.path().join(name), file.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        for text in case["texts"].as_array().unwrap() {
            let label = format!("{} {}", case["name"], text["text"]);
            let got = tokenizer.encode(text["text"].as_str().unwrap()).unwrap();
            assert_eq!(got, ids(&text["ids"]), "{label}");
        }
        let named = |id: Option<u32>| id.map(|id| tokenizer.token_str(id));
        let special = &case["special_tokens"];
        assert_eq!(json!(named(tokenizer.bos())), special["bos_token"], "{}", case["name"]);
        assert_eq!(json!(named(tokenizer.eos())), special["eos_token"], "{}", case["name"]);
    }
}

#[test]
fn added_tokens_that_cannot_be_honoured_are_refused_by_name() {
    let token = |content: &str, normalized: bool| {
        json!({ "content": content, "lstrip": false, "rstrip": false, "single_word": false,
                "normalized": normalized, "special": true })
    };
    let fails = |config: Value, normalizer: Value| {
        let dir = edited("byte_level", |tokenizer, file| {
            with_normalizer(tokenizer, &normalizer);
            *file = config.clone();
        });
        Tokenizer::from_dir(dir.path()).err().unwrap().to_string()
    };
    let far = json!({ "added_tokens_decoder": { "900": token("<extra>", false) } });
    let expected =
        "tokenizer_config.json: added token \"<extra>\": its id is 900, but it would get Some(422)";
    assert!(fails(far, Value::Null).ends_with(expected));
    let odd = json!({ "added_tokens_decoder": { "x": token("<extra>", false) } });
    assert!(fails(odd, Value::Null).ends_with("added_tokens_decoder[\"x\"] is not an added token"));
    let empty = json!({ "added_tokens_decoder": { "422": token(" ", true) } });
    let strip = json!({ "type": "Strip", "strip_left": true, "strip_right": true });
    assert!(fails(empty, strip).contains("the normalizer removes all of the added token \" \""));
}

#[test]
fn tokens_of_the_configuration_are_decoded_and_are_special() {
    let dir = edited("byte_level", |_, config| {
        config["added_tokens_decoder"] = json!({
            "422": { "content": "<extra>", "special": true, "normalized": false },
            "423": { "content": "<tag>", "special": false, "normalized": false },
        });
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let ids = tokenizer.encode("x<extra>y<tag>").unwrap();
    assert_eq!((tokenizer.vocab_size(), ids[1], ids[3]), (424, 422, 423));
    assert_eq!(tokenizer.decode(&ids, false), "x<extra>y<tag>");
    assert_eq!(tokenizer.decode(&ids, true), "xy<tag>");
}
