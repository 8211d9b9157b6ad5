//! Server-sent events, byte for byte.

use octant::server::Settings;
use serde_json::{Value, json};
use std::time::Duration;

use super::client::{Connection, Reply};
use super::test_server::{BOS, Setup, TestServer, chat_body, config};
use crate::fake::FakeExecutor;

/// The body with id and time replaced by constants. All chunks must share them.
fn normalized(reply: &Reply) -> String {
    let chunks = reply.chunks();
    let (id, created) = (chunks[0]["id"].clone(), chunks[0]["created"].clone());
    assert!(
        chunks.iter().all(|chunk| chunk["id"] == id && chunk["created"] == created),
        "one id and one time"
    );
    let text = reply.text().replace(&id.to_string(), "\"ID\"");
    text.replace(&format!("\"created\":{created}"), "\"created\":0")
}

/// Event of a chat chunk as expected on the wire.
fn chunk(choices: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"parrot\",\
         \"choices\":[{choices}]{usage}}}\n\n"
    )
}

fn choice(index: usize, delta: &str, finish: &str) -> String {
    format!("{{\"index\":{index},\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}")
}

const ROLE: &str = "{\"role\":\"assistant\",\"content\":\"\"}";

#[tokio::test]
async fn a_chat_stream_is_role_content_finish_done() {
    let server = Setup::new().launch();
    let reply = server.chat("aéb", json!({ "stream": true })).await;
    let expected = [
        chunk(&choice(0, ROLE, "null"), ""),
        chunk(&choice(0, "{\"content\":\"a\"}", "null"), ""),
        chunk(&choice(0, "{\"content\":\"é\"}", "null"), ""),
        chunk(&choice(0, "{\"content\":\"b\"}", "null"), ""),
        chunk(&choice(0, "{}", "\"stop\""), ""),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(normalized(&reply), expected.concat());
    assert!(reply.complete);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    assert!(reply.header("x-request-id").is_some());
}

#[tokio::test]
async fn the_stream_interval_changes_no_byte() {
    let asked =
        json!({ "stream": true, "n": 3, "logprobs": true, "stream_options": { "include_usage": true } });
    let mut replies = Vec::new();
    for stream_interval in [1, 2, 7, 1000] {
        let mut setup = Setup::new();
        setup.start.stream_interval = stream_interval;
        let reply = setup.launch().chat("a longer text, said again", asked.clone()).await;
        assert!(reply.complete);
        replies.push(by_choice(&reply));
    }
    assert_eq!(replies[0].len(), 3);
    assert!(replies.iter().all(|reply| *reply == replies[0]));
}

/// Chunks of each of three choices, in order.
fn by_choice(reply: &Reply) -> Vec<Vec<Value>> {
    let mut choices = vec![Vec::new(); 3];
    for chunk in reply.chunks() {
        for choice in chunk["choices"].as_array().unwrap() {
            choices[choice["index"].as_u64().unwrap() as usize].push(choice.clone());
        }
    }
    choices
}

#[tokio::test]
async fn usage_comes_last_without_choices_and_is_null_before() {
    let server = Setup::new().launch();
    let asked = json!({ "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 1 });
    let reply = server.chat("abc", asked).await;
    let null = ",\"usage\":null";
    let usage = ",\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":1,\"total_tokens\":5,\
                 \"prompt_tokens_details\":{\"cached_tokens\":0},\
                 \"completion_tokens_details\":{\"reasoning_tokens\":0}}";
    let expected = [
        chunk(&choice(0, ROLE, "null"), null),
        chunk(&choice(0, "{\"content\":\"a\"}", "null"), null),
        chunk(&choice(0, "{}", "\"length\""), null),
        chunk("", usage),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(normalized(&reply), expected.concat());
    for options in [json!({}), json!({ "include_usage": false }), Value::Null] {
        let reply = server.chat("abc", json!({ "stream": true, "stream_options": options })).await;
        assert!(!reply.text().contains("usage"), "{options}");
    }
}

#[tokio::test]
async fn logprobs_come_with_their_text() {
    let server = Setup::new().launch();
    let reply = server.chat("é", json!({ "stream": true, "logprobs": true })).await;
    let token = |token: &str, byte: u8| {
        format!("{{\"token\":\"{token}\",\"logprob\":-1.5,\"bytes\":[{byte}],\"top_logprobs\":[]}}")
    };
    let scored = format!(
        "{{\"index\":0,\"delta\":{{\"content\":\"é\"}},\"logprobs\":{{\"content\":[{},{}],\"refusal\":null}},\
         \"finish_reason\":null}}",
        token("bytes:\\\\xc3", 195),
        token("bytes:\\\\xa9", 169),
    );
    let expected = [
        chunk(&choice(0, ROLE, "null"), ""),
        chunk(&scored, ""),
        chunk(&choice(0, "{}", "\"stop\""), ""),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(normalized(&reply), expected.concat());
}

/// For each chunk of a choice, its text and the texts of its logprobs.
fn pairs(reply: &Reply, index: u64) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for chunk in reply.chunks() {
        let choice = &chunk["choices"][0];
        let content = choice["delta"]["content"].as_str().unwrap_or_default();
        if choice["index"] == index && !(content.is_empty() && choice["logprobs"].is_null()) {
            let scored = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            let tokens: Vec<&str> = scored.iter().filter_map(|token| token["token"].as_str()).collect();
            pairs.push((content.to_owned(), tokens.concat()));
        }
    }
    pairs
}

#[tokio::test]
async fn a_possible_stop_string_is_held_back_with_its_logprobs() {
    let server = Setup::new().launch();
    let asked = json!({ "stream": true, "logprobs": true, "stop": ["cdx", "ef"] });
    let reply = server.chat("abcdef", asked).await;
    let pair = |text: &str| (text.to_owned(), text.to_owned());
    // "cd" is held back until "e" rules out "cdx". "e" is held back and then belongs to the stop string "ef".
    assert_eq!(pairs(&reply, 0), [pair("a"), pair("b"), pair("cd")]);
    let last = reply.chunks().pop().expect("chunks");
    let finish = &last["choices"][0];
    assert_eq!((&finish["delta"], &finish["finish_reason"]), (&json!({}), &json!("stop")));
    server.until_empty().await;
}

#[tokio::test]
async fn held_back_text_is_sent_at_the_end() {
    let server = Setup::new().launch();
    let asked = json!({ "stream": true, "logprobs": true, "stop": "bcx", "max_tokens": 3 });
    let pair = |text: &str| (text.to_owned(), text.to_owned());
    assert_eq!(pairs(&server.chat("abcd", asked).await, 0), [pair("a"), pair("bc")]);
    // An incomplete character at the end is sent as a replacement character.
    let asked = json!({ "stream": true, "max_tokens": 2 });
    let text: String = pairs(&server.chat("aé", asked).await, 0).into_iter().map(|(text, _)| text).collect();
    assert_eq!(text, "a\u{fffd}");
}

#[tokio::test]
async fn choices_interleave_each_with_one_role_and_one_finish() {
    let server = Setup::new().launch();
    let asked = json!({ "stream": true, "n": 2, "stream_options": { "include_usage": true } });
    let reply = server.chat("abc", asked).await;
    for index in 0..2 {
        let text: String = pairs(&reply, index).into_iter().map(|(text, _)| text).collect();
        assert_eq!(text, "abc");
        let of_choice = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let chunks = reply.chunks();
        let roles =
            chunks.iter().filter(of_choice).filter(|c| c["choices"][0]["delta"]["role"] == "assistant");
        let finishes = chunks.iter().filter(of_choice).filter(|c| c["choices"][0]["finish_reason"] == "stop");
        assert_eq!((roles.count(), finishes.count()), (1, 1));
    }
    let usages: Vec<Value> = reply
        .chunks()
        .into_iter()
        .map(|chunk| chunk["usage"].clone())
        .filter(|usage| !usage.is_null())
        .collect();
    assert_eq!(usages.len(), 1);
    assert_eq!((&usages[0]["prompt_tokens"], &usages[0]["completion_tokens"]), (&json!(4), &json!(8)));
}

#[tokio::test]
async fn a_text_completion_streams_text_completion_objects() {
    let server = Setup::new().launch();
    let reply = server.complete("ab", json!({ "stream": true, "max_tokens": 1, "echo": true })).await;
    let chunk = |text: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"ID\",\"object\":\"text_completion\",\"created\":0,\"model\":\"parrot\",\
             \"choices\":[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":null,\
             \"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let expected = [chunk("aba", "null"), chunk("", "\"length\""), "data: [DONE]\n\n".to_owned()];
    assert_eq!(normalized(&reply), expected.concat());
}

/// Every byte is a token, so every chunk could end within a character.
#[tokio::test]
async fn characters_are_never_split_over_events() {
    let server = Setup::new().launch();
    let text = "aé漢字🦀e\u{301}👩‍👩‍👧z";
    for split in text.char_indices().map(|(at, _)| at) {
        let reply = server.chat(&text[split..], json!({ "stream": true })).await;
        let deltas = pairs(&reply, 0);
        let joined: String = deltas.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(joined, text[split..]);
        assert!(deltas.iter().all(|(delta, _)| !delta.contains('\u{fffd}')));
    }
}

#[tokio::test]
async fn headers_precede_the_first_token_and_the_role_comes_with_it() {
    let (executor, permits) = FakeExecutor::new(&config()).parrot(BOS).gated();
    let server = Setup::new().launch_with(executor);
    let mut connection = Connection::open(server.address).await;
    let body = chat_body("abc", json!({ "stream": true })).to_string();
    connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    let head = connection.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let nothing = tokio::time::timeout(Duration::from_millis(100), connection.until("data: ")).await;
    assert!(nothing.is_err(), "no event comes before the first token");
    permits.send(()).expect("the engine runs");
    let first = connection.until("\n\n").await;
    assert!(first.contains("\"delta\":{\"role\":\"assistant\",\"content\":\"\"}"), "{first}");
    drop(permits);
    connection.until("data: [DONE]").await;
}

/// Starts a gated server whose streams send a comment after 20 ms of silence.
fn silent_server() -> (TestServer, flume::Sender<()>) {
    let (executor, permits) = FakeExecutor::new(&config()).parrot(BOS).gated();
    let mut setup = Setup::new();
    setup.settings = Settings::new("parrot", vec![257]);
    setup.settings.http.keep_alive = Duration::from_millis(20);
    (setup.launch_with(executor), permits)
}

#[tokio::test]
async fn a_silent_stream_sends_comments_and_loses_no_chunk() {
    let (server, permits) = silent_server();
    let mut connection = Connection::open(server.address).await;
    let body = chat_body("abc", json!({ "stream": true })).to_string();
    connection.request("POST", "/v1/chat/completions", &[], body.as_bytes()).await;
    for _ in 0..3 {
        connection.until(": keep-alive\n\n").await;
    }
    drop(permits);
    let rest = connection.until("data: [DONE]\n\n").await;
    for letter in ["a", "b", "c"] {
        assert_eq!(rest.matches(&format!("{{\"content\":\"{letter}\"}}")).count(), 1, "{rest}");
    }
}
