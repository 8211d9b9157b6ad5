//! Log-probabilities of text completions over every kind of tokenizer: where the tokens stand in the text,
//! and how alternatives with the same text are told apart.

use std::path::{Path, PathBuf};

use octant::generation::Tokenizer;
use octant::server::Settings;
use serde_json::{Value, json};

use super::test_server::{Setup, TestServer};
use crate::fake::FakeExecutor;
use crate::text::demo;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name)
}

/// A server that repeats the prompt, over this tokenizer.
fn launch(tokenizer: Tokenizer) -> TestServer {
    let mut setup = Setup { settings: Settings::new("parrot", vec![]), ..Setup::new() };
    setup.config.vocab_size = 1024;
    let executor = FakeExecutor::new(&setup.config).parrot(tokenizer.bos().unwrap_or(u32::MAX));
    setup.launch_over(executor, tokenizer)
}

/// Text, tokens and offsets of an answer: its first choice, or all chunks of a stream.
fn joined(choices: &[Value]) -> (String, Vec<String>, Vec<usize>) {
    let (mut text, mut tokens, mut offsets) = (String::new(), Vec::new(), Vec::new());
    for choice in choices {
        text.push_str(choice["text"].as_str().expect("a text"));
        let list = |name: &str| choice["logprobs"][name].as_array().cloned().unwrap_or_default();
        tokens.extend(list("tokens").iter().map(|token| token.as_str().expect("a token").to_owned()));
        offsets.extend(list("text_offset").iter().map(|offset| offset.as_u64().expect("an offset") as usize));
    }
    (text, tokens, offsets)
}

#[tokio::test]
async fn the_text_at_each_offset_begins_with_the_token() {
    let texts =
        ["Hello world", " Hello  world\n", "東京は 😀 é e\u{301}", "x <s> y</s>z", "  ", "👩\u{200d}👧"];
    let mut checked = 0;
    for name in ["byte_level", "sentencepiece", "sentencepiece_legacy"] {
        let load = || Tokenizer::from_dir(&fixture(name)).expect("the fixture is sound");
        let tokenizer = load();
        let server = launch(load());
        let special = |token: &String| tokenizer.token_id(token).is_some_and(|id| tokenizer.is_special(id));
        for text in texts {
            let ids = tokenizer.encode(text).expect("it can be encoded");
            // The last prompt ends within a character if the text does not end in ASCII.
            let cut = ids[..ids.len().saturating_sub(1)].to_vec();
            for prompt in [json!(text), json!([ids]), json!([cut])] {
                for (echo, stream) in [(true, true), (true, false), (false, true), (false, false)] {
                    let asked = json!({ "echo": echo, "stream": stream, "logprobs": 2, "max_tokens": 6,
                                        "ignore_eos": true, "skip_special_tokens": false });
                    let reply = server.complete(prompt.clone(), asked).await;
                    if reply.status != 200 {
                        assert!(cut.is_empty(), "{}", reply.text());
                        continue;
                    }
                    let choices: Vec<Value> = if stream {
                        reply.chunks().iter().map(|chunk| chunk["choices"][0].clone()).collect()
                    } else {
                        vec![reply.json()["choices"][0].clone()]
                    };
                    let (answer, tokens, offsets) = joined(&choices);
                    let label = format!(
                        "{name} {prompt} echo {echo} stream {stream}: {answer:?} {tokens:?} {offsets:?}"
                    );
                    assert!(!tokens.is_empty() && tokens.len() == offsets.len(), "{label}");
                    assert!(!echo || !prompt.is_string() || answer.starts_with(text), "{label}");
                    for (token, offset) in tokens.iter().zip(offsets) {
                        let rest: String = answer.chars().skip(offset).collect();
                        assert!(offset <= answer.chars().count(), "{label}");
                        if !(token.starts_with("bytes:") || special(token) && prompt.is_string()) {
                            assert!(rest.starts_with(token.as_str()), "{token:?} at {offset} in {label}");
                            checked += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(checked > 1000, "{checked}");
}

#[tokio::test]
async fn an_answer_completes_a_character_that_an_echoed_prompt_begins() {
    let tokenizer = Tokenizer::from_dir(&fixture("byte_level")).expect("the fixture is sound");
    let mut ids = tokenizer.encode("😀").expect("it can be encoded");
    let first = ids.remove(0);
    let server = launch(tokenizer);
    // The answer repeats the prompt from its start, so it begins with the rest of the character.
    let prompt: Vec<u32> = [&ids[..], &[first]].concat();
    let count = ids.len();
    let answer =
        server.complete(json!([prompt]), json!({ "echo": true, "logprobs": 0, "max_tokens": count })).await;
    let choice = &answer.json()["choices"][0];
    let text = choice["text"].as_str().expect("a text");
    assert_eq!(text.trim_start_matches('\u{FFFD}'), "😀");
    let cut_off =
        server.complete(json!([[first]]), json!({ "echo": true, "max_tokens": 0, "logprobs": 0 })).await;
    assert_eq!(cut_off.json()["choices"][0]["text"], "\u{FFFD}");
}

#[tokio::test]
async fn ids_with_the_same_text_have_entries_of_their_own() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = std::fs::read_to_string(fixture("sentencepiece").join("tokenizer.json")).expect("it is there");
    let mut file: Value = serde_json::from_str(&file).expect("it is JSON");
    // The piece "A" and the byte 0x41, which is "A" too, get ids beside each other.
    let vocab = &mut file["model"]["vocab"];
    let byte = vocab["<0x41>"].as_u64().expect("an id");
    (vocab["<0x42>"], vocab["A"]) = (vocab["A"].clone(), json!(byte + 1));
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).expect("it can be written");
    let server = launch(Tokenizer::from_dir(dir.path()).expect("it is sound"));
    let asked = json!({ "echo": true, "logprobs": 2, "max_tokens": 1 });
    let tops = async |id: u64| {
        let reply = server.complete(json!([[300, id]]), asked.clone()).await;
        reply.json()["choices"][0]["logprobs"]["top_logprobs"][1].clone()
    };
    assert!(byte.is_multiple_of(2), "even ids are the more probable ones");
    assert_eq!(tops(byte).await, json!({ "A": -0.25, (format!("token_id:{}", byte + 1)): -1.75 }));
    let asked = json!({ "echo": true, "logprobs": 1, "max_tokens": 1 });
    let reply = server.complete(json!([[300, byte]]), asked).await;
    assert_eq!(reply.json()["choices"][0]["logprobs"]["top_logprobs"][1], json!({ "A": -0.25 }));
}

#[tokio::test]
async fn every_alternative_of_the_demo_tokenizer_has_an_entry() {
    // Each piece, and an added token with the same text, which gets the next id.
    for (piece, token) in [("A", "<0x41>"), ("Ġthe", " the"), ("Ċ", "\n")] {
        let mut first = 0;
        let dir = demo::edited(|file, _| {
            let fallback = json!({ "type": "ByteFallback" });
            file["decoder"] = json!({ "type": "Sequence", "decoders": [fallback, file["decoder"]] });
            let vocab = file["model"]["vocab"].as_object_mut().expect("a vocabulary");
            first = vocab[piece].as_u64().expect("an id");
            let moved = vocab.iter().find(|(_, id)| **id == first + 1).expect("it is there").0.clone();
            vocab.shift_remove("<file_sep>");
            vocab[&moved] = 5.into();
            vocab.insert(token.to_owned(), (first + 1).into());
            let added = file["added_tokens"].as_array_mut().expect("a list");
            let mut flags = added.remove(5);
            (flags["id"], flags["content"]) = ((first + 1).into(), token.into());
            added.push(flags);
        });
        let Some(dir) = dir else { return };
        let tokenizer = Tokenizer::from_dir(dir.path()).expect("it is sound");
        assert_eq!(tokenizer.token_str(first as u32), tokenizer.token_str(first as u32 + 1));
        let mut setup = Setup { settings: Settings::new("parrot", vec![]), ..Setup::new() };
        setup.config.vocab_size = tokenizer.vocab_size();
        let executor = FakeExecutor::new(&setup.config).parrot(u32::MAX);
        let server = setup.launch_over(executor, tokenizer);
        for prompt in [json!([[300, first]]), json!([[300, first - 1]])] {
            let asked = json!({ "echo": true, "logprobs": 3, "max_tokens": 1 });
            let reply = server.complete(prompt.clone(), asked).await.json();
            let top = &reply["choices"][0]["logprobs"]["top_logprobs"][1];
            assert_eq!(top.as_object().map(serde_json::Map::len), Some(3), "{piece} {prompt}: {top}");
        }
    }
}
