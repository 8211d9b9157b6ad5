//! The forms of scores that clients of other servers read: NVIDIA's hosted reward models, vLLM's pooling and
//! classification, OpenRLHF's reward server. And which kind of model answers which routes.

use serde_json::{Value, json};

use super::rewards::{CARD, FIVE, ids, launch, number, score, setup, turns, values};
use super::test_server::{Setup, chat_body, merged};
use crate::fake::FakeExecutor;

#[tokio::test]
async fn a_chat_has_the_form_of_nvidias_hosted_api() {
    let server = launch(&FIVE);
    let expected = values(&["Why?", "Because."], 5);
    let content: Vec<String> =
        FIVE.iter().zip(&expected).map(|(name, value)| format!("{name}:{value:?}")).collect();
    let entry = |(name, value): (&&str, &f32)| {
        let value = number(*value);
        json!({ "token": name, "logprob": value, "bytes": null, "top_logprobs": [] })
    };
    let entries: Vec<Value> = FIVE.iter().zip(&expected).map(entry).collect();
    let tokens = ids(&["Why?", "Because."]).len();
    // Clients do not ask for log-probabilities, and take a reply without them for one of another model.
    for (round, more) in
        [json!({}), json!({ "logprobs": true }), json!({ "logprobs": false })].iter().enumerate()
    {
        let body =
            merged(json!({ "model": "judge", "messages": turns(&["Why?", "Because."]) }), more.clone());
        let reply = server.post("/v1/chat/completions", body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let mut got = reply.json();
        assert!(got["id"].as_str().unwrap().starts_with("chatcmpl-") && got["created"].as_u64() > Some(0));
        got["id"] = "ID".into();
        got["created"] = 0.into();
        let cached = got["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
        assert!(round > 0 || cached == 0);
        assert_eq!(
            got,
            json!({
                "id": "ID", "object": "chat.completion", "created": 0, "model": "judge",
                "choices": [{
                    "index": 0,
                    "message": { "role": "assistant", "content": content.join(","), "refusal": null },
                    "logprobs": { "content": entries },
                    "finish_reason": "length",
                }],
                "usage": {
                    "prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1,
                    "prompt_tokens_details": { "cached_tokens": cached },
                    "completion_tokens_details": { "reasoning_tokens": 0 },
                },
            })
        );
    }
    let server = launch(&["reward"]);
    let body = json!({ "messages": turns(&["Why?", "Because."]), "temperature": 0, "max_tokens": 1 });
    let reply = server.post("/v1/chat/completions", body).await;
    let one = values(&["Why?", "Because."], 1)[0];
    let choice = &reply.json()["choices"][0];
    assert_eq!(choice["message"]["content"], format!("reward:{one:?}"));
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 1);
    assert_eq!(reply.header("x-ignored-fields"), Some("max_tokens,temperature"));
}

#[tokio::test]
async fn a_chat_without_an_answer_or_with_wishes_for_one_is_refused_by_name() {
    let server = launch(&FIVE);
    let messages = turns(&["Why?", "Because."]);
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } });
    for (field, value) in [
        ("stream", json!(true)),
        ("stream_options", json!({ "include_usage": true })),
        ("n", json!(2)),
        ("tools", json!([tool])),
        ("response_format", json!({ "type": "json_object" })),
        ("guided_choice", json!(["a", "b"])),
        ("continue_final_message", json!(true)),
        ("add_generation_prompt", json!(true)),
        ("logit_bias", json!({ "5": 1 })),
        ("bad_words", json!(["a"])),
        ("allowed_token_ids", json!([5])),
        ("prompt_logprobs", json!(0)),
        ("truncate_prompt_tokens", json!(-1)),
        ("return_token_ids", json!(true)),
    ] {
        let body = merged(json!({ "messages": messages }), json!({ field: value }));
        let refused = server.post("/v1/chat/completions", body).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["param"]), (400, &json!(field)), "{error}");
        assert!(error["message"].as_str().unwrap().contains("not supported"), "{error}");
    }
    for nothing in [json!({ "stream": false, "n": 1, "tools": [], "stop": null, "tool_choice": "none" })] {
        let body = merged(json!({ "messages": messages }), nothing);
        assert_eq!(server.post("/v1/chat/completions", body).await.status, 200);
    }
    // Clients find out with a lone message of the user whether the model's name is right.
    let probe = server.post("/v1/chat/completions", json!({ "messages": turns(&["a"]) })).await;
    assert_eq!(probe.error(), (400, Some("invalid_value".into()), Some("messages".into())));
    assert!(probe.text().contains("role assistant"), "{}", probe.text());
    let long = json!({ "messages": turns(&["a", &"x".repeat(600)]) });
    let long = server.post("/v1/chat/completions", long).await;
    assert_eq!(long.error(), (400, Some("context_length_exceeded".into()), Some("messages".into())));
    let mut strict = setup(&FIVE);
    strict.settings.reject_unknown_fields = true;
    let executor = FakeExecutor::new(&strict.config);
    let server = strict.launch_with(executor);
    let refused =
        server.post("/v1/chat/completions", json!({ "messages": messages, "temperature": 0.5 })).await;
    assert_eq!(refused.error().2.as_deref(), Some("temperature"));
}

/// Fields of a chat completion that are used where the model scores, or whose wish every score meets.
fn used_fields() -> Value {
    json!({
        "model": "judge",
        "messages": turns(&["Why?", "Because."]),
        "chat_template_kwargs": { "a": 1 },
        // The reply always has them, and a score has no random choice.
        "logprobs": true,
        "seed": 7,
        // `tools` is refused, so there is nothing to choose.
        "tool_choice": "none",
        "parallel_tool_calls": true,
        "cache_salt": "x",
        "user": "x",
        "priority": 1,
        "timeout": 9.5,
        "return_cost": true,
        "metadata": { "a": "b" },
        // It changes only how another field is applied.
        "guided_decoding_backend": "outlines",
    })
}

/// A value of a field that asks for something.
fn wish(field: &str, schema: &Value) -> Value {
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } });
    match field {
        "tools" => json!([tool]),
        "stream_options" => json!({ "include_usage": true }),
        "response_format" => json!({ "type": "json_object" }),
        "structured_outputs" => json!({ "json_object": true }),
        "nvext" => json!({ "guided_regex": "a" }),
        "json_schema" | "guided_json" => json!({ "type": "object" }),
        "logit_bias" => json!({ "5": 1 }),
        "ebnf" | "guided_grammar" => json!("root ::= \"a\""),
        _ => {
            let kind = match &schema["type"] {
                Value::Array(kinds) => &kinds[0],
                _ if schema.get("anyOf").is_some() => &schema["anyOf"][0]["type"],
                kind => kind,
            };
            match kind.as_str() {
                Some("boolean") => json!(true),
                Some("integer") => json!(2),
                Some("number") => json!(0.5),
                Some("string") => json!("x"),
                Some("array") if schema["items"]["type"] == "integer" => json!([5]),
                Some("array") => json!(["a"]),
                _ => panic!("{field} needs a value here: {schema}"),
            }
        }
    }
}

#[tokio::test]
async fn a_chat_uses_refuses_or_names_each_field() {
    let server = launch(&FIVE);
    let document = server.get("/openapi.json").await.json();
    let fields = &document["components"]["schemas"]["ChatCompletionRequest"]["properties"];
    let used = used_fields();
    let reply = server.post("/v1/chat/completions", used.clone()).await;
    assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, None), "{}", reply.text());
    let fields = fields.as_object().unwrap();
    assert!(used.as_object().unwrap().keys().all(|field| fields.contains_key(field)));
    for (field, schema) in fields.iter().filter(|(field, _)| used.get(field).is_none()) {
        // It is refused without `guided_json`, which is refused too.
        if field == "guided_whitespace_pattern" {
            continue;
        }
        let body = merged(json!({ "messages": used["messages"] }), json!({ field: wish(field, schema) }));
        let reply = server.post("/v1/chat/completions", body).await;
        let names = reply.header("x-ignored-fields").unwrap_or_default();
        let is_named = reply.status == 200 && names.split(',').any(|name| name == field);
        let error = reply.json()["error"].clone();
        let refused = error["message"].as_str().is_some_and(|text| text.contains("not supported"));
        let path = error["param"].as_str().unwrap_or_default();
        let is_refused = reply.status == 400 && refused && path.starts_with(field.as_str());
        assert!(is_named || is_refused, "`scored_chat.rs` has no rule for {field}: {}", reply.text());
    }
}

#[tokio::test]
async fn classify_ends_with_the_score_and_get_reward_has_columns() {
    let server = launch(&FIVE);
    let all = values(&["Why?", "Because."], 5);
    let total = score(&all, &CARD);
    let messages = turns(&["Why?", "Because."]);
    let with: Vec<Value> = all.iter().map(|value| number(*value)).chain([total.clone()]).collect();
    for (more, row) in [(json!({}), vec![total.clone()]), (json!({ "return_attributes": true }), with)] {
        // The fields that trainers send.
        let body = merged(json!({ "model": "judge", "messages": messages, "use_activation": false }), more);
        let reply = server.post("/classify", body.clone()).await.json();
        assert_eq!(
            reply["data"],
            json!([{ "index": 0, "label": null, "probs": row, "num_classes": row.len() }])
        );
        assert!(reply["id"].as_str().unwrap().starts_with("classify-") && reply["object"] == "list");
        assert_eq!(reply["usage"]["completion_tokens"], 0);
        let reply = server.post("/pooling", body).await.json();
        assert_eq!(reply["data"], json!([{ "index": 0, "object": "pooling", "data": row }]));
        assert!(reply["id"].as_str().unwrap().starts_with("pool-") && reply["model"] == "judge");
        assert!(reply.get("attributes").is_none());
    }
    // Token ids are the client's own, with or without an end.
    let prompt = ids(&["Why?", "Because."]);
    let by_ids = json!({ "input": [prompt, [65, 66]], "encoding_format": "float" });
    let reply = server.post("/classify", by_ids).await.json();
    assert_eq!(reply["data"][0]["probs"], json!([total]));
    let other = crate::fake::rewards(&[65, 66], 5);
    assert_eq!(reply["data"][1]["probs"], json!([score(&other, &CARD)]));
    let text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n";
    let query =
        json!({ "query": [text, text], "prompts": ["", ""], "labels": ["x", null], "metadata": [1, 2] });
    let reply = server.post("/get_reward", query).await;
    let columns: Value = FIVE
        .iter()
        .zip(&all)
        .map(|(name, value)| ((*name).to_owned(), json!([number(*value), number(*value)])))
        .collect();
    assert_eq!(
        reply.json(),
        json!({ "rewards": [total, total], "scores": [total, total], "extra_logs": columns })
    );
    // Without turn markers, the prompt tells where the answer begins.
    let plain =
        json!({ "query": ["Why?Because.", "<pad><s>Why?Because.</s>"], "prompts": ["Why?", "<s>Why?"] });
    assert_eq!(server.post("/get_reward", plain).await.json()["rewards"], json!([total, total]));
}

#[tokio::test]
async fn inputs_that_cannot_be_scored_are_refused_by_name() {
    let server = launch(&FIVE);
    let messages = turns(&["Why?", "Because."]);
    let text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n";
    for (path, body, param, part) in [
        ("/classify", json!({}), "input", "or messages instead"),
        ("/classify", json!({ "input": "a", "messages": messages }), "input", "got both"),
        ("/classify", json!({ "input": [] }), "input", "expected 1 to 256 texts"),
        ("/classify", json!({ "input": [[]] }), "input[0]", "at least one token id"),
        ("/classify", json!({ "input": [[5], "a"] }), "input[1]", "expected an array of token ids"),
        ("/classify", json!({ "input": [5, 9999] }), "input", "expected a token id from 0 to"),
        ("/classify", json!({ "input": ["a", 5] }), "input[1]", "expected a string, got 5"),
        ("/classify", json!({ "input": 5 }), "input", "expected a string, an array of strings"),
        ("/classify", json!({ "input": [vec![65; 513]] }), "input", "maximum context length"),
        ("/classify", json!({ "input": text, "use_activation": true }), "use_activation", "not supported"),
        ("/pooling", json!({ "input": text, "softmax": true }), "softmax", "not supported"),
        (
            "/pooling",
            json!({ "input": text, "encoding_format": "base64" }),
            "encoding_format",
            "not supported",
        ),
        ("/pooling", json!({ "input": text, "truncate_prompt_tokens": 9 }), "truncate_prompt_tokens", "not"),
        ("/pooling", json!({ "messages": turns(&["a"]) }), "messages", "role assistant"),
        ("/get_reward", json!({}), "query", "expected a string or an array of strings, got nothing"),
        ("/get_reward", json!({ "query": [text], "prompts": [] }), "prompts", "expected 1 to 256 texts"),
        ("/get_reward", json!({ "query": [text], "prompts": ["", ""] }), "prompts", "one for each query"),
        ("/get_reward", json!({ "query": ["ab"], "prompts": ["b"] }), "query[0]", "turn markers"),
        ("/get_reward", json!({ "query": [text, "a"] }), "query[1]", "turn markers"),
    ] {
        let refused = server.post(path, body.clone()).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["param"]), (400, &json!(param)), "{path} {body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{path} {body}: {error}");
    }
}

#[tokio::test]
async fn each_kind_of_model_refuses_the_routes_of_the_other() {
    let (judge, parrot) = (launch(&FIVE), Setup::new().launch());
    let list = judge.get("/v1/models").await.json();
    assert_eq!((&list["data"][0]["task"], &list["data"][0]["attributes"]), (&json!("reward"), &json!(FIVE)));
    let list = parrot.get("/v1/models").await.json();
    assert_eq!((&list["data"][0]["task"], list["data"][0].get("attributes")), (&json!("generate"), None));
    let messages = turns(&["Why?", "Because."]);
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": "a" })),
        ("/v1/responses", json!({ "input": "a" })),
        ("/v1/messages", json!({ "messages": turns(&["a"]), "max_tokens": 1 })),
    ] {
        let refused = judge.post(path, body.clone()).await;
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(refused.status, 400, "{path}");
        assert!(message.starts_with("model: ") && message.contains("does not generate"), "{path}: {message}");
        assert_eq!(parrot.post(path, body).await.status, 200, "{path}");
    }
    for (path, body) in [
        ("/v1/reward", json!({ "messages": messages })),
        ("/pooling", json!({ "messages": messages })),
        ("/classify", json!({ "input": [65, 66] })),
        ("/get_reward", json!({ "query": ["ab"], "prompts": ["a"] })),
    ] {
        let refused = parrot.post(path, body.clone()).await;
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((refused.status, refused.error().2.as_deref()), (400, Some("model")), "{path}");
        assert!(message.contains("no reward head"), "{path}: {message}");
        assert_eq!(judge.post(path, body).await.status, 200, "{path}");
    }
    // Streams that run are not disturbed, and /tokenize shows what is scored.
    let stream = parrot.post("/v1/chat/completions", chat_body("abc", json!({ "stream": true }))).await;
    assert_eq!(stream.events().last().map(String::as_str), Some("[DONE]"));
    let tokens = judge.post("/tokenize", json!({ "messages": messages })).await.json();
    assert_eq!(tokens["tokens"], json!(ids(&["Why?", "Because."])));
}
