//! `/v1/responses`: inputs, tools, replies and the events of streams, over an executor that repeats the
//! prompt.

use serde_json::{Value, json};

use super::client::Reply;
use super::test_server::{BOS, Setup, TestServer, config, merged};
use crate::fake::FakeExecutor;

async fn respond(server: &TestServer, input: impl Into<Value>, more: Value) -> Reply {
    server.post("/v1/responses", merged(json!({ "input": input.into() }), more)).await
}

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!([{ "type": "function", "name": "weather", "parameters": parameters, "strict": false }])
}

/// The reply without ids and times, which are checked.
fn plain(mut reply: Value) -> Value {
    let id = reply["id"].take();
    assert!(id.as_str().is_some_and(|id| id.starts_with("resp_") && id.len() == 37), "{id}");
    assert!(reply["created_at"].take().is_u64());
    if reply["status"] == "completed" {
        assert!(reply["completed_at"].take().is_u64());
    }
    for item in reply["output"].as_array_mut().unwrap() {
        let prefix = if item["type"] == "message" { "msg_" } else { "fc_" };
        assert!(item["id"].take().as_str().is_some_and(|id| id.starts_with(prefix)), "{item}");
        if item["type"] == "function_call" {
            assert!(item["call_id"].take().as_str().is_some_and(|id| id.starts_with("call_")), "{item}");
        }
    }
    reply
}

fn message(text: &str, status: &str) -> Value {
    let part = json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] });
    json!({ "type": "message", "id": null, "status": status, "role": "assistant", "content": [part] })
}

fn call(name: &str, arguments: &str, status: &str) -> Value {
    json!({ "type": "function_call", "id": null, "call_id": null, "status": status, "name": name,
            "arguments": arguments })
}

#[tokio::test]
async fn a_whole_response_has_every_field() {
    let server = Setup::new().launch();
    let reply = respond(&server, "hello", json!({ "model": "parrot", "temperature": 0.5 })).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(
        plain(reply.json()),
        json!({
            "id": null, "object": "response", "created_at": null, "completed_at": null,
            "status": "completed", "error": null, "incomplete_details": null, "model": "parrot",
            "output": [message("hello", "completed")],
            "usage": { "input_tokens": 5,
                       "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
                       "output_tokens": 5, "output_tokens_details": { "reasoning_tokens": 0 },
                       "total_tokens": 10 },
            "instructions": null, "max_output_tokens": null, "metadata": {}, "parallel_tool_calls": true,
            "temperature": 0.5, "top_p": 1.0, "top_logprobs": 0, "text": { "format": { "type": "text" } },
            "tool_choice": "auto", "tools": [], "user": null, "prompt_cache_key": null,
            "safety_identifier": null, "truncation": "disabled", "store": false, "background": false,
            "previous_response_id": null, "max_tool_calls": null, "reasoning": null,
            "service_tier": "default",
        })
    );
}

#[tokio::test]
async fn a_response_repeats_the_fields_of_its_request() {
    let server = Setup::last_message().launch();
    let format =
        json!({ "type": "json_schema", "name": "n", "strict": true, "schema": { "type": "object" } });
    let more = json!({
        "instructions": "be brief", "max_output_tokens": 9, "metadata": { "a": "b" }, "tools": weather(),
        "tool_choice": "none", "parallel_tool_calls": false, "top_p": 0.5, "user": "u", "top_logprobs": 2,
        "text": { "format": format }, "prompt_cache_key": "k", "safety_identifier": "s",
    });
    let reply = respond(&server, "{}", more.clone()).await.json();
    for (name, value) in more.as_object().unwrap() {
        let mut expected = value.clone();
        if name == "tools" {
            expected[0]["description"] = Value::Null;
        }
        assert_eq!(reply[name], expected, "{name}");
    }
}

#[tokio::test]
async fn items_of_every_kind_become_messages() {
    let mut setup = Setup::new();
    setup.template = "{% for m in messages %}{{ m.role }}={{ m.content }}\
                      {% for c in m.tool_calls or [] %}+{{ c.function.name }}{{ c.function.arguments.city }}\
                      {% endfor %};{% endfor %}<|eos|>";
    let server = setup.launch();
    let text = |reply: Reply| reply.json()["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    let input = json!([
        { "role": "user", "content": "a" },
        { "type": "message", "role": "developer", "content": [{ "type": "input_text", "text": "b" }] },
        { "type": "reasoning", "id": "rs_1", "summary": [] },
        { "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
          "content": [{ "type": "output_text", "text": "c", "annotations": [], "logprobs": [] }] },
        { "role": "user", "content": [{ "type": "input_text", "text": "d" },
                                      { "type": "input_text", "text": "e" }] },
    ]);
    let reply = respond(&server, input, json!({ "instructions": "i" })).await;
    assert_eq!(reply.header("x-ignored-fields"), None);
    assert_eq!(text(reply), "system=i;user=a;system=b;assistant=c;user=d\ne;");
    // This template shows no tools, so calls and outputs become text.
    let input = json!([
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": "hm" },
        { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"city\": \"Rome\"}" },
        { "type": "function_call", "id": "fc", "call_id": "c2", "name": "g", "arguments": "",
          "status": "completed" },
        { "type": "function_call_output", "call_id": "c1", "output": "sun" },
        { "type": "function_call_output", "call_id": "c2",
          "output": [{ "type": "input_text", "text": "rain" }] },
    ]);
    let reply = respond(&server, input, json!({})).await;
    assert_eq!(reply.header("x-ignored-fields"), None);
    let expected = "user=q;assistant=hm\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\":\"Rome\"}}\n\
                    </tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>;\
                    user=<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>;";
    assert_eq!(text(reply), expected);
}

#[tokio::test]
async fn a_stream_has_every_event_in_order_with_its_number() {
    let server = Setup::last_message().launch();
    let input = "hm <tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";
    let reply = respond(&server, input, json!({ "stream": true, "tools": weather() })).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert!(reply.complete && !reply.text().contains("[DONE]"));
    let events = reply.named_events();
    for (number, (name, event)) in events.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(number)));
    }
    let mut order: Vec<&str> =
        events.iter().map(|(name, _)| name.strip_prefix("response.").unwrap()).collect();
    order.dedup();
    assert_eq!(
        order,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let all = |kind: &str| -> Vec<&Value> {
        events.iter().filter(|(name, _)| name == kind).map(|(_, event)| event).collect()
    };
    let joined =
        |kind: &str| -> String { all(kind).iter().filter_map(|event| event["delta"].as_str()).collect() };
    assert_eq!(joined("response.output_text.delta"), "hm");
    assert_eq!(joined("response.function_call_arguments.delta"), "{\"city\": \"Rome\"}");
    assert!(all("response.function_call_arguments.delta").len() > 1, "arguments come in pieces");
    let created = &all("response.created")[0]["response"];
    assert_eq!((&created["status"], &created["output"]), (&json!("in_progress"), &json!([])));
    let [text, call_item] = all("response.output_item.done")[..] else { panic!("two items") };
    let completed = all("response.completed")[0]["response"].clone();
    assert_eq!(completed["output"], json!([text["item"], call_item["item"]]));
    assert_eq!(completed["id"], created["id"]);
    for (kind, index) in [("output_text.delta", 0), ("function_call_arguments.delta", 1)] {
        for event in all(&format!("response.{kind}")) {
            assert_eq!(event["output_index"], index);
            assert_eq!(event["item_id"], completed["output"][index]["id"]);
        }
    }
    let expected = [message("hm", "completed"), call("weather", "{\"city\": \"Rome\"}", "completed")];
    assert_eq!(plain(completed.clone())["output"], json!(expected));
    // The whole reply is that of the last event.
    let whole = plain(respond(&server, input, json!({ "tools": weather() })).await.json());
    let mut streamed = plain(completed);
    streamed["usage"]["input_tokens_details"] = whole["usage"]["input_tokens_details"].clone();
    assert_eq!(whole, streamed);
}

#[tokio::test]
async fn calls_and_texts_are_items_in_the_order_of_the_answer() {
    let server = Setup::last_message().launch();
    let one = |city: &str| {
        format!("<tool_call>{{\"name\": \"weather\", \"arguments\": {{\"city\": \"{city}\"}}}}</tool_call>")
    };
    let input = format!("{}{}then text", one("A"), one("B"));
    let reply = plain(respond(&server, input.as_str(), json!({ "tools": weather() })).await.json());
    let expected = [
        call("weather", "{\"city\": \"A\"}", "completed"),
        call("weather", "{\"city\": \"B\"}", "completed"),
        message("then text", "completed"),
    ];
    assert_eq!(reply["output"], json!(expected));
    let reply = respond(&server, input, json!({ "tools": weather() })).await.json();
    assert_ne!(reply["output"][0]["call_id"], reply["output"][1]["call_id"]);
}

#[tokio::test]
async fn a_required_call_is_made_whatever_the_model_would_say() {
    let server = Setup::last_message().launch();
    for choice in [json!("required"), json!({ "type": "function", "name": "weather" })] {
        let more = json!({ "tools": weather(), "tool_choice": choice, "max_output_tokens": 200 });
        let reply = respond(&server, "no", more).await.json();
        assert_eq!(reply["output"][0]["type"], "function_call", "{reply}");
        assert_eq!(reply["tool_choice"], choice);
    }
}

#[tokio::test]
async fn answers_that_are_cut_off_are_incomplete() {
    let server = Setup::last_message().launch();
    let reply = plain(respond(&server, "hello", json!({ "max_output_tokens": 3 })).await.json());
    assert_eq!(reply["status"], "incomplete");
    assert_eq!(reply["incomplete_details"], json!({ "reason": "max_output_tokens" }));
    assert_eq!(reply["output"], json!([message("hell", "incomplete")]));
    let input = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";
    let more = json!({ "tools": weather(), "max_output_tokens": 50, "stream": true });
    let events = respond(&server, input, more).await.named_events();
    let (name, last) = events.last().unwrap();
    assert_eq!(name, "response.incomplete");
    let output = &plain(last["response"].clone())["output"];
    let arguments = output[0]["arguments"].as_str().unwrap();
    assert!(arguments.starts_with("{\"cit") && !arguments.ends_with('}'), "{arguments}");
    assert_eq!(output, &json!([call("weather", arguments, "incomplete")]));
    // An answer without text is an empty message.
    let reply = plain(respond(&server, "", json!({})).await.json());
    assert_eq!(reply["output"], json!([message("", "completed")]));
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_text() {
    let server = Setup::last_message().launch();
    let include = json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 1 });
    let reply = respond(&server, "ab", include.clone()).await.json();
    let tokens = reply["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    let texts: Vec<&str> = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "b"]);
    assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 1));
    let streamed = merged(include, json!({ "stream": true, "tools": weather() }));
    let input = "ab<tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>";
    let events = respond(&server, input, streamed).await.named_events();
    let deltas: Vec<&Value> = events
        .iter()
        .filter(|(name, _)| name == "response.output_text.delta")
        .flat_map(|(_, event)| event["logprobs"].as_array().unwrap())
        .map(|token| &token["token"])
        .collect();
    assert_eq!(deltas, [&json!("a"), &json!("b")]);
    let output = &events.last().unwrap().1["response"]["output"];
    assert_eq!(output[0]["content"][0]["logprobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_text_follows_its_format() {
    let server = Setup::last_message().launch();
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"],
                         "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "x", "schema": schema, "strict": true });
    let more = json!({ "text": { "format": format }, "max_output_tokens": 60 });
    let reply = respond(&server, "{\"a\": 12, \"b\": 1}", more).await.json();
    let text = reply["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("{\"a\": 12") && !text.contains("\"b\": 1"), "{text}");
    let more = json!({ "text": { "format": { "type": "json_object" } }, "max_output_tokens": 60 });
    let reply = respond(&server, "{\"k\": [1]}", more).await.json();
    assert_eq!(reply["output"][0]["content"][0]["text"], "{\"k\": [1]}");
    for (format, param) in [
        (json!({ "type": "json_schema", "name": "x", "schema": { "not": {} } }), "text.format.schema"),
        (json!({ "type": "json_schema", "name": "x" }), "text.format.schema"),
        (json!({ "type": "text", "schema": {} }), "text.format.schema"),
        (json!({ "type": "grammar" }), "text.format.type"),
        (json!({ "type": "json_object", "regex": "a" }), "text.format.regex"),
    ] {
        let reply = respond(&server, "a", json!({ "text": { "format": format } })).await;
        assert_eq!((reply.status, reply.error().2.as_deref()), (400, Some(param)), "{format}");
    }
}

#[tokio::test]
async fn fields_that_cannot_be_served_are_refused_by_name() {
    let server = Setup::last_message().launch();
    let image = json!([{ "type": "input_image", "image_url": "data:" }]);
    let tool = |tool: Value| json!({ "tools": [tool] });
    for (more, param) in [
        (json!({ "background": true }), "background"),
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "conversation": "conv_1" }), "conversation"),
        (json!({ "prompt": { "id": "pmpt_1" } }), "prompt"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "max_tokens": 5 }), "max_tokens"),
        (json!({ "n": 2 }), "n"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": null }), "input"),
        (json!({ "input": 7 }), "input"),
        (json!({ "input": [7] }), "input[0]"),
        (json!({ "input": [{ "type": "reasoning" }] }), "input"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "input[0].type"),
        (json!({ "input": [{ "type": "web_search_call" }] }), "input[0].type"),
        (json!({ "input": [{ "role": "tool", "content": "a" }] }), "input[0].role"),
        (json!({ "input": [{ "role": "user" }] }), "input[0].content"),
        (json!({ "input": [{ "role": "user", "content": image }] }), "input[0].content[0].type"),
        (json!({ "input": [{ "type": "function_call", "name": "f" }] }), "input[0].call_id"),
        (json!({ "input": [{ "type": "function_call", "call_id": "c" }] }), "input[0].name"),
        (json!({ "input": [{ "type": "function_call_output", "call_id": "c" }] }), "input[0].output"),
        (tool(json!({ "type": "web_search" })), "tools[0].type"),
        (tool(json!({ "type": "function" })), "tools[0].name"),
        (tool(json!({ "type": "function", "name": "a b" })), "tools[0].name"),
        (
            tool(json!({ "type": "function", "name": "f", "parameters": { "type": "array" } })),
            "tools[0].parameters.type",
        ),
        (
            tool(json!({ "type": "function", "name": "f", "strict": true,
                      "parameters": { "properties": { "a": { "not": {} } } } })),
            "tools",
        ),
        (
            json!({ "tools": weather(), "tool_choice": { "type": "function", "name": "g" } }),
            "tool_choice.name",
        ),
        (json!({ "tools": weather(), "tool_choice": { "type": "file_search" } }), "tool_choice.type"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
        (json!({ "max_output_tokens": 100_000 }), "input"),
        (json!({ "include": [7] }), "include[0]"),
        (json!({ "truncation": "some" }), "truncation"),
        (json!({ "temperature": 3 }), "temperature"),
        (
            json!({ "response_format": { "type": "json_object" },
                    "text": { "format": { "type": "json_object" } } }),
            "response_format",
        ),
    ] {
        let reply = server.post("/v1/responses", merged(json!({ "input": "a" }), more.clone())).await;
        let (status, _, got) = reply.error();
        let matches = got.as_deref().is_some_and(|got| got.starts_with(param));
        assert!(status == 400 && matches, "{more}: {status} {got:?}");
    }
    let unknown = server.post("/v1/responses", json!({ "input": "a", "model": "other" })).await;
    assert_eq!(unknown.error(), (404, Some("model_not_found".into()), Some("model".into())));
    server.until_empty().await;
}

#[tokio::test]
async fn fields_without_effect_are_named() {
    let server = Setup::last_message().launch();
    let more = json!({
        "store": true, "truncation": "auto", "reasoning": { "effort": "low" }, "text": { "verbosity": "low" },
        "include": ["reasoning.encrypted_content"], "service_tier": "flex",
    });
    let reply = respond(&server, "a", more).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut names: Vec<&str> = reply.header("x-ignored-fields").unwrap().split(',').collect();
    names.sort_unstable();
    assert_eq!(names, ["include[0]", "reasoning", "service_tier", "store", "text.verbosity", "truncation"]);
    let harmless = json!({
        "store": false, "truncation": "disabled", "background": false, "previous_response_id": null,
        "max_tool_calls": 3, "metadata": {}, "service_tier": "auto", "include": [], "tools": [],
        "conversation": null, "stream": false,
    });
    let reply = respond(&server, "a", harmless).await;
    assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, None), "{}", reply.text());
}

#[tokio::test]
async fn a_failure_after_the_headers_is_response_failed() {
    let executor = FakeExecutor::new(&config()).parrot(BOS).poison(u32::from(b'!'));
    let server = Setup::last_message().launch_with(executor);
    let reply = respond(&server, "ab!", json!({ "stream": true })).await;
    let events = reply.named_events();
    let (name, event) = events.last().unwrap();
    assert_eq!(name, "response.failed");
    let response = &event["response"];
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert!(response["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
    assert_eq!(event["sequence_number"], events.len() as u64 - 1);
    assert!(reply.complete, "the event ends the stream");
    let whole = respond(&server, "ab!", json!({})).await;
    assert_eq!(whole.error().0, 500);
    server.until_empty().await;
}
