//! Answers that follow a grammar, through the whole server. The executor repeats the prompt where the grammar
//! allows it, and else takes the next allowed byte.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::Reply;
use super::test_server::{Setup, TestServer, config};
use crate::fake::FakeExecutor;

/// The answer's text and its finish reason.
fn answer(reply: &Reply) -> (String, String) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let choice = &reply.json()["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap().to_owned();
    (text, choice["finish_reason"].as_str().unwrap().to_owned())
}

fn schema() -> Value {
    json!({ "type": "object", "properties": { "a": { "type": "integer" }, "b": { "enum": ["x", "y"] } },
        "required": ["a", "b"], "additionalProperties": false })
}

async fn chat(server: &TestServer, text: &str, more: Value) -> (String, String) {
    answer(&server.chat(text, more).await)
}

fn ended(text: &str, finish: &str) -> (String, String) {
    (text.to_owned(), finish.to_owned())
}

#[tokio::test]
async fn an_answer_follows_its_constraint_and_stops_where_it_is_complete() {
    let server = Setup::new().launch();
    let valid = r#"{"a": 12, "b": "y"}"#;
    for more in [
        json!({ "guided_json": schema() }),
        json!({ "guided_json": schema(), "ignore_eos": true }),
        json!({ "guided_json": schema(), "temperature": 1, "seed": 3, "logprobs": true, "top_logprobs": 2 }),
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": schema() } },
            "max_tokens": 100 }),
    ] {
        assert_eq!(chat(&server, valid, more.clone()).await, ended(valid, "stop"), "{more}");
    }
    let three = json!({ "regex": "[0-9]{3}" });
    assert_eq!(chat(&server, "hello", three.clone()).await, ended("000", "stop"));
    assert_eq!(chat(&server, "42 is", three).await, ended("420", "stop"));
    let choice = json!({ "structured_outputs": { "choice": ["yes", "no"] }, "ignore_eos": true });
    assert_eq!(chat(&server, "not", choice.clone()).await, ended("no", "stop"));
    let completion =
        server.complete("yes", crate::http::test_server::merged(choice, json!({ "n": 1 }))).await;
    assert_eq!(completion.json()["choices"][0]["text"], "yes");
    server.until_empty().await;
}

#[tokio::test]
async fn a_cut_answer_ends_in_length() {
    let server = Setup::new().launch();
    let cut = json!({ "guided_json": schema(), "max_tokens": 6 });
    assert_eq!(chat(&server, r#"{"a": 12}"#, cut).await, ended(r#"{"a": "#, "length"));
    // The end is allowed, and the model goes on.
    let endless = json!({ "regex": "a*", "max_tokens": 4 });
    assert_eq!(chat(&server, "aaaaaaaa", endless).await, ended("aaaa", "length"));
    // A stop string still ends an answer.
    let stop = json!({ "guided_json": schema(), "stop": [","] });
    assert_eq!(chat(&server, r#"{"a": 12, "b": "y"}"#, stop).await, ended(r#"{"a": 12"#, "stop"));
}

#[tokio::test]
async fn streams_and_choices_have_the_same_text() {
    let server = Setup::new().launch();
    let valid = r#"{"a": 7, "b": "x"}"#;
    let more = json!({ "guided_json": schema(), "n": 3, "stream": true, "logprobs": true });
    let reply = server.chat(valid, more).await;
    let mut texts = vec![String::new(); 3];
    for chunk in reply.chunks() {
        for choice in chunk["choices"].as_array().unwrap() {
            let text = choice["delta"]["content"].as_str().unwrap_or_default();
            texts[choice["index"].as_u64().unwrap() as usize].push_str(text);
        }
    }
    assert_eq!(texts, [valid; 3]);
}

#[tokio::test]
async fn a_constraint_that_cannot_be_compiled_is_a_400_that_names_the_field_and_the_fault() {
    let server = Setup::new().launch();
    for (more, param, part) in [
        (json!({ "guided_json": { "not": {} } }), "guided_json", "not"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema":
                { "schema": { "type": "array", "uniqueItems": true } } } }),
            "response_format.json_schema.schema",
            "uniqueItems",
        ),
        (json!({ "nvext": { "guided_regex": "(" } }), "nvext.guided_regex", "("),
        (json!({ "regex": "[^\\s\\S]" }), "regex", "no text"),
        (json!({ "structured_outputs": { "grammar": "start: x" } }), "structured_outputs.grammar", "x"),
    ] {
        let reply = server.chat("hi", more.clone()).await;
        assert_eq!((reply.status, reply.error().2.as_deref()), (400, Some(param)), "{more}");
        assert!(reply.text().contains(part), "{more}: {}", reply.text());
    }
    server.until_empty().await;
}

/// The server is not at fault, so the client is not asked to try again; another stream goes on.
#[tokio::test]
async fn an_answer_whose_grammar_takes_too_much_work_ends_in_an_error_of_the_request() {
    let server = Setup::new().launch();
    let alone = super::limits::stream_choices(&server).await;
    let grammar = crate::grammar::too_complex();
    let field = |stream: bool| json!({ "structured_outputs": { "grammar": grammar }, "stream": stream });
    let letters = "a".repeat(30);
    let (beside, whole, streamed) = tokio::join!(
        super::limits::stream_choices(&server),
        server.chat(&letters, field(false)),
        server.chat(&letters, field(true)),
    );
    assert_eq!(beside, alone);
    let path = Some("structured_outputs.grammar".to_owned());
    assert_eq!(whole.error(), (400, Some("invalid_value".to_owned()), path));
    let text = "the grammar became too complex within the answer: Parser Error: Current row has";
    assert!(whole.text().contains(text), "{}", whole.text());
    assert_eq!(streamed.status, 200);
    assert!(
        streamed.text().contains(text) && streamed.text().contains("invalid_request_error"),
        "{}",
        streamed.text()
    );
    server.until_empty().await;
    let metrics = server.get("/metrics").await.text().to_owned();
    let failed: Vec<&str> =
        metrics.lines().filter(|line| line.contains("finished_reason=\"error\"")).collect();
    assert!(!failed.is_empty() && failed.iter().all(|line| line.ends_with(" 0")), "{failed:?}");
}

/// Options of the grammar's library would lift the limit on whitespace, or drop keywords silently.
#[tokio::test]
async fn options_of_the_grammar_library_in_a_schema_are_refused() {
    let server = Setup::new().launch();
    for options in [json!({}), json!(1), json!({ "lenient": true }), json!({ "whitespace_pattern": " *" })] {
        let schema = json!({ "type": "object", "x-guidance": options });
        let tool = json!({ "type": "function", "function": { "name": "f", "parameters": schema } });
        for (path, more) in [
            ("guided_json", json!({ "guided_json": schema })),
            ("guided_json", json!({ "guided_json": schema.to_string() })),
            ("nvext.guided_json", json!({ "nvext": { "guided_json": schema } })),
            ("json_schema", json!({ "json_schema": schema })),
            (
                "structured_outputs.json",
                json!({ "structured_outputs": { "json": schema,
                "whitespace_pattern": " ?" } }),
            ),
            (
                "response_format.schema",
                json!({ "response_format": { "type": "json_object", "schema": schema } }),
            ),
            (
                "response_format.json_schema.schema",
                json!({ "response_format": { "type": "json_schema",
                "json_schema": { "schema": schema } } }),
            ),
            ("tools[0].function.parameters", json!({ "tools": [tool] })),
            ("tools[0].function.parameters", json!({ "tools": [tool], "tool_choice": "required" })),
        ] {
            let reply = server.chat("hi", more.clone()).await;
            assert_eq!(
                (reply.status, reply.error().2.as_deref()),
                (400, Some(path)),
                "{more}: {}",
                reply.text()
            );
            assert!(
                reply.text().contains("x-guidance: not supported in a JSON schema (at #)"),
                "{}",
                reply.text()
            );
        }
    }
    // Elsewhere it is an unknown keyword, and has no effect.
    let nested = json!({ "type": "object", "properties": { "a": { "x-guidance": 1, "type": "null" } },
        "required": ["a"], "additionalProperties": false });
    let text = r#"{"a": null}"#;
    assert_eq!(chat(&server, text, json!({ "guided_json": nested })).await, ended(text, "stop"));
    server.until_empty().await;
}

/// Constraints, good and bad, 64 at once, and clients that leave.
#[tokio::test]
async fn constrained_requests_change_no_other_stream() {
    let executor = FakeExecutor::new(&config()).delay(Duration::from_millis(1));
    let mut setup = Setup::new();
    setup.config.max_queue_requests = 200;
    let server = setup.launch_with(executor);
    let alone = super::limits::stream_choices(&server).await;
    server.until_empty().await;
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": schema() } });
    let more = |i: usize| match i % 7 {
        0 => json!({ "guided_json": schema(), "max_tokens": 20 + i }),
        1 => json!({ "regex": format!("([a-f]{{1,{}}} )+", i + 1), "max_tokens": 30 }),
        2 => json!({ "guided_json": { "not": { "type": "string" } } }),
        3 => json!({ "regex": "((a{1,500}){1,500}){1,500}", "max_tokens": 30 }),
        4 => json!({ "guided_choice": [format!("choice {i}"), "x"], "n": 2, "temperature": 1 }),
        // A call that is cut in half, and a schema that cannot be enforced.
        5 => json!({ "tools": [tool], "tool_choice": "required", "max_tokens": 20 + i % 20 }),
        _ => {
            json!({ "tools": [{ "function": { "name": "f", "parameters": { "not": {} }, "strict": true } }] })
        }
    };
    let constrained = async {
        let all = (0..64).map(|i| server.chat("guilty", more(i)));
        for (i, reply) in futures_util::future::join_all(all).await.into_iter().enumerate() {
            // The fourth kind is too large, or is cut.
            let expected = [&[200][..], &[200], &[400], &[200, 400], &[200], &[200], &[400]][i % 7];
            assert!(expected.contains(&reply.status), "{i}: {}", reply.text());
        }
    };
    let (beside, ()) = tokio::join!(super::limits::stream_choices(&server), constrained);
    assert_eq!(beside, alone);
    server.until_empty().await;
}
