//! Tools through the whole server. The executor repeats the user's message where the grammar allows it, so a
//! message is the script of the answer.

use octant::tools::ToolFormat;
use serde_json::{Value, json};

use super::client::Reply;
use super::test_server::{Setup, TestServer, merged};

/// A template that shows the user's messages only, so that tools are described in a message that the
/// executor does not repeat.
const USER_ONLY: &str =
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}<|eos|>";

fn setup() -> Setup {
    Setup { template: USER_ONLY, ..Setup::new() }
}

fn tools() -> Value {
    let city = json!({ "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } },
        "required": ["city"], "additionalProperties": false });
    json!([
        { "type": "function", "function": { "name": "weather", "description": "d", "parameters": city } },
        { "type": "function", "function": { "name": "now" } },
    ])
}

fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

const PARIS: &str = r#"{"city": "Paris"}"#;

/// Content, names and arguments of calls, and the finish reason of the first choice.
fn answer(reply: &Reply) -> (Value, Vec<(String, String)>, String) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let choice = &reply.json()["choices"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
    for call in &calls {
        assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function", "{call}");
    }
    let calls =
        calls.iter().map(|call| (text(&call["function"]["name"]), text(&call["function"]["arguments"])));
    (choice["message"]["content"].clone(), calls.collect(), text(&choice["finish_reason"]))
}

async fn ask(server: &TestServer, text: &str, more: Value) -> Reply {
    server.chat(text, merged(json!({ "tools": tools() }), more)).await
}

#[tokio::test]
async fn calls_of_an_answer_are_in_the_message_and_in_deltas() {
    let server = setup().launch();
    let script = format!("Let me see.\n{}\n{}", call("weather", PARIS), call("now", "{}"));
    let reply = ask(&server, &script, json!({})).await;
    let calls = vec![("weather".to_owned(), PARIS.to_owned()), ("now".to_owned(), "{}".to_owned())];
    assert_eq!(answer(&reply), (json!("Let me see."), calls.clone(), "tool_calls".to_owned()));
    let ids: Vec<Value> = reply.json()["choices"][0]["message"]["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| call["id"].clone())
        .collect();
    assert_ne!(ids[0], ids[1]);

    let reply = ask(&server, &script, json!({ "stream": true })).await;
    let chunks = reply.chunks();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let content: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(content, "Let me see.");
    let parts: Vec<&Value> =
        deltas.iter().filter_map(|delta| delta["tool_calls"].as_array()).flatten().collect();
    let mut streamed: Vec<(String, String)> = Vec::new();
    for part in &parts {
        let function = &part["function"];
        if let Some(name) = function["name"].as_str() {
            assert_eq!(part["index"], streamed.len());
            assert!(part["id"].is_string() && part["type"] == "function", "{part}");
            streamed.push((name.to_owned(), String::new()));
        } else {
            assert!(part.get("id").is_none() && part.get("type").is_none(), "{part}");
        }
        let at = part["index"].as_u64().unwrap() as usize;
        streamed[at].1.push_str(function["arguments"].as_str().unwrap());
    }
    assert_eq!(streamed, calls);
    assert!(parts.len() > 10, "arguments come while they are generated: {parts:?}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    server.until_empty().await;
}

#[tokio::test]
async fn without_calls_the_answer_is_text_and_cut_off_calls_end_in_length() {
    let server = setup().launch();
    let none = Vec::new();
    let plain = answer(&ask(&server, "no call <tool_", json!({})).await);
    assert_eq!(plain, (json!("no call <tool_"), none.clone(), "stop".to_owned()));
    // "none": nothing is parsed.
    let script = call("now", "{}");
    let unparsed = answer(&ask(&server, &script, json!({ "tool_choice": "none" })).await);
    assert_eq!(unparsed, (json!(script), none.clone(), "stop".to_owned()));
    // Without tools nothing is parsed either.
    assert_eq!(answer(&server.chat(&script, json!({})).await), (json!(script), none, "stop".to_owned()));
    let script = call("weather", PARIS);
    let cut = answer(&ask(&server, &script, json!({ "max_tokens": 55 })).await);
    let (content, calls, finish) = cut;
    assert_eq!((content, calls[0].0.as_str(), finish.as_str()), (Value::Null, "weather", "length"));
    assert!(PARIS.starts_with(&calls[0].1) && calls[0].1.len() < PARIS.len(), "{calls:?}");
}

#[tokio::test]
async fn required_named_and_strict_calls_are_valid_whatever_the_model_would_say() {
    let server = setup().launch();
    for choice in [json!("required"), json!({ "type": "function", "function": { "name": "weather" } })] {
        for script in ["hello", &call("weather", "{\"city\": \"Oslo\"}"), &call("unknown", "{}")] {
            let more = json!({ "tool_choice": choice, "parallel_tool_calls": false });
            let (content, calls, finish) = answer(&ask(&server, script, more).await);
            assert_eq!((content, calls.len(), finish.as_str()), (Value::Null, 1, "tool_calls"), "{script}");
            let arguments: Value = serde_json::from_str(&calls[0].1).unwrap();
            let cities = [json!("Paris"), json!("Rome")];
            assert!(calls[0].0 == "now" || cities.contains(&arguments["city"]), "{calls:?}");
        }
    }
    // A choice that names a tool is a single call, whatever the model would go on with.
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    let two = [call("weather", PARIS), call("weather", PARIS)].concat();
    let (_, calls, finish) = answer(&ask(&server, &two, json!({ "tool_choice": named })).await);
    assert_eq!((calls.len(), finish.as_str()), (1, "tool_calls"));
    // With "auto", a strict tool's call is valid too, and text stays free.
    let mut strict = tools();
    strict[0]["function"]["strict"] = true.into();
    let more = json!({ "tools": strict });
    let text = answer(&ask(&server, "free <tool text", more.clone()).await);
    assert_eq!(text, (json!("free <tool text"), Vec::new(), "stop".to_owned()));
    let script = format!("So: {}", call("weather", "{\"city\": \"Pxxxx\"}"));
    let (content, calls, finish) = answer(&ask(&server, &script, more).await);
    assert_eq!((content, finish.as_str()), (json!("So:"), "tool_calls"));
    assert_eq!(serde_json::from_str::<Value>(&calls[0].1).unwrap(), json!({ "city": "Paris" }));
    server.until_empty().await;
}

#[tokio::test]
async fn tools_go_with_a_json_schema_of_the_answer() {
    let server = setup().launch();
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"],
        "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let more = json!({ "response_format": format });
    let text = answer(&ask(&server, r#"{"a": 3}"#, more.clone()).await);
    assert_eq!(text, (json!(r#"{"a": 3}"#), Vec::new(), "stop".to_owned()));
    let (content, calls, _) = answer(&ask(&server, &call("weather", PARIS), more).await);
    assert_eq!((content, calls), (Value::Null, vec![("weather".to_owned(), PARIS.to_owned())]));
}

#[tokio::test]
async fn a_schema_that_cannot_be_enforced_names_its_tool_and_disturbs_nobody() {
    let server = setup().launch();
    let alone = server.chat("innocent", json!({ "logprobs": true, "seed": 5 })).await.json();
    let mut bad = tools();
    bad[1]["function"]["strict"] = true.into();
    bad[1]["function"]["parameters"] = json!({ "type": "object", "not": {} });
    let bad_request = ask(&server, "x", json!({ "tools": bad, "tool_choice": "required" }));
    let innocent = server.chat("innocent", json!({ "logprobs": true, "seed": 5 }));
    let (bad_reply, innocent) = tokio::join!(bad_request, innocent);
    assert_eq!(bad_reply.error(), (400, Some("invalid_value".into()), Some("tools".into())));
    assert!(bad_reply.text().contains("tools[1].function.parameters: "), "{}", bad_reply.text());
    assert_eq!(innocent.json()["choices"], alone["choices"]);
}

/// A call that is required follows its schema, also without `strict`. Otherwise the reply says which keywords
/// it need not follow.
#[tokio::test]
async fn keywords_that_cannot_be_enforced_are_refused_where_a_call_is_required_and_named_elsewhere() {
    let server = setup().launch();
    let mut bad = tools();
    bad[1]["function"]["parameters"] =
        json!({ "type": "object", "properties": { "a": { "type": "array", "uniqueItems": true } } });
    let text =
        "tools[1].function.parameters: uniqueItems: not supported in a JSON schema (at #/properties/a)";
    let named = json!({ "type": "function", "function": { "name": "now" } });
    for choice in [json!("required"), named] {
        let reply = ask(&server, "x", json!({ "tools": bad, "tool_choice": choice })).await;
        assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("tools".into())));
        assert!(reply.text().contains(text), "{}", reply.text());
    }
    // The other tool may be called.
    let other = json!({ "type": "function", "function": { "name": "weather" } });
    let reply = ask(&server, "x", json!({ "tools": bad, "tool_choice": other })).await;
    assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, None));
    let ignored = Some("tools[1].function.parameters#/properties/a/uniqueItems".to_owned());
    for stream in [false, true] {
        let one = json!({ "tools": bad, "parallel_tool_calls": false, "stream": stream });
        let reply = ask(&server, "x", one).await;
        assert_eq!(
            (reply.status, reply.header("x-ignored-fields").map(str::to_owned)),
            (200, ignored.clone())
        );
    }
    // No grammar: the schema is shown to the model only.
    let free = ask(&server, "x", json!({ "tools": bad })).await;
    assert_eq!((free.status, free.header("x-ignored-fields")), (200, None));
    server.until_empty().await;
    let mut strict = setup();
    strict.settings.reject_unknown_fields = true;
    let server = strict.launch();
    let reply = ask(&server, "x", json!({ "tools": bad, "parallel_tool_calls": false })).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains(text), "{}", reply.text());
}

/// The number of keywords to leave out is no reason to refuse a tool that may ignore them.
#[tokio::test]
async fn a_lenient_tool_with_many_keywords_that_cannot_be_enforced_is_served() {
    let server = setup().launch();
    let overlapping = json!({ "oneOf": [{ "type": "integer", "maximum": 9 }, { "type": "integer" }] });
    let properties: serde_json::Map<String, Value> =
        (0..51).map(|i| (format!("p{i}"), overlapping.clone())).collect();
    let mut many = tools();
    many[1]["function"]["parameters"] = json!({ "type": "object", "properties": properties });
    let reply = ask(&server, "x", json!({ "tools": many, "parallel_tool_calls": false })).await;
    assert_eq!(answer(&reply), (json!("x"), Vec::new(), "stop".to_owned()));
    let ignored = reply.header("x-ignored-fields").unwrap();
    assert!(ignored.contains("tools[1].function.parameters#/properties/p0/oneOf"), "{ignored}");
    let reply = ask(&server, "x", json!({ "tools": many, "tool_choice": "required" })).await;
    assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("tools".into())));
    let text = "tools[1].function.parameters: oneOf: not supported where more than one alternative";
    assert!(reply.text().contains(text), "{}", reply.text());
}

/// In every format an error names the field of the request, and the place within the schema of this field.
#[tokio::test]
async fn errors_of_size_limits_name_the_tool_in_every_format() {
    let mut long = tools();
    long[1]["function"]["parameters"] =
        json!({ "type": "object", "properties": { "x": { "type": "string", "pattern": "a".repeat(9000) } } });
    let text = "tools[1].function.parameters: pattern: bytes of a pattern: expected at most 8192, got 9000 \
                (at #/properties/x)";
    for format in [None, Some(ToolFormat::Llama3)] {
        let mut setup = setup();
        setup.settings.tool_format = format;
        let server = setup.launch();
        let reply = ask(&server, "x", json!({ "tools": long, "tool_choice": "required" })).await;
        assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("tools".into())));
        assert!(reply.text().contains(text), "{format:?}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_template_that_shows_tools_gets_them_and_its_format_is_used() {
    let template = "{% if tools %}{{ tools | tojson }}<toolcall>{% endif %}\
                    {% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}[{{ c.function.name }}\
                    {{ c.function.arguments.city }}]{% endfor %}{% endfor %}<|eos|>";
    let mut setup = Setup { template, ..Setup::new() };
    setup.config.max_model_len = 2048;
    setup.config.num_blocks = 128;
    let server = setup.launch();
    let function = json!({ "name": "weather", "arguments": PARIS });
    let calls = json!([{ "id": "c", "type": "function", "function": function }]);
    let history = json!([
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": null, "tool_calls": calls },
        { "role": "tool", "tool_call_id": "c", "content": "sunny" },
    ]);
    let body = json!({ "model": "parrot", "messages": history, "tools": tools() });
    let reply = server.post("/tokenize", merged(body.clone(), json!({ "return_token_strs": true }))).await;
    let shown: String =
        reply.json()["token_strs"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(shown.starts_with("[{\"type\": \"function\", \"function\": {\"name\": \"weather\""), "{shown}");
    assert!(shown.contains("q[weatherParis]sunny"), "{shown}");
    // The template's text ends with a marker of Nemotron's format.
    let more = json!({ "tools": tools(), "messages": [{ "role": "user", "content": "x" }] });
    let reply = server.post("/v1/chat/completions", merged(body, more)).await;
    assert!(reply.json()["choices"][0]["message"]["content"].as_str().unwrap().contains("<toolcall>x"));
}

#[tokio::test]
async fn the_operator_names_a_format_for_templates_whose_own_is_unknown() {
    let template = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}<|eos|>";
    let server = Setup { template, ..Setup::new() }.launch();
    let refused = ask(&server, "x", json!({})).await;
    assert_eq!(refused.error(), (400, None, Some("tools".into())));
    let mut setup = Setup { template, ..Setup::new() };
    setup.settings.tool_format = Some(ToolFormat::Llama3);
    setup.config.max_model_len = 2048;
    setup.config.num_blocks = 128;
    let server = setup.launch();
    assert_eq!(ask(&server, "x", json!({})).await.status, 200);
}

#[tokio::test]
async fn the_operators_format_has_precedence_over_that_of_the_template() {
    // The template shows calls as Hermes does, and the user's messages.
    let template = "{% if tools %}{% set shown = tools | tojson ~ '<tool_call></tool_call>' %}{% endif %}\
                    {% if messages[0].content == 'Hello' %}{{ shown }}{% endif %}\
                    {% for m in messages %}{{ m.content }}{% endfor %}<|eos|>";
    let llama = r#"{"name": "weather", "parameters": {"city": "Paris"}}"#;
    let hermes = call("weather", PARIS);
    let found = vec![("weather".to_owned(), PARIS.to_owned())];
    let called = (Value::Null, found, "tool_calls".to_owned());
    let text = |text: &str| (json!(text), Vec::new(), "stop".to_owned());
    for (format, expected) in
        [(None, [called.clone(), text(llama)]), (Some(ToolFormat::Llama3), [text(&hermes), called])]
    {
        let mut setup = Setup { template, ..Setup::new() };
        setup.settings.tool_format = format;
        let server = setup.launch();
        for (script, expected) in [&*hermes, llama].into_iter().zip(expected) {
            assert_eq!(answer(&ask(&server, script, json!({})).await), expected, "{format:?}: {script}");
        }
        let required = ask(&server, "x", json!({ "tool_choice": "required", "logprobs": true })).await;
        let tokens = required.json()["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
        let raw: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        let begin = if format.is_none() { "<tool_call>{\"name\":" } else { "{\"name\":" };
        assert!(raw.replace(char::is_whitespace, "").starts_with(begin), "{format:?}: {raw:?}");
    }
}
