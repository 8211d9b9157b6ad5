//! Chat completions without streaming.

use serde_json::{Value, json};

use super::test_server::{Setup, TestServer, chat_body};

/// Checks the id and the time of an answer, and replaces them by fixed values.
fn with_fixed_id_and_time(mut answer: Value) -> Value {
    let id = answer["id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("chatcmpl-") && id.len() == 41, "{id}");
    assert!(answer["created"].as_u64().is_some_and(|time| time > 1_700_000_000));
    answer["id"] = "ID".into();
    answer["created"] = 0.into();
    answer
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Setup::new().launch();
    let reply = server.chat("Héllo", json!({})).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    // The text has six bytes, of which `ll` is one token, so it has five tokens and an end of sequence.
    let expected = json!({
        "id": "ID", "object": "chat.completion", "created": 0, "model": "parrot",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": "Héllo", "refusal": null },
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12,
            "prompt_tokens_details": { "cached_tokens": 0 },
            "completion_tokens_details": { "reasoning_tokens": 0 },
        },
    });
    assert_eq!(with_fixed_id_and_time(reply.json()), expected);
}

#[tokio::test]
async fn max_tokens_ends_an_answer_under_both_of_its_names() {
    let server = Setup::new().launch();
    for field in ["max_tokens", "max_completion_tokens"] {
        let answer = server.chat("abcdef", json!({ field: 3 })).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], "abc");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 3);
    }
}

#[tokio::test]
async fn without_max_tokens_the_rest_of_the_context_is_used() {
    let server = Setup::new().launch();
    let answer = server.chat("abc", json!({ "ignore_eos": true })).await.json();
    assert_eq!(answer["usage"]["total_tokens"], 512);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn every_choice_has_its_index_and_the_prompt_counts_once() {
    let server = Setup::new().launch();
    let answer = server.chat("abc", json!({ "n": 3 })).await.json();
    let choices = answer["choices"].as_array().expect("choices");
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64()).collect();
    assert_eq!(indices, [Some(0), Some(1), Some(2)]);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "abc"));
    assert_eq!(
        (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]),
        (&json!(4), &json!(12))
    );
}

#[tokio::test]
async fn logprobs_have_true_bytes_and_a_form_for_half_characters() {
    let server = Setup::new().launch();
    let asked = json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 3 });
    let answer = server.chat("aé", asked).await.json();
    let expected = json!({
        "content": [
            { "token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": [
                { "token": "b", "logprob": -0.3, "bytes": [98] },
                { "token": "a", "logprob": -1.5, "bytes": [97] },
            ] },
            { "token": "bytes:\\xc3", "logprob": -1.5, "bytes": [195], "top_logprobs": [
                { "token": "bytes:\\xc4", "logprob": -0.3, "bytes": [196] },
                { "token": "bytes:\\xc3", "logprob": -1.5, "bytes": [195] },
            ] },
            { "token": "bytes:\\xa9", "logprob": -1.5, "bytes": [169], "top_logprobs": [
                { "token": "bytes:\\xaa", "logprob": -0.3, "bytes": [170] },
                { "token": "bytes:\\xa9", "logprob": -1.5, "bytes": [169] },
            ] },
        ],
        "refusal": null,
    });
    let got: Value = serde_json::from_str(&answer["choices"][0]["logprobs"].to_string()).expect("it is JSON");
    assert_eq!(got, expected);
    let without = server.chat("a", json!({ "logprobs": true })).await.json();
    let content = &without["choices"][0]["logprobs"]["content"];
    assert_eq!(content[0]["top_logprobs"], json!([]));
    assert_eq!(content.as_array().map(Vec::len), Some(1), "the stop token must not be in the output");
}

/// Content and finish reason of the first choice.
fn outcome(answer: &Value) -> (&str, &str) {
    let choice = &answer["choices"][0];
    let content = choice["message"]["content"].as_str().expect("content");
    (content, choice["finish_reason"].as_str().expect("a reason"))
}

#[tokio::test]
async fn a_score_of_minus_infinity_is_a_number_on_the_wire() {
    let server = Setup::new().launch();
    let reply = server.chat("z", json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 1 })).await;
    let top = &reply.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"];
    assert_eq!((&top[0]["logprob"], &top[1]["logprob"]), (&json!(-0.25), &json!(-9999.0)));
}

#[tokio::test]
async fn stop_strings_end_an_answer_even_across_tokens() {
    let server = Setup::new().launch();
    for (stop, include, content) in [
        (json!("cd"), false, "ab"),
        (json!(["zz", "de"]), false, "abc"),
        (json!("cd"), true, "abcd"),
        (json!("héllo"), false, "abcdef"),
        (json!([]), false, "abcdef"),
    ] {
        let asked = json!({ "stop": stop, "include_stop_str_in_output": include, "logprobs": true });
        let answer = server.chat("abcdef", asked).await.json();
        assert_eq!(outcome(&answer), (content, "stop"), "{stop}");
        let scored = answer["choices"][0]["logprobs"]["content"].as_array().expect("scores");
        let text: String = scored.iter().filter_map(|token| token["token"].as_str()).collect();
        assert_eq!(text, content, "the log-probabilities must cover exactly the text");
    }
    server.until_empty().await;
}

#[tokio::test]
async fn min_tokens_delays_stop_strings_and_stop_ids() {
    let server = Setup::new().launch();
    let answer = server.chat("ababab", json!({ "stop": "b", "min_tokens": 3 })).await.json();
    assert_eq!(outcome(&answer), ("aba", "stop"));
    let by_id = server.chat("abc", json!({ "stop_token_ids": [98] })).await.json();
    assert_eq!((outcome(&by_id), &by_id["usage"]["completion_tokens"]), (("a", "stop"), &json!(2)));
    let kept =
        server.chat("abc", json!({ "stop_token_ids": [98], "include_stop_str_in_output": true })).await;
    assert_eq!(outcome(&kept.json()), ("ab", "stop"));
}

#[tokio::test]
async fn special_tokens_show_only_on_request() {
    let server = Setup::new().launch();
    let asked = json!({ "ignore_eos": true, "max_tokens": 4, "skip_special_tokens": false });
    assert_eq!(outcome(&server.chat("ab", asked).await.json()), ("ab<|eos|>a", "length"));
    let asked = json!({ "ignore_eos": true, "max_tokens": 4 });
    assert_eq!(outcome(&server.chat("ab", asked).await.json()), ("aba", "length"));
}

#[tokio::test]
async fn a_repeated_prompt_is_reported_as_cached() {
    let server = Setup::new().launch();
    let text = "x".repeat(200);
    let cached = async |server: &TestServer| {
        let answer = server.chat(&text, json!({ "max_tokens": 1 })).await.json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    assert_eq!(cached(&server).await, Some(0));
    assert_eq!(cached(&server).await, Some(192));
    // Both choices hit the cache. Usage counts the cached tokens once, as it counts the prompt.
    let twice = server.chat(&text, json!({ "max_tokens": 1, "n": 2 })).await.json();
    let usage = &twice["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]),
        (&json!(201), &json!(192))
    );
    let salted = server.chat(&text, json!({ "max_tokens": 1, "cache_salt": "mine" })).await.json();
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn message_text_is_neither_marker_nor_template() {
    let server = Setup::new().launch();
    for text in ["<|eos|>", "a<|bos|>b", "{{7*7}}", "{% raw %}"] {
        let answer = server.chat(text, json!({})).await.json();
        assert_eq!(outcome(&answer), (text, "stop"));
    }
}

#[tokio::test]
async fn roles_parts_names_and_nulls_are_accepted() {
    let server = Setup::new().launch();
    let body = json!({
        "messages": [
            { "role": "developer", "content": "a" },
            {
                "role": "user", "name": null,
                "content": [{ "type": "text", "text": "b" }, { "type": "text", "text": "c" }],
            },
            { "role": "assistant", "content": "d", "tool_calls": null, "refusal": null },
            { "role": "tool", "content": "e", "tool_call_id": "1" },
        ],
        "tools": null, "logit_bias": null, "stop": null, "user": "me", "metadata": {}, "store": false,
        "service_tier": "auto", "parallel_tool_calls": true, "tool_choice": "none",
        "response_format": { "type": "text" }, "best_of": 1,
    });
    let reply = server.post("/v1/chat/completions", body).await;
    assert_eq!((outcome(&reply.json()), reply.header("x-ignored-fields")), (("ab\ncde", "stop"), None));
}

#[tokio::test]
async fn unknown_fields_are_named_in_a_header() {
    let server = Setup::new().launch();
    let more =
        json!({ "frobnicate": 1, "stream": true, "stream_options": { "odd": true }, "söder, \r\nx": 2 });
    let reply = server.chat("a", more).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-ignored-fields"), Some("stream_options.odd,frobnicate,s?der????x"));
    // A long name keeps both ends.
    let name = format!("{}{}", "a".repeat(90), "b".repeat(90));
    let reply = server.chat("a", json!({ name: 1 })).await;
    let shown = format!("{}...{}", "a".repeat(61), "b".repeat(64));
    assert_eq!(reply.header("x-ignored-fields"), Some(shown.as_str()));
}

#[tokio::test]
async fn unknown_fields_of_messages_and_parts_are_named_too() {
    let server = Setup::new().launch();
    let messages = json!([
        { "role": "assistant", "content": "x", "prefix": true, "refusal": null, "annotations": [] },
        { "role": "user", "content": [{ "type": "text", "text": "a", "odd": 1 }] },
    ]);
    let reply = server.post("/v1/chat/completions", json!({ "messages": messages })).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-ignored-fields"), Some("messages[0].prefix,messages[1].content[0].odd"));
}

#[tokio::test]
async fn unknown_fields_are_refused_by_name_if_the_operator_chose_so() {
    let mut setup = Setup::new();
    setup.settings.reject_unknown_fields = true;
    let server = setup.launch();
    let reply = server.chat("a", json!({ "frobnicate": 1 })).await;
    assert_eq!(reply.error(), (400, None, Some("frobnicate".into())));
    let options = json!({ "stream": true, "stream_options": { "odd": true } });
    let reply = server.complete("a", options).await;
    assert_eq!(reply.error(), (400, None, Some("stream_options.odd".into())));
    assert_eq!(server.chat("a", json!({ "seed": 1, "tools": null })).await.status, 200);
}

#[tokio::test]
async fn a_valid_request_id_of_the_client_is_kept() {
    let server = Setup::new().launch();
    let body = chat_body("a", json!({})).to_string();
    for (given, echoed) in [("abc-123", true), ("a b", false), (&*"x".repeat(129), false)] {
        let headers = [("x-request-id", given)];
        let reply =
            super::client::send(server.address, "POST", "/v1/chat/completions", &headers, body.as_bytes())
                .await;
        let id = reply.header("x-request-id").expect("every response has one").to_owned();
        assert_eq!(id == given, echoed, "{id}");
    }
}
