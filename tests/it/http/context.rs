//! Requests that do not fit the context, and refusals that must change nothing.

use serde_json::{Value, json};

use super::client::Connection;
use super::test_server::{Setup, TestServer, chat_body};

const LIMIT: usize = 512;

/// OpenAI's error text, which several client libraries match.
fn context_error(prompt: usize, completion: usize) -> String {
    format!(
        "This model's maximum context length is {LIMIT} tokens. However, you requested {} tokens \
         ({prompt} in the messages, {completion} in the completion). \
         Please reduce the length of the messages or completion.",
        prompt + completion
    )
}

async fn refused(server: &TestServer, path: &str, body: Value, param: &str, text: String) {
    let reply = server.post(path, body).await;
    assert_eq!(reply.error(), (400, Some("context_length_exceeded".into()), Some(param.into())));
    assert_eq!(reply.json()["error"]["message"], text);
}

#[tokio::test]
async fn a_request_over_the_context_length_is_refused_in_openais_words() {
    let server = Setup::new().launch();
    let (chat, text) = ("/v1/chat/completions", "/v1/completions");
    // The template adds one token.
    for length in [LIMIT - 1, LIMIT, 10 * LIMIT] {
        let body = chat_body(&"x".repeat(length), json!({ "stream": true }));
        refused(&server, chat, body, "messages", context_error(length + 1, 1)).await;
    }
    let body = chat_body(&"x".repeat(99), json!({ "max_tokens": 413 }));
    refused(&server, chat, body, "messages", context_error(100, 413)).await;
    let body = chat_body("x", json!({ "max_completion_tokens": 4_294_967_295_u32 }));
    refused(&server, chat, body, "messages", context_error(2, 4_294_967_295)).await;
    let body = json!({ "prompt": vec![97; 500], "max_tokens": 13 });
    refused(&server, text, body, "prompt", context_error(500, 13)).await;
    let body = json!({ "prompt": vec![97; 513], "max_tokens": 0, "echo": true });
    refused(&server, text, body, "prompt", context_error(513, 1)).await;
    // If one of several prompts does not fit, none runs.
    let body = json!({ "prompt": [[97], vec![97; 512]] });
    refused(&server, text, body, "prompt", context_error(512, 1)).await;
    assert_eq!(server.engine.stats().counts.generated_tokens, 0);
    let whole = server.chat(&"x".repeat(99), json!({ "max_tokens": 412, "ignore_eos": true })).await;
    assert_eq!(whole.json()["usage"]["total_tokens"], LIMIT);
    let scored = json!({ "prompt": vec![97; 512], "max_tokens": 0, "echo": true, "logprobs": 0 });
    assert_eq!(server.post(text, scored).await.status, 200);
}

#[tokio::test]
async fn min_tokens_must_fit_the_rest_of_the_context() {
    let server = Setup::new().launch();
    let reply = server.chat(&"x".repeat(499), json!({ "min_tokens": 13 })).await;
    assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("min_tokens".into())));
}

#[tokio::test]
async fn text_size_is_limited_before_tokenization() {
    let server = Setup::new().launch();
    let long = "x".repeat((1 << 20) + 1);
    let reply = server.chat(&long, json!({})).await;
    assert_eq!(reply.error(), (400, Some("context_length_exceeded".into()), Some("messages".into())));
    let message = reply.json()["error"]["message"].to_string();
    assert!(message.contains("maximum context length is 512 tokens. However, "), "{message}");
    // The limit is per prompt.
    let half = "x".repeat(1 << 19);
    let reply = server.complete(json!([half, half, half]), json!({})).await;
    assert_eq!(reply.json()["error"]["message"], context_error((1 << 19) + 1, 1));
}

/// Many refusals, in sequence and at once, take no block and no step.
#[tokio::test]
async fn many_refusals_change_nothing() {
    let mut setup = Setup::new();
    // The queue has room for all, so that each is refused for its own error.
    setup.config.max_queue_requests = 64 * 128;
    let server = setup.launch();
    let bad = [
        chat_body(&"x".repeat(600), json!({})),
        chat_body("x", json!({ "n": 129 })),
        chat_body("x", json!({ "max_tokens": 600, "n": 128 })),
        chat_body("x", json!({ "logit_bias": { "262": 1 } })),
    ];
    for body in &bad {
        for _ in 0..5 {
            assert_eq!(server.post("/v1/chat/completions", body.clone()).await.status, 400);
        }
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let (address, body) = (server.address, body.clone());
            clients.spawn(
                async move { super::client::post(address, "/v1/chat/completions", &body).await.status },
            );
        }
        assert!(clients.join_all().await.into_iter().all(|status| status == 400));
    }
    let stats = server.engine.stats();
    assert_eq!((stats.counts.blocks_free, stats.counts.steps), (stats.counts.blocks_total, 0));
    assert_eq!(server.get("/health/ready").await.status, 200);
}

/// Ids between the tokenizer's vocabulary and the model's padded one have no text.
#[tokio::test]
async fn ids_of_vocabulary_padding_are_refused() {
    let server = Setup::new().launch();
    for (body, param) in [
        (json!({ "prompt": [260] }), "prompt"),
        (json!({ "prompt": "a", "stop_token_ids": [263] }), "stop_token_ids"),
        (json!({ "prompt": "a", "logit_bias": { "260": 1 } }), "logit_bias"),
    ] {
        let reply = server.post("/v1/completions", body).await;
        assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some(param.into())));
    }
}

#[tokio::test]
async fn malformed_and_contradictory_heads_are_refused() {
    let server = Setup::new().launch();
    for head in [
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\
         content-length: 5\r\ncontent-length: 6\r\n\r\n{}   ",
        "GET /version HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\r\n\r\n",
        "GET\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut connection = Connection::open(server.address).await;
        connection.write(head.as_bytes()).await.expect("open");
        let answer = String::from_utf8_lossy(&connection.rest().await).into_owned();
        assert!(answer.starts_with("HTTP/1.1 4") && !answer.contains("200 OK"), "{head:?}: {answer:?}");
    }
    // With both `content-length` and chunks, the chunks count, and no part of the body is taken for a second
    // request.
    let mut both = Connection::open(server.address).await;
    let smuggled = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\
                    transfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    both.write(smuggled.as_bytes()).await.expect("open");
    assert_eq!(both.reply().await.status, 400);
    assert_eq!(server.get("/health").await.status, 200);
}
