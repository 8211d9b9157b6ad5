//! Refused bodies: status, code and the field that the error names.

use octant::tools::ToolSupport;
use serde_json::{Value, json};

use super::{a_chat, a_completion, chat, completion};

const INVALID: Option<&str> = Some("invalid_value");

/// Asserts that both routes refuse these fields, with this code and for this field.
fn both(more: Value, code: Option<&str>, param: &str) {
    for result in [chat(&a_chat(&more)), completion(&a_completion(&more))] {
        expect(result, &more, code, param);
    }
}

fn expect<T: std::fmt::Debug>(
    result: Result<T, octant::server::error::ApiError>,
    body: &Value,
    code: Option<&str>,
    param: &str,
) {
    let shown: String = body.to_string().chars().take(120).collect();
    let error = result.expect_err(&shown);
    assert_eq!((error.status().as_u16(), error.code(), error.param()), (400, code, Some(param)), "{shown}");
    // Some clients search the text for "rate limit" to decide whether to retry.
    assert!(!error.to_string().contains("rate limit"), "{error}");
    assert!(error.to_json().len() < 1500, "{shown}");
}

#[test]
fn numbers_out_of_range_or_of_the_wrong_type() {
    let big = 1_i64 << 40;
    for (field, values) in [
        ("n", json!([0, -1, 129, 2_147_483_648_i64, 1_000_000, 1.5, 0.0, 129.0, 1e300, "2", true, [], {}])),
        ("temperature", json!([-1, -0.001, -1e-300, 2.001, 1e300, "hot", true, []])),
        ("top_p", json!([-0.1, -1e-300, 1.1, 1e60, "1", false])),
        ("top_k", json!([-2, big, 2_147_483_648_i64, 1.5, "5"])),
        ("min_p", json!([-1, 2, 1.0001, "0"])),
        ("presence_penalty", json!([-3, 3, 2.0001, "0"])),
        ("frequency_penalty", json!([-3, 3, -2.0001, "0"])),
        ("repetition_penalty", json!([0, -1, 0.001, 101, 1e39, "1"])),
        ("max_tokens", json!([-1, 1.5, 9_223_372_036_854_775_808_u64, 4_294_967_296_i64, "9", true])),
        ("min_tokens", json!([-1, 1.5, 4_294_967_296_i64, "9"])),
        ("seed", json!([18_446_744_073_709_551_616.0, 9_007_199_254_740_992.0, 1.5, -9.3e18, "1", true])),
        ("priority", json!([101, -101, 2_147_483_648_i64, -2_147_483_649_i64, 0.5, "high"])),
        ("ignore_eos", json!([0, 1, "true"])),
        ("skip_special_tokens", json!([0, "false"])),
        ("include_stop_str_in_output", json!([1, []])),
        ("stream", json!([1, "true", {}])),
        ("cache_salt", json!(["", "x".repeat(1025), 7])),
        ("model", json!([7, [], {}])),
        ("prompt_logprobs", json!([-1, 21, 1.5, true, "1"])),
        ("prompt_logprobs_start", json!([-1, 1.5, 4_294_967_296_i64, "1", true])),
        ("truncate_prompt_tokens", json!([0, -2, 4_294_967_296_i64, 1.5, "5", true])),
        ("return_token_ids", json!([0, "true"])),
        ("return_tokens_as_token_ids", json!([1, []])),
        ("reasoning_effort", json!(["", "x".repeat(65), 1, ["low"]])),
        ("verbosity", json!(["", 7, {}])),
        ("store", json!([1, "yes"])),
        ("allowed_token_ids", json!([[], [100], [-1], [1.5], ["1"], [[1]], [null], 5, {}])),
        ("bad_words", json!(["a", vec!["a"; 1025], {}])),
        ("metadata", json!([[], "a", 5])),
        ("user", json!(["é".repeat(513), 5])),
    ] {
        for value in values.as_array().unwrap() {
            both(json!({ field: value }), INVALID, field);
        }
    }
}

#[test]
fn lists_and_maps_of_ids() {
    let many = |count: usize| vec![1; count];
    for ids in [
        json!([-1]),
        json!([100]),
        json!([9_999_999]),
        json!([2_147_483_648_i64]),
        json!([4_294_967_296_i64]),
        json!([1_i64 << 40]),
        json!([1.5]),
        json!([100.0]),
        json!([-1.0]),
        json!(["1"]),
        json!([null]),
        json!([[1]]),
        json!(many(65)),
        json!("1"),
        json!({ "1": 1 }),
    ] {
        both(json!({ "stop_token_ids": ids }), INVALID, "stop_token_ids");
    }
    for key in ["-3", "100", "1e3", " 5", "5 ", "+5", "05", "", "x", "4294967301", "٣", "1.0"] {
        both(json!({ "logit_bias": { key: 1 } }), INVALID, "logit_bias");
    }
    for value in [json!(101), json!(-100.5), json!(1e39), json!(null), json!("1"), json!([])] {
        both(json!({ "logit_bias": { "5": value } }), INVALID, "logit_bias");
    }
    let too_many: serde_json::Map<_, _> = (0..100_000).map(|i| (i.to_string(), json!(1))).collect();
    both(json!({ "logit_bias": too_many }), INVALID, "logit_bias");
    both(json!({ "logit_bias": [1] }), INVALID, "logit_bias");
}

#[test]
fn stop_strings() {
    for stop in [
        json!(vec!["a"; 17]),
        json!("x".repeat(1025)),
        json!(["x".repeat(1_000_000)]),
        json!([1]),
        json!(1),
        json!({}),
        json!([null]),
    ] {
        both(json!({ "stop": stop }), INVALID, "stop");
    }
}

#[test]
fn fields_that_contradict_each_other() {
    both(json!({ "min_tokens": 5, "max_tokens": 4 }), INVALID, "min_tokens");
    both(json!({ "stream_options": {} }), INVALID, "stream_options");
    both(json!({ "stream_options": { "include_usage": true }, "stream": false }), INVALID, "stream_options");
    both(
        json!({ "stream_options": { "include_usage": 1 }, "stream": true }),
        INVALID,
        "stream_options.include_usage",
    );
    both(json!({ "stream_options": true, "stream": true }), INVALID, "stream_options");
    let stats = json!({ "stream_options": { "continuous_usage_stats": 1 }, "stream": true });
    both(stats, INVALID, "stream_options.continuous_usage_stats");
    both(json!({ "prompt_logprobs": 0, "stream": true }), INVALID, "prompt_logprobs");
    both(json!({ "prompt_logprobs_start": 1 }), INVALID, "prompt_logprobs_start");
    both(json!({ "bad_words": ["a", 1] }), INVALID, "bad_words[1]");
    both(json!({ "bad_words": ["x".repeat(1025)] }), INVALID, "bad_words[0]");
    both(json!({ "metadata": { "a": "b", "c": 1 } }), INVALID, "metadata.c");
    both(json!({ "metadata": { "a": "x".repeat(513) } }), INVALID, "metadata.a");
    both(json!({ "metadata": { "x".repeat(65): "" } }), INVALID, "metadata");
    let labels: serde_json::Map<_, _> = (0..17).map(|i| (i.to_string(), json!(""))).collect();
    both(json!({ "metadata": labels }), INVALID, "metadata");
    both(json!({ "best_of": 1, "n": 2 }), INVALID, "best_of");
    both(json!({ "best_of": 0 }), INVALID, "best_of");
    let only_chat = |more: Value, param: &str| expect(chat(&a_chat(&more)), &more, INVALID, param);
    only_chat(json!({ "max_tokens": 0 }), "max_tokens");
    only_chat(json!({ "max_completion_tokens": 0 }), "max_completion_tokens");
    only_chat(json!({ "max_tokens": 5, "max_completion_tokens": 6 }), "max_completion_tokens");
    only_chat(json!({ "top_logprobs": 2 }), "top_logprobs");
    only_chat(json!({ "top_logprobs": 2, "logprobs": false }), "top_logprobs");
    only_chat(json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs");
    only_chat(json!({ "logprobs": true, "top_logprobs": -1 }), "top_logprobs");
    only_chat(json!({ "logprobs": 1 }), "logprobs");
    let both_ends = json!({ "continue_final_message": true, "add_generation_prompt": true });
    only_chat(both_ends, "continue_final_message");
    only_chat(json!({ "continue_final_message": true }), "continue_final_message");
    for name in ["messages", "tokenize", "chat_template", "add_generation_prompt", "tools", "bos_token"] {
        only_chat(json!({ "chat_template_kwargs": { name: 1 } }), "chat_template_kwargs");
    }
    only_chat(json!({ "chat_template_kwargs": [1] }), "chat_template_kwargs");
    let only_text =
        |more: Value, param: &str| expect(completion(&a_completion(&more)), &more, INVALID, param);
    only_text(json!({ "max_tokens": 0 }), "max_tokens");
    only_text(json!({ "logprobs": 21 }), "logprobs");
    only_text(json!({ "logprobs": 10_000 }), "logprobs");
    only_text(json!({ "logprobs": true }), "logprobs");
    only_text(json!({ "min_tokens": 17 }), "min_tokens");
    only_text(json!({ "echo": "yes" }), "echo");
}

#[test]
fn unsupported_fields_are_refused_by_name() {
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    for (field, value) in [
        ("tools", tool.clone()),
        ("tool_choice", json!("auto")),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({ "type": "function" })),
    ] {
        let more = json!({ field: value });
        expect(completion(&a_completion(&more)), &more, None, field);
    }
    for (field, value) in [
        ("functions", tool),
        ("function_call", json!("auto")),
        ("audio", json!({})),
        ("modalities", json!(["text", "audio"])),
        ("prediction", json!({})),
        ("best_of", json!(2)),
        ("suffix", json!("end")),
        ("use_beam_search", json!(true)),
        ("prompt_embeds", json!("x")),
    ] {
        both(json!({ field: value }), None, field);
    }
    for (field, value) in [
        ("echo", json!(true)),
        ("documents", json!([{}])),
        ("chat_template", json!("{{ 1 }}")),
        ("add_special_tokens", json!(true)),
    ] {
        let more = json!({ field: value });
        expect(chat(&a_chat(&more)), &more, None, field);
    }
    for field in ["messages", "max_completion_tokens", "top_logprobs"] {
        let more = json!({ field: 1 });
        expect(completion(&a_completion(&more)), &more, None, field);
    }
}

#[test]
fn messages_of_the_wrong_shape() {
    let user = |content: Value| json!([{ "role": "user", "content": content }]);
    for (messages, code, param) in [
        (json!(null), INVALID, "messages"),
        (json!([]), INVALID, "messages"),
        (json!({}), INVALID, "messages"),
        (json!("hi"), INVALID, "messages"),
        (json!(["hi"]), INVALID, "messages[0]"),
        (json!(vec![json!({ "role": "user", "content": "a" }); 2049]), INVALID, "messages"),
        (json!([{ "content": "a" }]), INVALID, "messages[0].role"),
        (json!([{ "role": "function", "content": "a" }]), INVALID, "messages[0].role"),
        (json!([{ "role": "User", "content": "a" }]), INVALID, "messages[0].role"),
        (json!([{ "role": 1, "content": "a" }]), INVALID, "messages[0].role"),
        (json!([{ "role": "user" }]), INVALID, "messages[0].content"),
        (user(json!(null)), INVALID, "messages[0].content"),
        (user(json!(7)), INVALID, "messages[0].content"),
        (user(json!(["a"])), INVALID, "messages[0].content[0]"),
        (user(json!([{ "text": "a" }])), INVALID, "messages[0].content[0].type"),
        (user(json!([{ "type": "text" }])), INVALID, "messages[0].content[0].text"),
        (user(json!([{ "type": "text", "text": 1 }])), INVALID, "messages[0].content[0].text"),
        (user(json!([{ "type": "image_url", "image_url": {} }])), None, "messages[0].content[0].type"),
        (user(json!([{ "type": "input_audio" }])), None, "messages[0].content[0].type"),
        (
            user(json!([{ "type": "text", "text": "a" }, { "type": "file" }])),
            None,
            "messages[0].content[1].type",
        ),
        (json!([{ "role": "user", "content": "a", "name": 5 }]), INVALID, "messages[0].name"),
        (json!([{ "role": "tool", "content": "a" }]), INVALID, "messages[0].tool_call_id"),
        (json!([{ "role": "assistant", "content": null }]), INVALID, "messages[0].content"),
        (
            json!([{ "role": "assistant", "content": "a", "tool_calls": [{}] }]),
            INVALID,
            "messages[0].tool_calls[0].function",
        ),
        (
            json!([{ "role": "assistant", "tool_calls": [{ "function": { "arguments": "{}" } }] }]),
            INVALID,
            "messages[0].tool_calls[0].function.name",
        ),
        (
            json!([{ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": 5 } }] }]),
            INVALID,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!([{ "role": "assistant",
                "tool_calls": [{ "type": "custom", "function": { "name": "f" } }] }]),
            None,
            "messages[0].tool_calls[0].type",
        ),
        (
            json!([{ "role": "user", "content": "a", "tool_calls": [{ "function": { "name": "f" } }] }]),
            INVALID,
            "messages[0].tool_calls",
        ),
        (
            json!([{ "role": "assistant", "content": "a", "function_call": {} }]),
            None,
            "messages[0].function_call",
        ),
        (json!([{ "role": "assistant", "content": "a", "audio": {} }]), None, "messages[0].audio"),
    ] {
        let body = json!({ "messages": messages });
        expect(chat(&body), &body, code, param);
    }
    let none = json!({});
    expect(chat(&none), &none, INVALID, "messages");
}

#[test]
fn prompts_of_the_wrong_shape() {
    for prompt in [
        json!(null),
        json!([]),
        json!([[]]),
        json!([[1], []]),
        json!([-1]),
        json!([100]),
        json!([2_147_483_648_i64]),
        json!([4_294_967_296_i64]),
        json!([1_i64 << 40]),
        json!([1.5]),
        json!([1, "a"]),
        json!(["a", 1]),
        json!([[1], "a"]),
        json!([[1], 2]),
        json!([[[1]]]),
        json!([null]),
        json!([true]),
        json!({ "text": "a" }),
        json!(5),
        json!(vec!["a"; 257]),
    ] {
        let body = json!({ "prompt": prompt });
        expect(completion(&body), &body, INVALID, "prompt");
    }
    let none = json!({});
    expect(completion(&none), &none, INVALID, "prompt");
    let fanned = json!({ "prompt": vec!["a"; 100], "n": 3 });
    expect(completion(&fanned), &fanned, INVALID, "n");
}

#[test]
fn models_that_are_not_served() {
    let long = "m/".repeat(1_000_000);
    for name in [
        "other",
        "",
        "../../etc/passwd",
        "model\0",
        "Model",
        "/model",
        "openai/other",
        "openaimodel",
        "openai/model/",
        "model/other",
        "/models/b",
        "/models",
        "/",
        &long,
    ] {
        for result in
            [chat(&a_chat(&json!({ "model": name }))), completion(&a_completion(&json!({ "model": name })))]
        {
            let error = result.expect_err("the model is not served");
            assert_eq!(error.status(), 404);
            assert_eq!((error.code(), error.param()), (Some("model_not_found"), Some("model")));
            assert!(error.to_json().len() < 1500);
        }
    }
}

#[test]
fn every_error_has_four_keys_and_a_type() {
    let error = chat(&a_chat(&json!({ "n": 0 }))).expect_err("n is at least 1");
    let body: Value = serde_json::from_str(&error.to_json()).unwrap();
    let expected = json!({ "error": {
        "message": "n: expected an integer from 1 to 128, got 0",
        "type": "invalid_request_error", "param": "n", "code": "invalid_value",
    } });
    assert_eq!(body, expected);
}

#[test]
fn the_context_length_error_has_the_text_that_clients_match() {
    let error = octant::server::error::ApiError::ContextLength {
        param: "messages".to_owned(),
        limit: 4096,
        prompt: 4000,
        completion: 1000,
    };
    let text = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens \
                (4000 in the messages, 1000 in the completion). Please reduce the length of the messages or \
                completion.";
    assert_eq!(error.to_string(), text);
    let body: Value = serde_json::from_str(&error.to_json()).unwrap();
    let expected = json!({ "error": {
        "message": text, "type": "invalid_request_error", "param": "messages",
        "code": "context_length_exceeded",
    } });
    assert_eq!((error.status().as_u16(), body), (400, expected));
}

#[test]
fn tools_and_their_functions() {
    let function = |function: Value| json!({ "tools": [{ "type": "function", "function": function }] });
    let f = json!({ "type": "function", "function": { "name": "f" } });
    let long = "x".repeat(129);
    for (more, code, param) in [
        (json!({ "tools": {} }), INVALID, "tools"),
        (json!({ "tools": [5] }), INVALID, "tools[0]"),
        (json!({ "tools": vec![f.clone(); 129] }), INVALID, "tools"),
        (json!({ "tools": [f, f] }), INVALID, "tools[1].function.name"),
        (json!({ "tools": [{ "type": "custom", "custom": { "name": "f" } }] }), None, "tools[0].type"),
        (json!({ "tools": [{ "type": "web_search" }] }), None, "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), INVALID, "tools[0].function"),
        (function(json!({})), INVALID, "tools[0].function.name"),
        (function(json!({ "name": 5 })), INVALID, "tools[0].function.name"),
        (function(json!({ "name": "" })), INVALID, "tools[0].function.name"),
        (function(json!({ "name": "a b" })), INVALID, "tools[0].function.name"),
        (function(json!({ "name": "f\"" })), INVALID, "tools[0].function.name"),
        (function(json!({ "name": long })), INVALID, "tools[0].function.name"),
        (function(json!({ "name": "f", "description": 5 })), INVALID, "tools[0].function.description"),
        (function(json!({ "name": "f", "parameters": [] })), INVALID, "tools[0].function.parameters"),
        (
            function(json!({ "name": "f", "parameters": { "type": "string" } })),
            INVALID,
            "tools[0].function.parameters.type",
        ),
        (function(json!({ "name": "f", "strict": "yes" })), INVALID, "tools[0].function.strict"),
    ] {
        expect(chat(&a_chat(&more)), &more, code, param);
    }
}

#[test]
fn the_choice_among_tools() {
    let f = json!({ "type": "function", "function": { "name": "f" } });
    let chosen = |choice: Value| json!({ "tools": [f], "tool_choice": choice });
    let schema = json!({ "type": "json_schema", "json_schema": { "schema": {} } });
    for (more, code, param) in [
        (chosen(json!("sometimes")), INVALID, "tool_choice"),
        (chosen(json!(true)), INVALID, "tool_choice"),
        (
            chosen(json!({ "type": "function", "function": { "name": "g" } })),
            INVALID,
            "tool_choice.function.name",
        ),
        (chosen(json!({ "type": "function", "function": {} })), INVALID, "tool_choice.function.name"),
        (chosen(json!({ "type": "function" })), INVALID, "tool_choice.function.name"),
        (chosen(json!({ "type": "custom" })), None, "tool_choice.type"),
        (chosen(json!({ "type": "allowed_tools" })), INVALID, "tool_choice.tools"),
        (
            chosen(json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [] } })),
            INVALID,
            "tool_choice.allowed_tools.tools",
        ),
        (
            chosen(json!({ "type": "allowed_tools", "allowed_tools": { "mode": "all", "tools": [f] } })),
            INVALID,
            "tool_choice.allowed_tools.mode",
        ),
        (
            chosen(json!({ "type": "allowed_tools", "mode": "auto", "tools": [{ "name": "g" }] })),
            INVALID,
            "tool_choice.tools[0]",
        ),
        (json!({ "tool_choice": "required" }), INVALID, "tool_choice"),
        (
            json!({ "tools": [], "tool_choice": { "function": { "name": "f" } } }),
            INVALID,
            "tool_choice.function.name",
        ),
        (json!({ "tools": [f], "parallel_tool_calls": 1 }), INVALID, "parallel_tool_calls"),
        // A constraint on the answer that calls cannot be combined with.
        (json!({ "tools": [f], "regex": "a" }), None, "regex"),
        (
            json!({ "tools": [f], "tool_choice": "required", "response_format": schema }),
            INVALID,
            "response_format.json_schema.schema",
        ),
    ] {
        expect(chat(&a_chat(&more)), &more, code, param);
    }
    let mut limits = super::limits();
    limits.tools = Some(ToolSupport { format: None, in_template: true, calls_in_template: true });
    let more = json!({ "tools": [f] });
    expect(super::chat_within(&a_chat(&more), &limits), &more, None, "tools");
    super::chat_within(&a_chat(&json!({ "tools": [f], "tool_choice": "none" })), &limits).unwrap();
}
