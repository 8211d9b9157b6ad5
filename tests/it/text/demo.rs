//! The demo model's tokenizer with other added tokens, against ids of `tokenizers` 0.23 and renderings of
//! transformers 5.24. The tests print a line and pass if the demo model is absent; `tests/run` gets it first.

use std::fs;
use std::path::{Path, PathBuf};

use octant::text::{ChatTemplate, RenderOptions, Role, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::message;

/// A copy of the demo model's tokenizer after an edit of `tokenizer.json` and `tokenizer_config.json`; `None`
/// if the model is absent.
pub fn edited(edit: impl FnOnce(&mut Value, &mut Value)) -> Option<TempDir> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/smollm2-135m-instruct");
    let demo = std::env::var_os("OCTANT_DEMO_MODEL").map_or(default, PathBuf::from);
    let Ok(file) = fs::read(demo.join("tokenizer.json")) else {
        println!("skipped: no demo model at {}; scripts/demo_model.py gets it", demo.display());
        return None;
    };
    let mut tokenizer: Value = serde_json::from_slice(&file).unwrap();
    let config = fs::read(demo.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    edit(&mut tokenizer, &mut config);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Some(dir)
}

/// Puts an added token in the place of the one with the same id.
pub fn replace(tokenizer: &mut Value, id: u32, content: &str, flags: Value) {
    let mut token = json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false });
    token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    let old = &mut tokenizer["added_tokens"][id as usize];
    assert_eq!(old["id"], id);
    let old = std::mem::replace(old, token)["content"].as_str().unwrap().to_owned();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove(&old);
    vocab.insert(content.to_owned(), id.into());
}

#[test]
fn tokens_that_are_contained_but_do_not_match_leave_no_trace_in_the_prompt() {
    let dir = edited(|tokenizer, _| {
        replace(tokenizer, 3, "<cap>", json!({ "lstrip": true, "rstrip": true, "special": true }));
        replace(tokenizer, 4, "<|im", json!({}));
        replace(tokenizer, 5, "<ref>", json!({ "single_word": true, "special": true }));
    });
    let Some(dir) = dir else { return };
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let bare = ChatTemplate::from_source("{{ messages[0].content }}", &tokenizer).unwrap();
    let chat = ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap().unwrap();
    for (text, expected) in [
        ("a<ref>b", &[81, 44, 4716, 46, 82][..]),
        ("a <ref> b", &[81, 216, 5, 278]),
        ("é<ref>_", &[2756, 44, 4716, 46, 79]),
        ("a <cap> b", &[81, 3, 82]),
        ("a<|imb", &[81, 4, 82]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text}");
        let messages = [message(Role::User, text)];
        let ids = |template: &ChatTemplate| {
            let prompt = template.render(&messages, &RenderOptions::default()).unwrap();
            tokenizer.encode_prompt(&prompt).unwrap()
        };
        assert_eq!(ids(&bare), expected, "{text}");
        assert!(ids(&chat).windows(expected.len()).any(|window| window == expected), "{text}");
    }
}

#[test]
fn tokens_outside_tokenizer_json_have_their_ids() {
    let flags = json!({ "content": "<extra>", "special": true, "normalized": false });
    let decoder = json!({ "49152": flags });
    for (key, value, text, expected, plain) in [
        ("added_tokens_decoder", decoder, "x<extra>y", &[104, 49152, 105][..], "xy"),
        (
            "additional_special_tokens",
            json!(["<extra>", "<more>"]),
            "x<extra>y<more>",
            &[104, 49152, 105, 49153],
            "xy",
        ),
        (
            "added_tokens.json",
            json!({ "<extra>": 49152, "<tag>": 49153 }),
            "x<extra>y <tag>z",
            &[104, 49152, 105, 216, 49153, 106],
            "x<extra>y <tag>z",
        ),
    ] {
        let dir = edited(|_, config| {
            if !key.ends_with(".json") {
                config[key] = value.clone();
            }
        });
        let Some(dir) = dir else { return };
        if key.ends_with(".json") {
            fs::write(dir.path().join(key), value.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, expected, "{key}");
        assert_eq!(tokenizer.decode(&ids, true), plain, "{key}");
    }
}

#[test]
fn a_template_splits_message_text_at_an_added_token() {
    let dir = edited(|tokenizer, _| {
        replace(tokenizer, 5, "<think>", json!({}));
        replace(tokenizer, 6, "</think>", json!({}));
    });
    let Some(dir) = dir else { return };
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let source = "{% for m in messages %}{% set c = m.content %}\
                  {% if m.role == 'assistant' and '</think>' in c %}\
                  {% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}|{% endfor %}";
    let template = ChatTemplate::from_source(source, &tokenizer).unwrap();
    for (answer, expected) in
        [("<think>hm</think>ans", "q|ans|"), ("ans</think>", "q||"), ("a<think>b", "q|a<think>b|")]
    {
        let messages = [message(Role::User, "q"), message(Role::Assistant, answer)];
        let prompt = template.render(&messages, &RenderOptions::default()).unwrap();
        assert_eq!(prompt.text(), expected);
        let ids = tokenizer.encode_prompt(&prompt).unwrap();
        assert_eq!(ids, tokenizer.encode(expected).unwrap());
        assert_eq!(ids.contains(&5), expected.contains("<think>"));
    }
}
