//! The document at `/openapi.json` describes the last event of a stream: of a complete answer, and of one
//! that fails after the headers. `tests/clients/openapi.py` compares all events of complete answers with it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::test_server::{BOS, Setup, TestServer, config, merged};
use crate::fake::FakeExecutor;

/// A server whose model computes NaN for an exclamation mark.
fn launch() -> TestServer {
    let executor = FakeExecutor::new(&config()).parrot(BOS).poison(u32::from(b'!'));
    Setup::last_message().launch_with(executor)
}

/// Asks a route for a stream. Returns the data of its last event.
async fn last_event(server: &TestServer, path: &str, text: &str) -> String {
    let prompt = match path {
        "/v1/completions" => json!({ "prompt": text }),
        "/v1/responses" => json!({ "input": text }),
        _ => json!({ "messages": [{ "role": "user", "content": text }] }),
    };
    let limit = if path == "/v1/responses" { "max_output_tokens" } else { "max_tokens" };
    let reply = server.post(path, merged(prompt, json!({ limit: 3, "stream": true }))).await;
    reply.text().trim_end().rsplit("data: ").next().unwrap().to_owned()
}

/// The fields of each form that a schema allows.
fn forms(document: &Value, schema: &Value) -> Vec<BTreeSet<String>> {
    if let Some(path) = schema["$ref"].as_str() {
        return forms(document, document.pointer(path.trim_start_matches('#')).unwrap());
    }
    let own = || schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
    match schema["oneOf"].as_array() {
        Some(options) => {
            let all = options.iter().flat_map(|option| forms(document, option));
            all.map(|form| form.into_iter().chain(own()).collect()).collect()
        }
        None => vec![own().collect()],
    }
}

#[tokio::test]
async fn the_last_event_of_a_complete_and_of_a_failed_stream_is_documented() {
    let server = launch();
    let document = server.get("/openapi.json").await.json();
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"] {
        let content = &document["paths"][path]["post"]["responses"]["200"]["content"];
        let data = &content["text/event-stream"]["schema"]["properties"]["data"];
        let options = data["anyOf"].as_array().cloned().unwrap_or_else(|| vec![data.clone()]);
        let texts: Vec<_> = options.iter().filter_map(|option| option.get("const")).collect();
        let schemas = options.iter().filter_map(|option| option.get("contentSchema"));
        let forms: Vec<_> = schemas.flat_map(|schema| forms(&document, schema)).collect();
        for text in ["ab", "ab!"] {
            let last = last_event(&server, path, text).await;
            assert_eq!(last.contains("the model computed NaN"), text == "ab!", "{path}: {last}");
            let is_documented = match serde_json::from_str::<Value>(&last) {
                Ok(json) => forms.contains(&json.as_object().unwrap().keys().cloned().collect()),
                Err(_) => texts.contains(&&json!(last)),
            };
            assert!(is_documented, "{path}: {last}");
        }
    }
}
