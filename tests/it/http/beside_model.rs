//! A stream of a real model on the device, beside constraints and tools, good and bad, 64 at once, and
//! clients that leave: it keeps its bits.

use std::cell::Cell;

use serde_json::{Value, json};

use super::client::Connection;
use super::test_server::{Setup, TestServer, chat_body, merged};
use crate::device::model::{fixture, runner};

/// A template that shows the user's messages only: descriptions of tools would fill the context.
const USER_ONLY: &str =
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}<|eos|>";
const TOKENS: usize = 60;

/// Streams a completion and returns everything that no other request may change. Which tokens share a chunk
/// is not part of it.
async fn stream(server: &TestServer, salt: &str, more: Value) -> Value {
    let prompt: Vec<usize> = (0..40).map(|i| 3 + i * 37 % 250).collect();
    let body = json!({ "prompt": prompt, "max_tokens": TOKENS, "logprobs": 5, "ignore_eos": true,
        "return_token_ids": true, "stream": true, "cache_salt": salt });
    let reply = server.post("/v1/completions", merged(body, more)).await;
    assert!(reply.complete && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    let (mut text, mut columns) = (String::new(), [const { Vec::new() }; 4]);
    for chunk in reply.chunks() {
        let choice = &chunk["choices"][0];
        text.push_str(choice["text"].as_str().unwrap_or_default());
        let logprobs = &choice["logprobs"];
        let parts = [
            &choice["token_ids"],
            &logprobs["tokens"],
            &logprobs["token_logprobs"],
            &logprobs["top_logprobs"],
        ];
        for (column, part) in columns.iter_mut().zip(parts) {
            column.extend(part.as_array().cloned().unwrap_or_default());
        }
    }
    assert!(columns.iter().all(|column| column.len() == TOKENS), "{columns:?}");
    json!([text, columns])
}

/// A greedy stream and a random one with penalties.
async fn streams(server: &TestServer, salt: &str) -> (Value, Value) {
    let other_salt = format!("{salt}, random");
    let random = json!({ "temperature": 0.9, "top_p": 0.95, "seed": 5, "repetition_penalty": 1.1 });
    tokio::join!(stream(server, salt, json!({ "temperature": 0 })), stream(server, &other_salt, random))
}

fn schema() -> Value {
    json!({ "type": "object", "properties": { "a": { "type": "integer" }, "b": { "enum": ["x", "y"] } },
        "required": ["a", "b"], "additionalProperties": false })
}

/// The fields of one of the other requests, and the statuses that it may get; none if the client leaves.
fn other(i: usize) -> (Value, &'static [u16]) {
    let tool = |parameters: Value, strict: bool| {
        let function = json!({ "name": "f", "parameters": parameters, "strict": strict });
        json!([{ "type": "function", "function": function }])
    };
    let choice = json!([format!("choice {i}"), "x"]);
    match i % 8 {
        0 => (json!({ "guided_json": schema(), "max_tokens": 6 + i % 9 }), &[200]),
        1 => (json!({ "regex": format!("([a-f]{{1,{}}} )+", i + 1), "max_tokens": 10 }), &[200]),
        2 => (json!({ "guided_json": { "type": "array", "uniqueItems": true, "not": {} } }), &[400]),
        // A bomb that may be compiled step by step, and one that is too large.
        3 if i % 16 == 3 => (json!({ "regex": "((a{1,500}){1,500}){1,500}", "max_tokens": 10 }), &[200, 400]),
        3 => (json!({ "regex": "(a|b)?".repeat(1366), "max_tokens": 10 }), &[400]),
        4 => (json!({ "guided_choice": choice, "n": 2, "temperature": 1, "max_tokens": 5 }), &[200]),
        // The call's head has 39 bytes, which are tokens here: it is cut off in its arguments.
        5 => {
            let more = json!({ "tool_choice": "required", "max_tokens": 42 + i % 3, "seed": i });
            (merged(more, json!({ "tools": tool(schema(), true) })), &[200])
        }
        6 => (json!({ "tools": tool(json!({ "not": {} }), true) }), &[400]),
        _ => (json!({ "guided_json": schema(), "stream": true, "n": 3, "temperature": 1, "seed": i }), &[]),
    }
}

/// Sends 64 requests at once.
async fn others(server: &TestServer) {
    let one = async |i: usize| {
        let (more, expected) = other(i);
        if expected.is_empty() {
            let mut leaving = Connection::open(server.address).await;
            let body = chat_body("guilty", more).to_string();
            leaving.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
            leaving.until("\"content\":\"").await;
            return;
        }
        let reply = server.chat("guilty", more).await;
        assert!(expected.contains(&reply.status), "{i}: {}", reply.text());
        if i % 8 == 5 {
            let choice = reply.json()["choices"][0].clone();
            let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].clone();
            let cut = arguments.as_str().is_some_and(|text| text.starts_with('{') && !text.ends_with('}'));
            assert!(choice["finish_reason"] == "length" && cut, "{choice}");
        }
    };
    futures_util::future::join_all((0..64).map(one)).await;
}

#[tokio::test]
async fn a_real_models_streams_keep_their_bits_beside_64_constrained_requests() {
    let model = fixture("nemotron");
    let mut setup = Setup { template: USER_ONLY, ..Setup::new() };
    setup.config.vocab_size = 384;
    setup.config.max_model_len = 256;
    setup.config.max_num_seqs = 16;
    setup.config.max_queue_requests = 500;
    let runner = runner(&model, &setup.config);
    let server = setup.launch_with(runner);
    let alone = streams(&server, "alone").await;
    server.until_empty().await;
    let ended = Cell::new(false);
    let all_the_time = async {
        while !ended.get() {
            others(&server).await;
        }
    };
    let innocent = async {
        server.until(|stats| stats.counts.running > 2).await;
        let beside = streams(&server, "beside").await;
        ended.set(true);
        beside
    };
    let (beside, ()) = tokio::join!(innocent, all_the_time);
    assert!(beside == alone, "{beside:#?}, alone {alone:#?}");
    server.until_empty().await;
    assert_eq!(server.get("/health/ready").await.status, 200);
}
