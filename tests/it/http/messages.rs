//! `/v1/messages` and `/v1/messages/count_tokens`: turns, tools, replies, the events of streams and errors,
//! over an executor that repeats the prompt.

use serde_json::{Value, json};

use super::client::{Reply, send};
use super::test_server::{BOS, Setup, TestServer, config, merged};
use crate::fake::FakeExecutor;

const MESSAGES: &str = "/v1/messages";

fn body(text: &str, more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": text }]);
    merged(json!({ "model": "parrot", "max_tokens": 300, "messages": messages }), more)
}

async fn say(server: &TestServer, text: &str, more: Value) -> Reply {
    server.post(MESSAGES, body(text, more)).await
}

fn weather() -> Value {
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!([{ "name": "weather", "description": "d", "input_schema": schema }])
}

fn call(city: &str) -> String {
    format!("<tool_call>{{\"name\": \"weather\", \"arguments\": {{\"city\": \"{city}\"}}}}</tool_call>")
}

/// Status, type and text of an error.
fn error(reply: &Reply) -> (u16, String, String) {
    let json = reply.json();
    assert_eq!(json["type"], "error", "{json}");
    assert_eq!(json["request_id"].as_str(), reply.header("request-id"));
    let text =
        |name: &str| json["error"][name].as_str().unwrap_or_else(|| panic!("no {name}: {json}")).to_owned();
    (reply.status, text("type"), text("message"))
}

/// The reply without ids, which are checked.
fn plain(mut reply: Value) -> Value {
    let id = reply["id"].take();
    assert!(id.as_str().is_some_and(|id| id.starts_with("msg_")), "{id}");
    for block in reply["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            assert!(block["id"].take().as_str().is_some_and(|id| id.starts_with("toolu_")), "{block}");
        }
    }
    reply
}

#[tokio::test]
async fn a_whole_message_has_every_field() {
    let server = Setup::new().launch();
    let reply = say(&server, "hello", json!({})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.header("request-id").is_some_and(|id| Some(id) == reply.header("x-request-id")));
    assert_eq!(
        plain(reply.json()),
        json!({
            "id": null, "type": "message", "role": "assistant", "model": "parrot",
            "content": [{ "type": "text", "text": "hello" }],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": { "input_tokens": 5, "output_tokens": 5, "cache_read_input_tokens": 0,
                       "cache_creation_input_tokens": 0 },
        })
    );
}

#[tokio::test]
async fn a_message_says_why_it_ended() {
    let server = Setup::last_message().launch();
    let ended = |reply: Reply| {
        let reply = reply.json();
        let text = reply["content"][0]["text"].as_str().unwrap_or_default().to_owned();
        (text, reply["stop_reason"].clone(), reply["stop_sequence"].clone())
    };
    let end = |text: &str, reason: &str, sequence: Value| (text.to_owned(), json!(reason), sequence);
    let reply = say(&server, "abcdef", json!({ "max_tokens": 3 })).await;
    assert_eq!(ended(reply), end("abc", "max_tokens", Value::Null));
    let stops = json!({ "stop_sequences": ["zz", "de"] });
    assert_eq!(ended(say(&server, "abcdef", stops.clone()).await), end("abc", "stop_sequence", json!("de")));
    let events = say(&server, "abcdef", merged(stops, json!({ "stream": true }))).await.named_events();
    let delta = &events[events.len() - 2].1["delta"];
    assert_eq!(delta, &json!({ "stop_reason": "stop_sequence", "stop_sequence": "de" }));
    assert_eq!(ended(say(&server, "", json!({})).await), end("", "end_turn", Value::Null));
    // A limit beyond the context is allowed: the answer ends where the context does.
    let more = json!({ "max_tokens": 100_000, "ignore_eos": true });
    assert_eq!(say(&server, "ab", more).await.json()["stop_reason"], "model_context_window_exceeded");
}

#[tokio::test]
async fn turns_and_blocks_become_messages() {
    let mut setup = Setup::new();
    setup.template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}<|eos|>";
    let server = setup.launch();
    let send = |more: Value| server.post(MESSAGES, merged(json!({ "max_tokens": 400 }), more));
    let text = |reply: Reply| {
        assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, None), "{}", reply.text());
        reply.json()["content"][0]["text"].as_str().unwrap().to_owned()
    };
    let cached = json!({ "type": "ephemeral" });
    let reply = send(json!({
        "system": [{ "type": "text", "text": "s", "cache_control": cached }],
        "cache_control": cached,
        "messages": [
            { "role": "user", "content": "a" },
            { "role": "user", "content": [{ "type": "text", "text": "b" }] },
            { "role": "assistant", "content": [{ "type": "thinking", "thinking": "t", "signature": "x" },
                                               { "type": "text", "text": "c", "citations": null }] },
            { "role": "user", "content": [{ "type": "text", "text": "d", "cache_control": cached }] },
        ],
    }))
    .await;
    assert_eq!(text(reply), "system=s;user=a\nb;assistant=c;user=d;");
    // This template shows no tools, so calls and results become text.
    let reply = send(json!({
        "messages": [
            { "role": "user", "content": "q" },
            { "role": "assistant", "content": [
                { "type": "text", "text": "hm" },
                { "type": "tool_use", "id": "t1", "name": "f", "input": { "city": "Rome" } },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "t1", "content": "sun" },
                { "type": "tool_result", "tool_use_id": "t2", "is_error": true,
                  "content": [{ "type": "text", "text": "lost" }] },
                { "type": "text", "text": "go on" },
            ] },
        ],
    }))
    .await;
    let expected = "user=q;assistant=hm\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\":\"Rome\"}}\n\
                    </tool_call>;user=<tool_response>\nsun\n</tool_response>\n<tool_response>\nError: lost\n\
                    </tool_response>\ngo on;";
    assert_eq!(text(reply), expected);
}

#[tokio::test]
async fn an_answer_continues_a_last_message_of_the_assistant() {
    let mut setup = Setup::new();
    setup.template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}\
                      {% if add_generation_prompt %}A{% endif %}";
    let server = setup.launch();
    let turns =
        |last: Value| json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": last }]);
    let count = |messages: Value| {
        let body = json!({ "messages": messages });
        let server = &server;
        async move {
            let reply = server.post("/v1/messages/count_tokens", body).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json()["input_tokens"].as_u64().unwrap()
        }
    };
    // The end of the assistant's turn and the next turn's beginning are left out.
    assert_eq!(count(turns(json!("abc"))).await, 5);
    assert_eq!(count(json!([{ "role": "user", "content": "q" }])).await, 3);
    assert_eq!(count(turns(json!(""))).await, 3, "an empty beginning is none");
    let call = json!([{ "type": "tool_use", "id": "t", "name": "f", "input": {} }]);
    let reply = server.post(MESSAGES, json!({ "max_tokens": 5, "messages": turns(call) })).await;
    assert!(error(&reply).2.starts_with("messages[1]: expected a message with tool_result"));
}

#[tokio::test]
async fn a_stream_has_every_event_in_order() {
    let server = Setup::last_message().launch();
    let input = format!("hm {}{}", call("Rome"), call("Oslo"));
    let reply = say(&server, &input, json!({ "stream": true, "tools": weather() })).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert!(reply.complete && !reply.text().contains("[DONE]"));
    let mut events = reply.named_events();
    assert!(events.iter().all(|(name, event)| event["type"] == name.as_str()));
    events.retain(|(name, _)| name != "ping");
    let mut order: Vec<(&str, Option<u64>)> =
        events.iter().map(|(name, event)| (name.as_str(), event["index"].as_u64())).collect();
    order.dedup();
    let block = |index| {
        ["content_block_start", "content_block_delta", "content_block_stop"].map(|name| (name, Some(index)))
    };
    let mut expected = vec![("message_start", None)];
    expected.extend((0..3).flat_map(block));
    expected.extend([("message_delta", None), ("message_stop", None)]);
    assert_eq!(order, expected);
    let start = events[0].1["message"].clone();
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(start["usage"]["output_tokens"], 0);
    let joined = |index: u64, field: &str| -> String {
        let of = |(_, event): &&(String, Value)| event["index"] == index;
        events.iter().filter(of).filter_map(|(_, event)| event["delta"][field].as_str()).collect()
    };
    assert_eq!(joined(0, "text"), "hm");
    assert_eq!(joined(1, "partial_json"), "{\"city\": \"Rome\"}");
    assert_eq!(joined(2, "partial_json"), "{\"city\": \"Oslo\"}");
    let starts: Vec<&Value> = events
        .iter()
        .filter(|(name, _)| name == "content_block_start")
        .map(|(_, event)| &event["content_block"])
        .collect();
    assert_eq!(starts[0], &json!({ "type": "text", "text": "" }));
    assert_eq!((&starts[1]["name"], &starts[1]["input"]), (&json!("weather"), &json!({})));
    assert_ne!(starts[1]["id"], starts[2]["id"]);
    let delta = &events[events.len() - 2].1;
    assert_eq!(delta["delta"], json!({ "stop_reason": "tool_use", "stop_sequence": null }));
    let whole = plain(say(&server, &input, json!({ "tools": weather() })).await.json());
    let tool =
        |city: &str| json!({ "type": "tool_use", "id": null, "name": "weather", "input": { "city": city } });
    assert_eq!(whole["content"], json!([{ "type": "text", "text": "hm" }, tool("Rome"), tool("Oslo")]));
    assert_eq!(whole["stop_reason"], "tool_use");
    assert_eq!(whole["usage"]["output_tokens"], delta["usage"]["output_tokens"]);
    let tokens = |usage: &Value| {
        usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(&whole["usage"]), tokens(&delta["usage"]));
    assert!(whole["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 0, "the prompt came twice");
}

#[tokio::test]
async fn every_tool_choice_does_what_it_says() {
    let server = Setup::last_message().launch();
    let answer = |choice: Value, text: String| {
        let server = &server;
        async move {
            let more = json!({ "tools": weather(), "tool_choice": choice, "max_tokens": 200 });
            let reply = say(server, &text, more).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let blocks = reply.json()["content"].as_array().unwrap().clone();
            blocks.iter().map(|block| block["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    let two = format!("{}{}", call("A"), call("B"));
    assert_eq!(answer(json!({ "type": "auto" }), two.clone()).await, ["tool_use", "tool_use"]);
    assert_eq!(answer(json!({ "type": "auto" }), "no".to_owned()).await, ["text"]);
    assert_eq!(answer(json!({ "type": "none" }), two.clone()).await, ["text"]);
    assert_eq!(answer(json!({ "type": "any" }), "no".to_owned()).await[0], "tool_use");
    assert_eq!(answer(json!({ "type": "tool", "name": "weather" }), "no".to_owned()).await[0], "tool_use");
    let one = json!({ "type": "any", "disable_parallel_tool_use": true });
    assert_eq!(answer(one, two).await, ["tool_use"]);
}

#[tokio::test]
async fn a_call_that_is_cut_off_keeps_its_complete_members() {
    let server = Setup::last_message().launch();
    let text =
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"a,b\", \"n\": [1, 2], \"day\": \"Mon";
    let most = text.len() as u64;
    let cut = |max_tokens: u64| {
        let server = &server;
        async move {
            let reply =
                say(server, text, json!({ "tools": weather(), "max_tokens": max_tokens })).await.json();
            assert_eq!(reply["stop_reason"], "max_tokens", "{reply}");
            reply["content"][0]["input"].clone()
        }
    };
    assert_eq!(cut(most - 2).await, json!({ "city": "a,b", "n": [1, 2] }));
    assert_eq!(cut(most - 20).await, json!({ "city": "a,b" }));
    assert_eq!(cut(most - 36).await, json!({}));
}

#[tokio::test]
async fn the_answer_follows_output_config() {
    let server = Setup::last_message().launch();
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"],
                         "additionalProperties": false });
    let format = json!({ "type": "json_schema", "schema": schema });
    let reply = say(&server, "{\"a\": 12, \"b\"", json!({ "output_config": { "format": format } })).await;
    let text = reply.json()["content"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with("{\"a\": 12") && !text.contains("\"b\""), "{text}");
}

#[tokio::test]
async fn fields_that_cannot_be_served_are_refused_by_name() {
    let server = Setup::last_message().launch();
    let block = |role: &str, block: Value| json!({ "messages": [{ "role": role, "content": [block] }] });
    let image = json!({ "type": "image", "source": { "type": "url", "url": "x" } });
    let result = |content: Value| json!({ "type": "tool_result", "tool_use_id": "t", "content": content });
    let tool = |tool: Value| json!({ "tools": [tool] });
    for (more, param) in [
        (json!({ "max_tokens": null }), "max_tokens"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": null }), "messages"),
        (json!({ "messages": [{ "role": "tool", "content": "a" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user", "content": 7 }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "user", "content": [] }] }), "messages"),
        (block("user", image.clone()), "messages[0].content[0].type"),
        (block("user", json!({ "type": "document" })), "messages[0].content[0].type"),
        (block("user", json!({ "type": "tool_use", "id": "t", "name": "f" })), "messages[0].content[0].type"),
        (block("user", json!({ "text": "a" })), "messages[0].content[0].type"),
        (block("user", result(json!([image]))), "messages[0].content[0].content[0].type"),
        (block("user", json!({ "type": "tool_result" })), "messages[0].content[0].tool_use_id"),
        (block("assistant", json!({ "type": "tool_use", "id": "t" })), "messages[0].content[0].name"),
        (block("assistant", json!({ "type": "server_tool_use" })), "messages[0].content[0].type"),
        (json!({ "system": 7 }), "system"),
        (json!({ "system": [{ "type": "image" }] }), "system[0].type"),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } }), "thinking.type"),
        (json!({ "stop_sequences": "a" }), "stop_sequences"),
        (json!({ "stop_sequences": [7] }), "stop_sequences"),
        (json!({ "stop_sequences": ["a".repeat(2000)] }), "stop_sequences"),
        (json!({ "stop": ["a"] }), "stop"),
        (json!({ "n": 2 }), "n"),
        (json!({ "container": "c" }), "container"),
        (json!({ "mcp_servers": [{}] }), "mcp_servers"),
        (json!({ "metadata": { "user_id": 7 } }), "metadata.user_id"),
        (json!({ "top_k": -2 }), "top_k"),
        (tool(json!({ "type": "web_search_20250305", "name": "web_search" })), "tools[0].type"),
        (tool(json!({ "name": "f" })), "tools[0].input_schema"),
        (tool(json!({ "input_schema": {} })), "tools[0].name"),
        (
            tool(json!({ "name": "f", "strict": true,
                        "input_schema": { "properties": { "a": { "not": {} } } } })),
            "tools: tools[0].input_schema",
        ),
        (json!({ "tools": [weather()[0], weather()[0]] }), "tools[1].name"),
        (json!({ "tools": weather(), "tool_choice": { "type": "tool" } }), "tool_choice.name"),
        (json!({ "tools": weather(), "tool_choice": { "type": "tool", "name": "g" } }), "tool_choice.name"),
        (json!({ "tools": weather(), "tool_choice": { "type": "some" } }), "tool_choice.type"),
        (json!({ "tools": weather(), "tool_choice": "auto" }), "tool_choice"),
        (json!({ "output_config": { "format": { "type": "json_schema" } } }), "output_config.format.schema"),
        (
            json!({ "output_config": { "format": { "type": "json_schema", "schema": { "not": {} } } } }),
            "output_config.format.schema",
        ),
        (
            json!({ "guided_regex": "a",
                    "output_config": { "format": { "type": "json_schema", "schema": {} } } }),
            "guided_regex",
        ),
    ] {
        let reply = say(&server, "a", more.clone()).await;
        let (status, kind, text) = error(&reply);
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{more}: {text}");
        assert!(
            text.starts_with(&format!("{param}: ")) || text.starts_with(&format!("{param}.")),
            "{more}: {text}"
        );
    }
    server.until_empty().await;
}

#[tokio::test]
async fn fields_without_effect_are_named() {
    let server = Setup::last_message().launch();
    let more =
        json!({ "output_config": { "effort": "low" }, "speed": "fast", "service_tier": "standard_only" });
    let reply = say(&server, "a", more).await;
    let mut names: Vec<&str> = reply.header("x-ignored-fields").unwrap().split(',').collect();
    names.sort_unstable();
    assert_eq!(names, ["output_config.effort", "service_tier", "speed"]);
    let harmless = json!({
        "system": "s", "metadata": { "user_id": "u" }, "thinking": { "type": "disabled" }, "tools": [],
        "service_tier": "auto", "stop_sequences": [], "temperature": 1, "top_p": 1, "top_k": 5,
        "stream": false,
    });
    let reply = say(&server, "a", harmless).await;
    assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, None), "{}", reply.text());
}

#[tokio::test]
async fn errors_have_the_form_of_the_api_wherever_they_arise() {
    let mut setup = Setup::last_message();
    setup.settings.api_key = Some("secret".to_owned());
    let server = setup.launch();
    let json = body("a", json!({})).to_string();
    let post = |path: &'static str, headers: Vec<(&'static str, &'static str)>, body: String| {
        let address = server.address;
        async move { send(address, "POST", path, &headers, body.as_bytes()).await }
    };
    let reply = post(MESSAGES, vec![("x-api-key", "wrong")], json.clone()).await;
    assert_eq!((error(&reply).0, error(&reply).1.as_str()), (401, "authentication_error"));
    let key = ("x-api-key", "secret");
    let reply = post(MESSAGES, vec![key, ("anthropic-version", "2023-06-01")], json.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let other = body("a", json!({ "model": "other" })).to_string();
    for path in [MESSAGES, "/v1/messages/count_tokens"] {
        let reply = post(path, vec![key], other.clone()).await;
        assert_eq!((error(&reply).0, error(&reply).1.as_str()), (404, "not_found_error"), "{path}");
        let reply = post(path, vec![key], "{".to_owned()).await;
        assert_eq!((error(&reply).0, error(&reply).1.as_str()), (400, "invalid_request_error"), "{path}");
    }
    let reply = post("/v1/messages/batches", vec![key], json.clone()).await;
    assert_eq!((error(&reply).0, error(&reply).1.as_str()), (404, "not_found_error"));
    let reply = send(server.address, "GET", MESSAGES, &[key], b"").await;
    assert_eq!((error(&reply).0, error(&reply).1.as_str()), (405, "invalid_request_error"));
    // Other routes keep OpenAI's form.
    assert_eq!(post("/v1/chat/completions", vec![key], "{".to_owned()).await.error().0, 400);
}

#[tokio::test]
async fn a_failure_after_the_headers_is_an_error_event() {
    let executor = FakeExecutor::new(&config()).parrot(BOS).poison(u32::from(b'!'));
    let server = Setup::last_message().launch_with(executor);
    let reply = say(&server, "ab!", json!({ "stream": true })).await;
    assert!(!reply.complete, "no client takes it for a complete message");
    let events = reply.named_events();
    let (name, event) = events.last().unwrap();
    assert_eq!((name.as_str(), &event["error"]["type"]), ("error", &json!("api_error")));
    let whole = say(&server, "ab!", json!({})).await;
    assert_eq!((error(&whole).0, error(&whole).1.as_str()), (500, "api_error"));
    server.until_empty().await;
}

#[tokio::test]
async fn tokens_are_counted_as_a_message_would_use_them() {
    let server = Setup::last_message().launch();
    for more in [json!({}), json!({ "system": "be brief", "tools": weather() })] {
        let used = say(&server, "hello", more.clone()).await.json()["usage"].clone();
        let mut body = body("hello", more);
        body.as_object_mut().unwrap().remove("max_tokens");
        let reply = server.post("/v1/messages/count_tokens", body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let used = used["input_tokens"].as_u64().unwrap() + used["cache_read_input_tokens"].as_u64().unwrap();
        assert_eq!(reply.json(), json!({ "input_tokens": used }));
    }
}
