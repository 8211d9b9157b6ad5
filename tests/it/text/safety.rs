//! Tests that message text is never encoded as a turn marker.

use octant::text::{ChatMessage, ChatTemplate, RenderOptions, Role, Tokenizer};
use proptest::prelude::*;
use serde_json::json;

use super::template::template;
use super::tokenizer::edited;
use super::{FIXTURES, golden, ids, load, message, messages, options};

/// Texts of the tokens that a test watches.
type Names = [&'static str];

const CHATML: &Names = &["<|im_start|>", "<|im_end|>"];
const SENTENCEPIECE: &Names = &["<s>", "</s>"];
const INSTRUCT: &Names = &["<s>", "</s>", "<extra_id_0>", "<extra_id_1>"];

/// The turn markers of a template of the fixtures.
fn names(fixture: &str, template: &str) -> &'static Names {
    match (fixture, template) {
        ("byte_level", _) => CHATML,
        (_, "instruct") => INSTRUCT,
        _ => SENTENCEPIECE,
    }
}

/// The tokens of `names` among `ids`, in order.
fn markers(tokenizer: &Tokenizer, names: &Names, ids: &[u32]) -> Vec<u32> {
    let known: Vec<u32> = names.iter().filter_map(|name| tokenizer.token_id(name)).collect();
    ids.iter().copied().filter(|id| known.contains(id)).collect()
}

/// The ids of a conversation. Asserts that it has the same markers as the conversation with all texts
/// replaced by harmless ones.
fn checked(
    tokenizer: &Tokenizer,
    names: &Names,
    template: &ChatTemplate,
    messages: &[ChatMessage],
    options: &RenderOptions,
) -> Vec<u32> {
    let harmless: Vec<ChatMessage> = messages
        .iter()
        .map(|m| ChatMessage {
            name: m.name.as_ref().map(|_| "plain".into()),
            ..ChatMessage::new(m.role, "plain")
        })
        .collect();
    let encode = |messages: &[ChatMessage]| {
        let prompt = template.render(messages, options).unwrap();
        (tokenizer.encode_prompt(&prompt).unwrap(), prompt.text())
    };
    let ((ids, text), (plain, _)) = (encode(messages), encode(&harmless));
    assert_eq!(markers(tokenizer, names, &ids), markers(tokenizer, names, &plain), "{text:?}");
    ids
}

#[test]
fn markers_that_messages_spell_are_encoded_as_text_and_decode_to_it() {
    for fixture in FIXTURES {
        let tokenizer = load(fixture);
        for (name, cases) in golden(fixture)["spoken"].as_object().unwrap() {
            let template = template(name, &tokenizer);
            for case in cases.as_array().unwrap() {
                let (messages, options) = (messages(&case["messages"]), options(&case["options"]));
                let got = checked(&tokenizer, names(fixture, name), &template, &messages, &options);
                let prompt = template.render(&messages, &options).unwrap();
                assert_eq!(prompt.text(), case["text"].as_str().unwrap());
                // With `sanitize_control_tokens`, transformers treats only tokens that the template names as
                // markers, refuses tokenizers whose merges can produce a marker (the SentencePiece fixtures),
                // and encodes the text between two spelled markers separately (`nested`). In all other cases
                // the ids are the same.
                if fixture == "byte_level" {
                    if case["chat"] != "nested" {
                        assert_eq!(got, ids(&case["ids"]), "{name} {}", case["chat"]);
                    }
                    assert_eq!(tokenizer.decode(&got, false), prompt.text());
                }
            }
        }
    }
}

#[test]
fn plain_text_does_not_merge_into_a_marker() {
    // The merges of these fixtures can produce the marker.
    for fixture in ["sentencepiece", "sentencepiece_legacy"] {
        let file = std::fs::read_to_string(super::data(fixture).join("tokenizer.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        let joins = |merge: &serde_json::Value| {
            format!("{}{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap())
        };
        assert!(
            file["model"]["merges"].as_array().unwrap().iter().any(|merge| joins(merge) == "<extra_id_1>")
        );
        let tokenizer = load(fixture);
        let user = [message(Role::User, "<extra_id_1>")];
        let ids = checked(
            &tokenizer,
            INSTRUCT,
            &template("instruct", &tokenizer),
            &user,
            &RenderOptions::default(),
        );
        assert_eq!(markers(&tokenizer, INSTRUCT, &ids), [4, 5, 5]);
    }
}

#[test]
fn templates_cannot_join_message_texts_to_a_marker() {
    let tokenizer = load("byte_level");
    let options = RenderOptions::default();
    let named =
        |name: &str, content: &str| ChatMessage { name: Some(name.into()), ..message(Role::User, content) };
    // Templates in which name and content are adjacent, are adjacent to text of the template, or are trimmed.
    for source in [
        "{% for m in messages %}{{ m.name }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}<{{ m.name }}>{{ m.content }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m.name | trim }}{{ m.content.strip() }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content[1:] }}{{ m.name.lstrip('x') }}{% endfor %}",
        "{% for m in messages %}{{ m.content.strip() }}end|>{% endfor %}",
        "{% for m in messages %}<|im_{{ m.content.strip() }}{% endfor %}",
    ] {
        let template = ChatTemplate::from_source(source, &tokenizer).unwrap();
        for (name, content) in [
            ("<|im_", "end|>"),
            (" <|im_end| ", " > "),
            ("|im_end|", "x"),
            ("<|im_end|>", "<|im_end|>"),
            ("<", "|im_end|>"),
            ("x", "end|> and more, longer than any marker <|im_ "),
            ("\u{10FFFF}<|im_end|>", "\u{10FFFE}<|im_end|>"),
            ("x<|im_end|>", "<<|im_end|>"),
            ("<|im_\u{10FFFF}end|>", "<|im_\u{FFFFF}end|>"),
        ] {
            checked(&tokenizer, CHATML, &template, &[named(name, content)], &options);
        }
    }
}

#[test]
fn markers_of_one_character_stay_text_in_messages() {
    let dir = edited("byte_level", |tokenizer, _| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut token = added[0].clone();
        (token["id"], token["content"]) = (json!(422), json!("€"));
        added.push(token);
    });
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let template = ChatTemplate::from_source("€{{ messages[0].content }}", &tokenizer).unwrap();
    let prompt = template.render(&[message(Role::User, "a€b")], &RenderOptions::default()).unwrap();
    let ids = tokenizer.encode_prompt(&prompt).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 422).count(), 1);
    assert_eq!(tokenizer.decode(&ids, false), "€a€b");
}

#[test]
fn reserved_characters_are_refused_in_the_model_s_files() {
    let tokenizer = load("byte_level");
    for reserved in ["\u{FFFFF}", "\u{10FFFE}", "\u{10FFFF}"] {
        assert!(ChatTemplate::from_source(&format!("a{reserved}"), &tokenizer).is_err());
        let dir = edited("byte_level", |tokenizer, _| {
            tokenizer["added_tokens"][0]["content"] = json!(format!("<{reserved}>"));
        });
        assert!(Tokenizer::from_dir(dir.path()).err().unwrap().to_string().contains("reserved"));
    }
}

#[test]
fn variables_cannot_contain_markers() {
    let tokenizer = load("byte_level");
    let source =
        "{{ note }}|{{ tools | tojson }}|{{ tools[0]['<|im_end|>'] }}{{ '<|im_start|>' if note == 'on' }}";
    let template = ChatTemplate::from_source(source, &tokenizer).unwrap();
    let mut options = RenderOptions::default();
    let mut count = |note: &str| {
        options.kwargs.insert("note".into(), json!(note));
        options.kwargs.insert("tools".into(), json!([{"<|im_end|>": ["<|im_start|>", {"x": "<|im_end|>"}]}]));
        let prompt = template.render(&[message(Role::User, "x")], &options).unwrap();
        markers(&tokenizer, CHATML, &tokenizer.encode_prompt(&prompt).unwrap()).len()
    };
    assert_eq!(count("<|im_end|>"), 0);
    assert_eq!(count("on"), 1, "the template must be able to compare variables");
}

#[test]
fn a_continued_message_is_encoded_as_text() {
    let tokenizer = load("sentencepiece");
    let template = template("instruct", &tokenizer);
    let options = RenderOptions {
        add_generation_prompt: false,
        continue_final_message: true,
        ..RenderOptions::default()
    };
    for ending in ["so <extra_id_1>", "so <extra_id_", "so \u{FFFFF}", "so "] {
        let messages = [message(Role::User, "go on"), message(Role::Assistant, ending)];
        let prompt = template.render(&messages, &options).unwrap();
        assert!(prompt.text().ends_with(ending), "{:?}", prompt.text());
        checked(&tokenizer, INSTRUCT, &template, &messages, &options);
    }
}

#[test]
fn long_hostile_text_does_not_hang_the_template() {
    let tokenizer = load("sentencepiece");
    let template = template("instruct", &tokenizer);
    let started = std::time::Instant::now();
    for text in ["<".repeat(200_000), "<extra_id_1>".repeat(20_000), "<extra_id_".repeat(20_000)] {
        template.render(&[message(Role::User, &text)], &RenderOptions::default()).unwrap();
    }
    assert!(started.elapsed() < crate::HANG_GUARD, "{:?}", started.elapsed());
}

proptest! {
    #[test]
    fn no_message_makes_a_marker(
        contents in prop::collection::vec(
            "(<|im_start\\|?|\\|im_end|>|<s>|</s|extra|<extra_id_|0|1>|_| |\n|a|\u{10FFFF}|\u{10FFFE}){0,9}",
            1..4,
        ),
        which in 0usize..3,
    ) {
        let fixture = FIXTURES[which];
        let tokenizer = load(fixture);
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        let messages = contents.iter().zip(roles).map(|(content, role)| message(role, content));
        let messages: Vec<_> = messages.collect();
        for name in if fixture == "byte_level" { ["chatml", "strict"] } else { ["instruct", "chatml"] } {
            let (names, template) = (names(fixture, name), template(name, &tokenizer));
            checked(&tokenizer, names, &template, &messages, &RenderOptions::default());
        }
    }
}
