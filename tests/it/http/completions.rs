//! Text completions without streaming, log-probabilities of prompts by `echo`, `/tokenize` and `/detokenize`.

use std::sync::Arc;

use octant::request::SamplingParams;
use serde_json::{Value, json};

use super::test_server::{BOS, Setup, TestServer, VOCAB, config};
use crate::fake::{FakeExecutor, alone, request};

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("no choices in {answer}"));
    choices.iter().map(|choice| choice["text"].as_str().expect("text")).collect()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Setup::new().launch();
    let reply = server.complete("abcd", json!({ "max_tokens": 3 })).await;
    let mut answer = reply.json();
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    (answer["id"], answer["created"]) = (json!("ID"), json!(0));
    let expected = json!({
        "id": "ID", "object": "text_completion", "created": 0, "model": "parrot",
        "choices": [{ "index": 0, "text": "abc", "logprobs": null, "finish_reason": "length" }],
        "usage": {
            "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
            "prompt_tokens_details": { "cached_tokens": 0 },
            "completion_tokens_details": { "reasoning_tokens": 0 },
        },
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn prompts_have_four_shapes() {
    let server = Setup::new().launch();
    let asked = json!({ "max_tokens": 2 });
    for (prompt, expected) in [
        (json!("abc"), vec!["ab"]),
        (json!(["abc", "xyz"]), vec!["ab", "xy"]),
        (json!([97, 98, 99]), vec!["ab"]),
        (json!([[97, 98], [120, 121]]), vec!["ab", "xy"]),
    ] {
        let answer = server.complete(prompt.clone(), asked.clone()).await.json();
        assert_eq!(texts(&answer), expected, "{prompt}");
    }
    let two = server.complete(json!(["abc", "xyz"]), json!({ "max_tokens": 1, "n": 2 })).await.json();
    assert_eq!(texts(&two), ["a", "a", "x", "x"]);
    assert_eq!((&two["usage"]["prompt_tokens"], &two["usage"]["completion_tokens"]), (&json!(8), &json!(4)));
}

#[tokio::test]
async fn a_bos_is_added_to_text_and_not_to_ids() {
    let server = Setup::new().launch();
    let tokens = async |prompt: Value, more: Value| {
        server.complete(prompt, more).await.json()["usage"]["prompt_tokens"].as_u64()
    };
    assert_eq!(tokens(json!("abc"), json!({})).await, Some(4));
    assert_eq!(tokens(json!("abc"), json!({ "add_special_tokens": false })).await, Some(3));
    assert_eq!(tokens(json!([97, 98, 99]), json!({})).await, Some(3));
}

#[tokio::test]
async fn without_max_tokens_a_completion_has_sixteen_tokens_or_the_rest_of_the_context() {
    let server = Setup::new().launch();
    assert_eq!(server.complete("abc", json!({})).await.json()["usage"]["completion_tokens"], 16);
    let long = server.complete(vec![97; 506], json!({})).await.json();
    assert_eq!(long["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn an_echo_shows_the_prompt_unchanged() {
    let server = Setup::new().launch();
    let echo = json!({ "echo": true, "max_tokens": 2 });
    assert_eq!(texts(&server.complete("a<|turn|>é", echo.clone()).await.json()), ["a<|turn|>éa"]);
    assert_eq!(texts(&server.complete(json!([97, 98]), echo).await.json()), ["abab"]);
    let nothing_new = server.complete("abc", json!({ "echo": true, "max_tokens": 0 })).await.json();
    assert_eq!(
        (texts(&nothing_new), &nothing_new["choices"][0]["finish_reason"]),
        (vec!["abc"], &json!("length"))
    );
    assert_eq!(nothing_new["choices"][0]["logprobs"], Value::Null);
}

/// Sends the request of an evaluation harness and reads the answer as the harness does: one entry per prompt
/// token, the first one null, and an entry for the generated token, which the harness skips. With a wrong
/// length or offset the harness would report random scores and no error.
#[tokio::test]
async fn prompt_logprobs_have_the_layout_that_evaluation_harnesses_expect() {
    let server = Setup::new().launch();
    // The answer to the second prompt is the end of sequence, which has an entry too.
    for prompt in [vec![97, 98, 99, 100], vec![257, 97, 98]] {
        let asked = json!({ "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true });
        let answer = server.complete(json!([prompt]), asked).await.json();
        let logprobs = &answer["choices"][0]["logprobs"];
        let column = |name: &str| logprobs[name].as_array().expect("a column").clone();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(column(name).len(), prompt.len() + 1, "{name}");
        }
        assert_eq!((&column("token_logprobs")[0], &column("top_logprobs")[0]), (&Value::Null, &Value::Null));
        for (i, &token) in prompt.iter().enumerate().skip(1) {
            let logprob = column("token_logprobs")[i].as_f64().expect("a score");
            let top = column("top_logprobs")[i].as_object().expect("alternatives").clone();
            let best = top.values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            // The fake executor gives even ids the highest score.
            let greedy = token % 2 == 0;
            assert_eq!(logprob.to_bits() == best.to_bits(), greedy, "{token} in {top:?}");
            assert_eq!(top.len(), if greedy { 1 } else { 2 }, "the token itself must be included");
        }
    }
}

#[tokio::test]
async fn text_offsets_count_characters() {
    let server = Setup::new().launch();
    let asked = json!({ "max_tokens": 3, "logprobs": 0, "echo": true });
    let answer = server.complete("aéb", asked).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "aébaé");
    let expected = json!({
        "text_offset": [0, 0, 1, 1, 2, 3, 4, 4],
        "token_logprobs": [null, -1.5, -1.5, -1.5, -0.25, -1.5, -1.5, -1.5],
        "tokens": ["<|bos|>", "a", "bytes:\\xc3", "bytes:\\xa9", "b", "a", "bytes:\\xc3", "bytes:\\xa9"],
        "top_logprobs": [
            null, { "a": -1.5 }, { "bytes:\\xc3": -1.5 }, { "bytes:\\xa9": -1.5 }, { "b": -0.25 },
            { "a": -1.5 }, { "bytes:\\xc3": -1.5 }, { "bytes:\\xa9": -1.5 },
        ],
    });
    let got: Value = serde_json::from_str(&choice["logprobs"].to_string()).expect("it is JSON");
    assert_eq!(got, expected);
}

#[tokio::test]
async fn choice_i_samples_with_seed_plus_i() {
    let server = Setup::new().launch_with(FakeExecutor::new(&config()));
    let asked =
        json!({ "max_tokens": 5, "n": 3, "seed": 41, "temperature": 1.0, "ignore_eos": true, "logprobs": 0 });
    let answer = server.complete(json!([1, 2, 3]), asked).await.json();
    let defaults = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    let tokenizer = super::test_server::tokenizer();
    for i in 0..3 {
        let mut asked = request(vec![1, 2, 3], 5);
        asked.sampling = Arc::new(SamplingParams { seed: 41 + i, ..defaults.clone() });
        let expected: Vec<String> =
            alone(&asked, config().vocab_size).tokens.iter().map(|&id| tokenizer.token_str(id)).collect();
        assert_eq!(answer["choices"][i as usize]["logprobs"]["tokens"], json!(expected));
    }
}

#[tokio::test]
async fn without_a_seed_requests_sample_differently() {
    let server = Setup::new().launch_with(FakeExecutor::new(&config()));
    let sample = async |server: &TestServer| {
        let asked = json!({ "max_tokens": 8, "ignore_eos": true, "logprobs": 0 });
        server.complete(json!([1, 2, 3]), asked).await.json()["choices"][0]["logprobs"]["tokens"].clone()
    };
    assert_ne!(sample(&server).await, sample(&server).await);
}

#[tokio::test]
async fn tokenize_refuses_fields_that_it_does_not_support() {
    let server = Setup::new().launch();
    let body = json!({ "messages": [{ "role": "user", "content": "a" }], "functions": [{ "name": "f" }] });
    let reply = server.post("/tokenize", body).await;
    assert_eq!(reply.error(), (400, None, Some("functions".into())));
}

#[tokio::test]
async fn tokenize_encodes_as_completions_do_and_detokenize_decodes() {
    let server = Setup::new().launch();
    let reply = server.post("/tokenize", json!({ "prompt": "hé<|eos|>", "return_token_strs": true })).await;
    let expected = json!({
        "count": 5, "max_model_len": 512, "tokens": [BOS, 104, 195, 169, 257],
        "token_strs": ["<|bos|>", "h", "bytes:\\xc3", "bytes:\\xa9", "<|eos|>"],
    });
    assert_eq!(reply.json(), expected);
    let bare = server.post("/tokenize", json!({ "prompt": "ab", "add_special_tokens": false })).await.json();
    assert_eq!((&bare["tokens"], &bare["token_strs"]), (&json!([97, 98]), &Value::Null));
    let messages = json!({ "messages": [{ "role": "user", "content": "a<|eos|>" }] });
    let chat = server.post("/tokenize", messages).await.json();
    let text: Vec<u32> = "a<|eos|>".bytes().map(u32::from).chain([257]).collect();
    assert_eq!(chat["tokens"], json!(text));
    let back = server.post("/detokenize", json!({ "tokens": [104, 195, 169, 257] })).await.json();
    assert_eq!(back, json!({ "prompt": "hé<|eos|>" }));
    for tokens in [json!([VOCAB]), json!([-1]), json!("ab"), json!(null)] {
        let reply = server.post("/detokenize", json!({ "tokens": tokens })).await;
        assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("tokens".into())));
    }
}
