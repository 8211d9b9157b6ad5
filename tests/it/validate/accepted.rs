//! Accepted bodies: every field has a value in the validated request.

use octant::generation::{Ask, ChatMessage, Content, MaxTokens, Prompts, Role, Truncate};
use octant::grammar::GrammarSource;
use octant::server::validate::Limits;
use octant::tools::{ToolFormat, ToolSupport};
use serde_json::{Value, json};

use super::{a_chat, a_completion, chat, chat_within, completion, limits, with};

#[test]
fn fields_left_out_get_the_models_defaults() {
    let request = chat(&a_chat(&json!({}))).unwrap();
    let (ask, sampling) = (&request.ask, &request.ask.sampling);
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.7, 0.9, 40));
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.05, 1.1));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (0.0, 0.0));
    assert_eq!((sampling.seed, sampling.logprobs, sampling.min_tokens), (4711, None, 0));
    assert_eq!((ask.n, ask.max_tokens, ask.priority), (1, MaxTokens::UpTo(u32::MAX), 0));
    assert_eq!((&ask.stop_ids, &sampling.barred), (&vec![99], &vec![99]));
    assert!(ask.output.stop.is_empty() && ask.output.skip_special && !ask.output.include_stop);
    assert_eq!((request.model.as_str(), request.stream, request.include_usage), ("model", false, false));
    assert_eq!(completion(&a_completion(&json!({}))).unwrap().ask.max_tokens, MaxTokens::UpTo(16));
}

#[test]
fn a_null_field_counts_as_left_out() {
    let nulls: serde_json::Map<String, Value> = [
        "model",
        "n",
        "best_of",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "seed",
        "stop",
        "stop_token_ids",
        "max_tokens",
        "min_tokens",
        "ignore_eos",
        "skip_special_tokens",
        "include_stop_str_in_output",
        "stream",
        "stream_options",
        "cache_salt",
        "priority",
        "tools",
        "tool_choice",
        "response_format",
        "logprobs",
        "user",
        "suffix",
        "prompt_logprobs",
        "prompt_logprobs_start",
        "unheard_of",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), Value::Null))
    .collect();
    let nulls = Value::Object(nulls);
    let plain = format!("{:?}", chat(&a_chat(&json!({}))).unwrap());
    assert_eq!(format!("{:?}", chat(&a_chat(&nulls)).unwrap()), plain);
    let plain = format!("{:?}", completion(&a_completion(&json!({}))).unwrap());
    assert_eq!(format!("{:?}", completion(&a_completion(&nulls)).unwrap()), plain);
}

#[test]
fn both_ends_of_every_range_are_accepted() {
    for (field, values) in [
        ("n", json!([1, 128])),
        ("temperature", json!([0, 1e-300, 0.0001, 2, 2.0])),
        ("top_p", json!([0, 1e-300, 1e-30, 1])),
        ("top_k", json!([-1, 0, 1, 2_147_483_647])),
        ("min_p", json!([0, 1])),
        ("presence_penalty", json!([-2, 1e-300, 2])),
        ("frequency_penalty", json!([-2, 2])),
        ("repetition_penalty", json!([0.01, 100])),
        ("max_tokens", json!([1, 4_294_967_295_u32])),
        ("min_tokens", json!([0, 16])),
        ("seed", json!([i64::MIN, -1, 0, u64::MAX])),
        ("priority", json!([-100, 100])),
        ("stop", json!(["a", vec!["a"; 16], "x".repeat(1024), [], "", [""]])),
        ("stop_token_ids", json!([[], [0, 99], vec![1; 64]])),
        ("logit_bias", json!([{}, { "0": -100, "99": 100 }])),
        ("cache_salt", json!(["x", "é".repeat(1024)])),
        ("best_of", json!([1])),
        ("tools", json!([[]])),
        ("bad_words", json!([[], ["a"], ["", " b"], vec!["a"; 1024], ["x".repeat(1024)]])),
        ("allowed_token_ids", json!([[5], [0, 99], [7, 7]])),
        ("truncate_prompt_tokens", json!([-1, 1, 4_294_967_295_u32])),
        ("prompt_logprobs", json!([0, 20, 1.0])),
        ("return_token_ids", json!([true, false])),
        ("return_tokens_as_token_ids", json!([true, false])),
        ("reasoning_effort", json!(["low", "x".repeat(64)])),
        ("verbosity", json!(["high"])),
        ("store", json!([true, false])),
        ("metadata", json!([{}, { "a": "", "é".repeat(64): "é".repeat(512) }])),
        ("user", json!(["", "é".repeat(512)])),
        ("use_beam_search", json!([false])),
    ] {
        for value in values.as_array().unwrap() {
            let more = json!({ field: value });
            chat(&a_chat(&more)).unwrap_or_else(|e| panic!("{more}: {e}"));
            completion(&a_completion(&more)).unwrap_or_else(|e| panic!("{more}: {e}"));
        }
    }
}

#[test]
fn values_reach_the_validated_request_unchanged() {
    let more = json!({
        "n": 3, "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.25, "presence_penalty": -2,
        "frequency_penalty": 1.5, "repetition_penalty": 1, "logit_bias": { "7": -100, "0": 2.5 }, "seed": -1,
        "max_tokens": 9, "min_tokens": 4, "stop_token_ids": [5, 3, 5], "priority": -7, "cache_salt": "s",
        "stop": ["x", "y"], "stream": true, "stream_options": { "include_usage": true },
        "include_stop_str_in_output": true, "skip_special_tokens": false, "model": "alias",
    });
    let request = chat(&a_chat(&more)).unwrap();
    let (ask, sampling) = (&request.ask, &request.ask.sampling);
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 0, 0.25));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-2.0, 1.5));
    assert_eq!(sampling.repetition_penalty, 1.0);
    assert_eq!(sampling.logit_bias, [(7, -100.0), (0, 2.5)]);
    assert_eq!((sampling.seed, sampling.min_tokens), (u64::MAX, 4));
    assert_eq!((&ask.stop_ids, &sampling.barred), (&vec![3, 5, 99], &vec![3, 5, 99]));
    assert_eq!((ask.n, ask.max_tokens, ask.priority), (3, MaxTokens::Exactly(9), -7));
    assert_eq!(
        (ask.cache_salt.as_deref(), &ask.output.stop),
        (Some("s"), &vec!["x".to_owned(), "y".to_owned()])
    );
    assert!(ask.output.include_stop && !ask.output.skip_special && !ask.output.echo);
    assert!(request.stream && request.include_usage && !request.logprobs);
    assert_eq!(request.model, "alias");
}

#[test]
fn fields_about_tokens_reach_the_validated_request() {
    let more = json!({ "bad_words": ["a", "", " "], "allowed_token_ids": [3, 99], "truncate_prompt_tokens": 7,
        "prompt_logprobs": 4, "return_token_ids": true, "return_tokens_as_token_ids": true });
    for request in [chat(&a_chat(&more)), completion(&a_completion(&more))] {
        let request = request.unwrap();
        let ask = &request.ask;
        assert_eq!((&ask.bad_words, &ask.allowed_tokens), (&vec!["a".to_owned()], &Some(vec![3, 99])));
        assert_eq!((ask.truncate, ask.prompt_logprobs), (Some(Truncate::Last(7)), Some(4)));
        assert!(ask.output.token_ids && request.names_ids && !request.logprobs);
    }
    let fit = chat(&a_chat(&json!({ "truncate_prompt_tokens": -1 }))).unwrap();
    assert_eq!(fit.ask.truncate, Some(Truncate::Fit));
    let options = json!({ "stream": true, "stream_options": { "continuous_usage_stats": true } });
    let request = chat(&a_chat(&options)).unwrap();
    assert!(request.continuous_usage && !request.include_usage);
}

#[test]
fn template_fields_reach_templates_that_read_them() {
    let limits = Limits { template_fields: vec!["reasoning_effort"], ..limits() };
    let kwargs = |more: Value| {
        let request = chat_within(&a_chat(&more), &limits).unwrap();
        let ignored = request.ignored().to_vec();
        let Prompts::Chat { options, .. } = request.ask.prompts else { panic!("expected a chat") };
        (Value::Object(options.kwargs), ignored)
    };
    let both = json!({ "reasoning_effort": "low", "verbosity": "high" });
    assert_eq!(kwargs(both.clone()), (json!({ "reasoning_effort": "low" }), vec!["verbosity".to_owned()]));
    let own = json!({ "chat_template_kwargs": { "reasoning_effort": "none", "x": 1 } });
    let expected = json!({ "reasoning_effort": "none", "x": 1 });
    assert_eq!(kwargs(with(both.clone(), &own)), (expected, vec!["verbosity".to_owned()]));
    let text = completion(&a_completion(&both)).unwrap();
    assert_eq!(text.ignored(), ["reasoning_effort", "verbosity"]);
}

#[test]
fn a_tiny_temperature_becomes_0_01_and_0_stays_greedy() {
    for (given, used) in [
        (json!(0), 0.0),
        (json!(0.0), 0.0),
        (json!(1e-8), 0.01),
        (json!(1e-300), 0.01),
        (json!(0.0001), 0.01),
        (json!(0.00999), 0.01),
        (json!(0.01), 0.01),
        (json!(0.011), 0.011),
    ] {
        let more = json!({ "temperature": given });
        assert_eq!(chat(&a_chat(&more)).unwrap().ask.sampling.temperature, used, "{more}");
        assert_eq!(completion(&a_completion(&more)).unwrap().ask.sampling.temperature, used, "{more}");
    }
}

#[test]
fn a_top_p_of_0_is_greedy_whatever_the_temperature() {
    for more in [json!({ "top_p": 0 }), json!({ "top_p": 0.0, "temperature": 2 }), json!({ "top_p": 1e-60 })]
    {
        let sampling = chat(&a_chat(&more)).unwrap().ask.sampling;
        assert_eq!((sampling.temperature, sampling.top_p), (0.0, 1.0), "{more}");
    }
    assert_eq!(chat(&a_chat(&json!({ "top_p": 0.001 }))).unwrap().ask.sampling.temperature, 0.7);
}

#[test]
fn an_empty_stop_string_is_none() {
    let stops = |stop: Value| chat(&a_chat(&json!({ "stop": stop }))).unwrap().ask.output.stop;
    assert!(stops(json!("")).is_empty() && stops(json!(["", ""])).is_empty());
    assert_eq!(stops(json!(["", "a", ""])), ["a"]);
    let many: Vec<&str> = ["", "a"].repeat(16);
    assert_eq!(stops(json!(many)).len(), 16);
}

#[test]
fn integers_may_be_written_with_a_point_or_an_exponent() {
    let integers = json!({
        "n": 2.0, "top_k": -1.0, "seed": 1e2, "max_tokens": 16.0, "min_tokens": 3.0, "priority": -7.0,
        "best_of": 2.0, "stop_token_ids": [5.0, 7], "top_logprobs": 5e0, "logprobs": true,
        "max_completion_tokens": 1.6e1,
    });
    let error = chat(&a_chat(&integers)).expect_err("best_of above 1 is not supported");
    assert_eq!(error.param(), Some("best_of"));
    let integers = with(integers, &json!({ "best_of": null }));
    let request = chat(&a_chat(&integers)).unwrap();
    let (ask, sampling) = (&request.ask, &request.ask.sampling);
    assert_eq!((ask.n, ask.max_tokens, ask.priority), (2, MaxTokens::Exactly(16), -7));
    assert_eq!((sampling.top_k, sampling.seed, sampling.min_tokens), (0, 100, 3));
    assert_eq!((&ask.stop_ids, sampling.logprobs), (&vec![5, 7, 99], Some(5)));
    let text = completion(&json!({ "prompt": [1.0, 2e1], "logprobs": 2.0, "max_tokens": 1.0 })).unwrap();
    assert!(matches!(text.ask.prompts, Prompts::Ids(ids) if ids == [[1, 20]]));
    assert_eq!(text.ask.sampling.logprobs, Some(2));
}

#[test]
fn content_may_be_empty() {
    for content in [json!(""), json!([]), json!([{ "type": "text", "text": "" }])] {
        for role in ["system", "developer", "user", "assistant"] {
            let messages = json!([{ "role": role, "content": content }]);
            let Prompts::Chat { messages, .. } = chat(&json!({ "messages": messages })).unwrap().ask.prompts
            else {
                panic!("expected a chat")
            };
            let parts = content.as_array().map(|parts| vec![String::new(); parts.len()]);
            let expected = parts.map_or_else(|| Content::Text(String::new()), Content::Parts);
            assert_eq!(messages[0].content, expected, "{role}");
        }
    }
}

#[test]
fn models_are_found_behind_a_providers_prefix_and_by_the_path_of_their_directory() {
    for (asked, served) in [
        ("model", "model"),
        ("alias", "alias"),
        ("openai/model", "model"),
        ("hosted_vllm/alias", "alias"),
        ("litellm_proxy/openai/model", "model"),
        ("nvidia/model", "model"),
        ("/models/a", "model"),
        ("/models/a/", "model"),
        ("a", "model"),
    ] {
        let more = json!({ "model": asked });
        assert_eq!(chat(&a_chat(&more)).unwrap().model, served, "{asked}");
        assert_eq!(completion(&a_completion(&more)).unwrap().model, served, "{asked}");
    }
}

#[test]
fn ignore_eos_keeps_stop_token_ids() {
    let request = chat(&a_chat(&json!({ "ignore_eos": true, "stop_token_ids": [5] }))).unwrap();
    assert_eq!((request.ask.stop_ids, request.ask.sampling.barred), (vec![5], vec![5]));
}

#[test]
fn logprobs_of_chats_and_of_completions() {
    let chosen = |more: Value| chat(&a_chat(&more)).unwrap().ask.sampling.logprobs;
    assert_eq!(chosen(json!({ "logprobs": true })), Some(0));
    assert_eq!(chosen(json!({ "logprobs": true, "top_logprobs": 20 })), Some(20));
    assert_eq!(chosen(json!({ "logprobs": false, "top_logprobs": 0 })), None);
    let request =
        completion(&a_completion(&json!({ "logprobs": 20, "echo": true, "max_tokens": 0 }))).unwrap();
    assert_eq!((request.ask.sampling.logprobs, request.ask.max_tokens), (Some(20), MaxTokens::Exactly(0)));
    assert!(request.logprobs && request.ask.output.echo && request.ask.output.score_stop_id);
}

#[test]
fn messages_become_text_with_a_role() {
    let body = json!({ "messages": [
        { "role": "developer", "content": "a" },
        {
            "role": "user", "name": "me",
            "content": [{ "type": "text", "text": "b" }, { "type": "text", "text": "c" }],
        },
        { "role": "assistant", "content": "", "tool_calls": [], "reasoning_content": "x" },
        { "role": "tool", "content": "d", "tool_call_id": "1" },
    ] });
    let Prompts::Chat { messages, options } = chat(&body).unwrap().ask.prompts else {
        panic!("expected a chat")
    };
    let message = |role, content: &str, name: Option<&str>, fields: Value| ChatMessage {
        name: name.map(str::to_owned),
        fields: fields.as_object().unwrap().clone(),
        ..ChatMessage::new(role, content)
    };
    let expected = [
        message(Role::System, "a", None, json!({})),
        ChatMessage {
            content: Content::Parts(vec!["b".to_owned(), "c".to_owned()]),
            ..message(Role::User, "", Some("me"), json!({}))
        },
        message(Role::Assistant, "", None, json!({ "reasoning_content": "x" })),
        message(Role::Tool, "d", None, json!({ "tool_call_id": "1" })),
    ];
    assert_eq!(messages, expected);
    assert!(options.add_generation_prompt && !options.continue_final_message && options.kwargs.is_empty());
    let more = json!({ "continue_final_message": true, "chat_template_kwargs": { "thinking": false } });
    let body = with(json!({ "messages": [{ "role": "assistant", "content": "I" }] }), &more);
    let Prompts::Chat { options, .. } = chat(&body).unwrap().ask.prompts else { panic!("expected a chat") };
    assert!(!options.add_generation_prompt && options.continue_final_message);
    assert_eq!(options.kwargs["thinking"], false);
}

#[test]
fn prompts_have_four_shapes() {
    let prompts = |prompt: Value| completion(&json!({ "prompt": prompt })).unwrap().ask.prompts;
    assert!(matches!(prompts(json!("a")), Prompts::Texts { texts, add_special: true } if texts == ["a"]));
    assert!(matches!(prompts(json!(["a", "b"])), Prompts::Texts { texts, .. } if texts == ["a", "b"]));
    assert!(matches!(prompts(json!([0, 99])), Prompts::Ids(ids) if ids == [[0, 99]]));
    assert!(matches!(prompts(json!([[1, 2], [3]])), Prompts::Ids(ids) if ids == [vec![1, 2], vec![3]]));
}

#[test]
fn unknown_fields_are_reported_by_name() {
    let more = json!({ "zebra": 1, "user": "me", "store": true, "length_penalty": 1.0, "apple": {} });
    assert_eq!(chat(&a_chat(&more)).unwrap().ignored(), ["zebra", "store", "length_penalty", "apple"]);
    let harmless = json!({ "store": false, "service_tier": "auto", "metadata": { "a": "b" } });
    assert!(chat(&a_chat(&harmless)).unwrap().ignored().is_empty());
    let tier = json!({ "service_tier": "flex" });
    assert_eq!(completion(&a_completion(&tier)).unwrap().ignored(), ["service_tier"]);
}

#[test]
fn the_last_of_two_equal_fields_counts() {
    let body = b"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":0,\"n\":2}";
    let map = octant::server::json::parse_object(body).unwrap();
    let fields = octant::server::fields::Fields::new(map);
    assert_eq!(octant::server::validate::chat(fields, &super::limits(), 0).unwrap().ask.n, 2);
}

#[test]
fn tools_reach_the_template_the_answer_and_the_grammar() {
    let tool = |name: &str, strict: bool| {
        json!({ "type": "function", "function": { "name": name, "description": "d",
        "parameters": { "type": "object", "properties": {} }, "strict": strict } })
    };
    let ask = |more: Value| chat(&a_chat(&more)).unwrap().ask;
    let shown = |ask: &Ask| match &ask.prompts {
        Prompts::Chat { options, .. } => options.kwargs.get("tools").cloned(),
        _ => None,
    };
    let plain = ask(json!({ "tools": [tool("f", false), tool("g", false)] }));
    let function =
        json!({ "name": "f", "description": "d", "parameters": { "type": "object", "properties": {} } });
    assert_eq!(shown(&plain).unwrap()[0], json!({ "type": "function", "function": function }));
    assert_eq!(&*plain.tools.clone().unwrap().names, ["f", "g"]);
    assert_eq!(plain.grammar, None);
    let none = ask(json!({ "tools": [tool("f", true)], "tool_choice": "none" }));
    assert!(shown(&none).is_none() && none.tools.is_none() && none.grammar.is_none());
    // Whether a grammar is needed, and which calls it has.
    let allowed = |mode: &str| {
        json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": [
        { "type": "function", "function": { "name": "g" } }] } })
    };
    for (more, calls) in [
        (json!({ "tool_choice": "auto" }), None),
        (json!({ "tool_choice": "required" }), Some(vec!["f", "g"])),
        (json!({ "tool_choice": { "type": "function", "function": { "name": "g" } } }), Some(vec!["g"])),
        (json!({ "tool_choice": { "type": "function", "name": "g" } }), Some(vec!["g"])),
        (json!({ "tool_choice": allowed("auto") }), Some(vec!["g"])),
        (json!({ "tool_choice": allowed("required") }), Some(vec!["g"])),
        (json!({ "parallel_tool_calls": false }), Some(vec!["f", "g"])),
        (json!({ "response_format": { "type": "json_object" } }), Some(vec!["f", "g"])),
    ] {
        let ask = ask(with(json!({ "tools": [tool("f", false), tool("g", false)] }), &more));
        let found = ask.grammar.map(|grammar| match grammar {
            GrammarSource::WithSchemas { lark, .. } => {
                ["f", "g"].into_iter().filter(|name| lark.contains(&format!("\"{name}\\\", "))).collect()
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(found, calls, "{more}");
    }
    let strict = ask(json!({ "tools": [tool("f", true)] }));
    assert!(strict.grammar.is_some());
}

#[test]
fn earlier_calls_reach_the_template_as_objects() {
    let call = |arguments: Value| {
        let function = json!({ "name": "f", "arguments": arguments });
        json!({ "id": "c", "type": "function", "function": function })
    };
    let messages = json!([
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": null, "tool_calls": [call(json!("{\"a\": 1}")),
            call(json!({ "a": 2 })), call(json!("")), call(json!("{\"a")), { "function": { "name": "g" } }] },
        { "role": "tool", "tool_call_id": "c", "content": "r" },
    ]);
    let ask = chat(&json!({ "messages": messages })).unwrap().ask;
    let Prompts::Chat { messages, .. } = ask.prompts else { panic!("a chat") };
    let calls = messages[1].fields["tool_calls"].as_array().unwrap();
    let arguments: Vec<&Value> = calls.iter().map(|call| &call["function"]["arguments"]).collect();
    assert_eq!(json!(arguments), json!([{ "a": 1 }, { "a": 2 }, {}, "{\"a", {}]));
    assert_eq!(messages[1].content, Content::Text(String::new()));
}

#[test]
fn a_template_without_tools_gets_them_as_text() {
    let mut limits = super::limits();
    limits.tools = Some(ToolSupport {
        format: Some(ToolFormat::Nemotron),
        in_template: false,
        calls_in_template: false,
    });
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    let call =
        json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } });
    let messages = json!([
        { "role": "system", "content": "S" },
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": "w", "tool_calls": [call, call] },
        { "role": "tool", "tool_call_id": "c", "content": "r1" },
        { "role": "tool", "tool_call_id": "c", "content": "r2" },
        { "role": "user", "content": "and?" },
    ]);
    let body = json!({ "messages": messages, "tools": [tool] });
    let ask = super::chat_within(&body, &limits).unwrap().ask;
    let Prompts::Chat { messages, options } = ask.prompts else { panic!("a chat") };
    assert!(!options.kwargs.contains_key("tools"));
    let texts: Vec<(Role, &Content)> =
        messages.iter().map(|message| (message.role, &message.content)).collect();
    let Content::Text(system) = texts[0].1 else { panic!("a text") };
    assert!(
        system.starts_with("S\n\n") && system.contains("<tool> {") && system.contains("<toolcall> {"),
        "{system}"
    );
    let call = "<toolcall> {\"name\": \"f\", \"arguments\": {\"a\":1}} </toolcall>";
    let results = "<tool_response>\nr1\n</tool_response>\n<tool_response>\nr2\n</tool_response>\nand?";
    assert_eq!(texts[2], (Role::Assistant, &Content::Text(format!("w\n{call}\n{call}"))));
    assert_eq!(texts[3], (Role::User, &Content::Text(results.to_owned())));
    assert_eq!(texts.len(), 4);
    assert!(messages.iter().all(|message| !message.fields.contains_key("tool_calls")));
    // Without tools nothing is added.
    let body = json!({ "messages": [{ "role": "user", "content": "q" }] });
    let Prompts::Chat { messages, .. } = super::chat_within(&body, &limits).unwrap().ask.prompts else {
        panic!("a chat")
    };
    assert_eq!(messages.len(), 1);
}
