//! Fields about tokens: which may occur in an answer, which the reply names, and how many the prompt keeps.
//! The executor repeats the prompt where that is allowed, and else takes the next allowed id.

use serde_json::{Value, json};

use super::test_server::{EOS, Setup, TestServer, merged};
use crate::device::model::{fixture, runner};

/// The first answer's text and its finish reason.
fn answer(reply: &Value) -> (&str, &str) {
    let choice = &reply["choices"][0];
    let text = choice.get("text").unwrap_or(&choice["message"]["content"]);
    (text.as_str().unwrap(), choice["finish_reason"].as_str().unwrap())
}

async fn chat(server: &TestServer, text: &str, more: Value) -> Value {
    server.chat(text, more).await.json()
}

#[tokio::test]
async fn bad_words_never_occur_and_their_beginnings_do() {
    let server = Setup::new().launch();
    for (words, expected) in [
        (json!(["h"]), "iello"),
        // The last of several tokens is masked, and only where the others precede it.
        (json!(["he"]), "hfllo"),
        (json!(["hel"]), "hello"),
        (json!(["o", "he", "zz", " ", ""]), "hfllp"),
        // "f" is what the first word leaves, so the second one holds too.
        (json!(["he", "hf"]), "hgllo"),
        (json!([]), "hello"),
    ] {
        let reply = chat(&server, "hello", json!({ "bad_words": words })).await;
        assert_eq!(answer(&reply), (expected, "stop"), "{words}");
    }
    // The end of the prompt is not part of the answer.
    let reply = server.complete("h", json!({ "bad_words": ["he"], "max_tokens": 1 })).await.json();
    assert_eq!(answer(&reply).0, "h");
    // A grammar that allows nothing else ends the answer.
    let stuck = json!({ "bad_words": ["ab"], "regex": "ab" });
    assert_eq!(answer(&chat(&server, "ab", stuck).await), ("a", "length"));
    let two = json!({ "bad_words": ["a"], "regex": "[ab]{2}", "n": 2 });
    assert_eq!(answer(&chat(&server, "ab", two).await), ("bb", "stop"));
    server.until_empty().await;
}

#[tokio::test]
async fn only_allowed_token_ids_occur_and_the_end_must_be_among_them() {
    let server = Setup::new().launch();
    let ids = |ids: Value| json!({ "allowed_token_ids": ids, "max_tokens": 3 });
    assert_eq!(answer(&chat(&server, "hello", ids(json!([97, 98]))).await), ("aaa", "length"));
    assert_eq!(answer(&chat(&server, "bab", ids(json!([97, 98]))).await), ("bab", "length"));
    assert_eq!(answer(&chat(&server, "ba", ids(json!([97, 98, EOS]))).await), ("ba", "stop"));
    let both = json!({ "allowed_token_ids": [98, EOS], "regex": "[ab]{2}" });
    assert_eq!(answer(&chat(&server, "ab", both).await), ("bb", "stop"));
    let least = json!({ "allowed_token_ids": [98, EOS], "min_tokens": 2, "logit_bias": { "98": 1 } });
    assert_eq!(chat(&server, "ab", least).await["choices"][0]["finish_reason"], "stop");
    let never = json!({ "allowed_token_ids": [98], "regex": "a" });
    assert_eq!(answer(&chat(&server, "ab", never).await), ("", "length"));
    let stopped = json!({ "allowed_token_ids": [98], "stop_token_ids": [98] });
    assert_eq!(answer(&chat(&server, "ab", stopped).await), ("", "stop"));
}

#[tokio::test]
async fn a_reply_has_the_token_ids_that_are_asked_for_whole_and_in_chunks() {
    let server = Setup::new().launch();
    let ids = json!({ "return_token_ids": true });
    let expected = json!([104, 105, EOS]);
    let reply = chat(&server, "hi", ids.clone()).await;
    assert_eq!((&reply["prompt_token_ids"], &reply["choices"][0]["token_ids"]), (&expected, &expected));
    let more = merged(ids.clone(), json!({ "max_tokens": 2, "n": 2 }));
    let reply = server.complete(json!([[97, 98], [99]]), more).await.json();
    for (i, (prompt, tokens)) in [([97, 98].as_slice(), [97, 98]), (&[99], [99, 99])].into_iter().enumerate()
    {
        for choice in [&reply["choices"][2 * i], &reply["choices"][2 * i + 1]] {
            assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&json!(prompt), &json!(tokens)));
        }
    }
    // The bytes of "é" are two tokens, and the first one makes no text.
    let more = merged(ids, json!({ "stream": true }));
    let chunks = server.chat("é", more.clone()).await.chunks();
    assert_eq!(chunks[0]["prompt_token_ids"], json!([195, 169, EOS]));
    assert!(chunks[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
    let streamed = |chunks: &[Value]| -> Vec<Value> {
        let ids = chunks.iter().filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array());
        ids.flatten().cloned().collect()
    };
    assert_eq!(streamed(&chunks), [json!(195), json!(169), json!(EOS)]);
    let chunks = server.complete("é", merged(more, json!({ "max_tokens": 1 }))).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!([258, 195, 169]));
    assert_eq!(streamed(&chunks), [json!(195)]);
    let plain = chat(&server, "hi", json!({})).await;
    assert!(plain.get("prompt_token_ids").is_none() && plain["choices"][0].get("token_ids").is_none());
}

#[tokio::test]
async fn log_probabilities_can_name_tokens_by_their_ids() {
    let server = Setup::new().launch();
    let named = json!({ "return_tokens_as_token_ids": true, "logprobs": true, "top_logprobs": 2 });
    for chunks in [
        vec![chat(&server, "é", named.clone()).await],
        server.chat("é", merged(named, json!({ "stream": true }))).await.chunks(),
    ] {
        let entries = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
        let entries: Vec<&Value> = entries.flatten().collect();
        let names: Vec<&str> = entries.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
        assert_eq!(names, ["token_id:195", "token_id:169"]);
        assert_eq!(entries[0]["bytes"], json!([195]));
        let top = entries.iter().flat_map(|entry| entry["top_logprobs"].as_array().unwrap());
        assert!(top.clone().count() > 0);
        assert!(top.into_iter().all(|other| other["token"].as_str().unwrap().starts_with("token_id:")));
    }
    let named = json!({ "return_tokens_as_token_ids": true, "logprobs": 1, "max_tokens": 1, "echo": true });
    let logprobs = server.complete(json!([97, 98]), named).await.json()["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"], json!(["token_id:97", "token_id:98", "token_id:97"]));
    assert!(logprobs["top_logprobs"][1].get("token_id:98").is_some(), "{logprobs}");
}

#[tokio::test]
async fn prompt_logprobs_have_the_form_of_vllm() {
    let server = Setup::new().launch();
    let scores = |more: Value| merged(json!({ "prompt_logprobs": 1, "max_tokens": 1 }), more);
    let check = |scores: &Value| {
        let entries = scores.as_array().unwrap();
        assert_eq!((entries.len(), &entries[0]), (3, &Value::Null));
        // The fake executor gives even ids the highest score.
        let even = json!({ "98": { "logprob": -0.25, "rank": 1, "decoded_token": "b" } });
        assert_eq!(entries[1], even);
        let odd = entries[2].as_object().unwrap();
        assert_eq!(odd.keys().next().unwrap(), "99");
        assert_eq!(odd["99"], json!({ "logprob": -1.5, "rank": 2, "decoded_token": "c" }));
        assert_eq!(odd.len(), 2);
        assert_eq!(odd.values().nth(1).unwrap()["rank"], 1);
    };
    let ids = json!([[97, 98, 99]]);
    let reply = server.complete(ids.clone(), scores(json!({ "n": 2 }))).await.json();
    for choice in reply["choices"].as_array().unwrap() {
        check(&choice["prompt_logprobs"]);
        assert_eq!(choice["logprobs"], Value::Null);
    }
    // An echo has its own number of alternatives.
    let echo = json!({ "echo": true, "logprobs": 0 });
    let reply = server.complete(ids.clone(), scores(echo)).await.json();
    check(&reply["choices"][0]["prompt_logprobs"]);
    assert_eq!(reply["choices"][0]["logprobs"]["top_logprobs"][2], json!({ "c": -1.5 }));
    let none = server.complete(ids, scores(json!({ "prompt_logprobs": 0 }))).await.json();
    assert_eq!(none["choices"][0]["prompt_logprobs"][2].as_object().unwrap().len(), 1);
    let reply = chat(&server, "bc", scores(json!({}))).await;
    assert_eq!(reply["prompt_logprobs"].as_array().unwrap().len(), 3, "two letters and the end");
    assert_eq!(reply["prompt_logprobs"][0], Value::Null);
    let refused = server.chat("bc", scores(json!({ "stream": true }))).await.error();
    assert_eq!(refused, (400, Some("invalid_value".into()), Some("prompt_logprobs".into())));
}

#[tokio::test]
async fn prompt_logprobs_begin_at_a_token_and_have_a_sum() {
    let server = Setup::new().launch();
    let prompt: Vec<u32> = (0..200).map(|i| 97 + i % 9).collect();
    let echo = json!({ "echo": true, "logprobs": 0, "max_tokens": 0 });
    let echo = server.complete(json!([prompt]), echo).await.json();
    let echoed = echo["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    // The last two blocks of 64 tokens that lie before token 128 are cached by now.
    for (start, cached) in [(0, 0), (1, 0), (65, 64), (150, 128), (199, 192)] {
        let asked = json!({ "prompt_logprobs": 0, "prompt_logprobs_start": start, "max_tokens": 0 });
        let reply = server.complete(json!([prompt]), asked).await.json();
        assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], cached, "from {start}");
        let choice = &reply["choices"][0];
        let entries = choice["prompt_logprobs"].as_array().unwrap();
        assert_eq!(entries.len(), 200 - start);
        for (entry, i) in entries.iter().zip(start..) {
            let own = &entry[prompt[i].to_string()]["logprob"];
            assert_eq!(own, &echoed[i], "token {i} from {start}");
        }
        let sum: f64 = echoed[start..].iter().filter_map(Value::as_f64).sum();
        assert_eq!(choice["prompt_logprobs_sum"].as_f64().unwrap(), sum, "from {start}");
    }
    // An echo shows the scores of the whole prompt beside them.
    let both = json!({ "echo": true, "logprobs": 0, "prompt_logprobs": 0, "prompt_logprobs_start": 198,
                       "max_tokens": 1, "n": 2 });
    let reply = server.complete(json!([prompt]), both).await.json();
    for choice in reply["choices"].as_array().unwrap() {
        assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap()[..200], echoed[..]);
        let entries = choice["prompt_logprobs"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1][prompt[199].to_string()]["logprob"], echoed[199]);
    }
    for (start, more) in [(200, json!({})), (3, json!({ "truncate_prompt_tokens": 3 }))] {
        let asked = merged(json!({ "prompt_logprobs": 0, "prompt_logprobs_start": start }), more);
        let refused = server.complete(json!([prompt]), asked).await;
        assert_eq!(refused.error().2.as_deref(), Some("prompt_logprobs_start"));
        assert_eq!(refused.status, 400);
        assert!(
            refused.text().contains(&format!("at most {}, got {start}", start - 1)),
            "{}",
            refused.text()
        );
    }
}

/// A model in place of the fake executor.
#[tokio::test]
async fn prompt_logprobs_of_a_model_equal_those_of_an_echo() {
    let mut setup = Setup::new();
    setup.config.vocab_size = 384;
    setup.config.max_model_len = 256;
    let runner = runner(&fixture("llama"), &setup.config);
    let server = setup.launch_with(runner);
    let text: String = ('a'..='z').cycle().take(170).collect();
    // The chat template ends the text with the end token.
    let ids: Vec<u32> = text.bytes().map(u32::from).chain([EOS]).collect();
    let echo = json!({ "echo": true, "logprobs": 1, "max_tokens": 0, "cache_salt": "echo" });
    let echo = server.complete(json!([ids]), echo).await.json();
    let echoed = echo["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    assert_eq!((echoed.len(), &echoed[0]), (171, &Value::Null));
    let asked = |start: usize, salt: &str| {
        let scores = json!({ "prompt_logprobs": 1, "prompt_logprobs_start": start });
        merged(scores, json!({ "max_tokens": 0, "cache_salt": salt }))
    };
    let check = |reply: &Value, entries: &Value, start: usize, cached: usize| {
        let entries = entries.as_array().unwrap();
        assert_eq!(entries.len(), 171 - start, "from {start}");
        for (entry, i) in entries.iter().zip(start..) {
            assert_eq!(entry[ids[i].to_string()]["logprob"], echoed[i], "token {i} from {start}");
        }
        assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], cached, "from {start}");
    };
    for (start, salt, cached) in [(170, "cold", 0), (170, "echo", 128), (66, "echo", 64), (0, "echo", 0)] {
        let reply = server.complete(json!([ids]), asked(start, salt)).await.json();
        check(&reply, &reply["choices"][0]["prompt_logprobs"], start, cached);
        let reply = server.chat(&text, asked(start, &format!("{salt} {start} chat"))).await.json();
        check(&reply, &reply["prompt_logprobs"], start, 0);
    }
    let (one, two, chat) = tokio::join!(
        server.complete(json!([ids]), asked(130, "echo")),
        server.complete(json!([ids]), asked(0, "another")),
        server.chat(&text, asked(70, "echo")),
    );
    let [one, two, chat] = [one, two, chat].map(|reply| reply.json());
    check(&one, &one["choices"][0]["prompt_logprobs"], 130, 128);
    check(&two, &two["choices"][0]["prompt_logprobs"], 0, 0);
    check(&chat, &chat["prompt_logprobs"], 70, 64);
}

/// A template with turns, as trainers of preferences use it: a closed turn ends with `/`.
const TURNS: &str = "\
    {%- for m in messages %}{{ m.role[0] }}:{{ m.content }}/\
    {%- endfor %}{% if add_generation_prompt %}a:{% endif %}";

#[tokio::test]
async fn a_conversation_that_ends_with_an_answer_is_scored_with_its_closed_turn() {
    let server = Setup { template: TURNS, ..Setup::new() }.launch();
    let question = json!([{ "role": "user", "content": "hi" }]);
    let answered = json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "yes" }]);
    let before = server.post("/tokenize", json!({ "messages": question })).await.json();
    let start = before["count"].as_u64().expect("a number of tokens");
    let ask = |more: Value| {
        let asked = json!({ "messages": answered, "prompt_logprobs": 0, "prompt_logprobs_start": start,
                            "max_tokens": 0 });
        server.post("/v1/chat/completions", merged(asked, more))
    };
    let text = |reply: &Value| -> String {
        let entries = reply["prompt_logprobs"].as_array().expect("scores").iter();
        let own = entries.map(|entry| entry.as_object().unwrap().values().next().unwrap().clone());
        own.map(|own| own["decoded_token"].as_str().unwrap().to_owned()).collect()
    };
    let closed = ask(json!({ "add_generation_prompt": false })).await.json();
    assert_eq!(text(&closed), "yes/", "the answer and the end of its turn");
    assert_eq!(closed["choices"][0]["message"]["content"], "");
    assert_eq!(closed["usage"]["completion_tokens"], 0);
    let sum = closed["prompt_logprobs_sum"].as_f64().unwrap();
    // The fake executor gives even ids -0.25 and odd ones -1.5: y, e, s and the slash.
    assert_eq!(sum, -1.5 * 4.0);
    let open = ask(json!({ "continue_final_message": true })).await.json();
    assert_eq!(text(&open), "yes", "the answer alone");
    // By default the template begins another turn.
    assert_eq!(text(&ask(json!({})).await.json()), "yes/a:");
}

#[tokio::test]
async fn a_truncated_prompt_keeps_its_last_tokens() {
    let server = Setup::new().launch();
    let last = |tokens: i64| json!({ "truncate_prompt_tokens": tokens, "max_tokens": 2 });
    let reply = server.complete("abcdef", last(2)).await.json();
    assert_eq!((answer(&reply).0, &reply["usage"]["prompt_tokens"]), ("ef", &json!(2)));
    let echo = merged(last(3), json!({ "echo": true, "logprobs": 0 }));
    let reply = server.complete("abcdef", echo).await.json();
    assert_eq!(answer(&reply).0, "defde");
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"], json!(["d", "e", "f", "d", "e"]));
    let reply = server.complete("abc", last(100)).await.json();
    assert_eq!(reply["usage"]["prompt_tokens"], 4, "a short prompt is whole");
    let long = "x".repeat(600);
    let reply = server.complete(long.as_str(), last(-1)).await.json();
    assert_eq!(reply["usage"]["prompt_tokens"], 510, "the answer has two of 512");
    let reply = chat(&server, &long, json!({ "truncate_prompt_tokens": -1 })).await;
    assert_eq!((&reply["usage"]["prompt_tokens"], answer(&reply).1), (&json!(511), "length"));
    let refused = server.complete(long.as_str(), last(511)).await.error();
    assert_eq!(refused.1.as_deref(), Some("context_length_exceeded"));
}

#[tokio::test]
async fn every_chunk_can_have_the_usage_of_its_choice() {
    let server = Setup::new().launch();
    for include in [true, false] {
        let options = json!({ "include_usage": include, "continuous_usage_stats": true });
        let more = json!({ "stream": true, "stream_options": options, "n": 2 });
        let chunks = server.chat("abc", more).await.chunks();
        let mut most = [0, 0];
        for chunk in chunks.iter().filter(|chunk| !chunk["choices"].as_array().unwrap().is_empty()) {
            let index = chunk["choices"][0]["index"].as_u64().unwrap() as usize;
            let usage = &chunk["usage"];
            let tokens = usage["completion_tokens"].as_u64().unwrap();
            assert!(tokens >= most[index] && tokens > 0, "{chunk}");
            assert_eq!(
                (&usage["prompt_tokens"], usage["total_tokens"].as_u64()),
                (&json!(4), Some(4 + tokens))
            );
            most[index] = tokens;
        }
        assert_eq!(most, [4, 4]);
        let last = chunks.last().unwrap();
        let whole = last["choices"].as_array().unwrap().is_empty() && last["usage"]["completion_tokens"] == 8;
        assert_eq!(whole, include, "{last}");
    }
}

#[tokio::test]
async fn fields_without_an_effect_are_named() {
    let server = Setup::new().launch();
    let more = json!({ "store": true, "reasoning_effort": "low", "verbosity": "high",
        "metadata": { "a": "b" }, "service_tier": "auto" });
    let reply = server.chat("a", more.clone()).await;
    assert_eq!(reply.header("x-ignored-fields"), Some("store,reasoning_effort,verbosity"));
    let reply = server.complete("a", more).await;
    assert_eq!(reply.header("x-ignored-fields"), Some("store,reasoning_effort,verbosity"));
}
