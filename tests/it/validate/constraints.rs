//! Fields that constrain the answer and are not supported, as servers and client libraries spell them. Each
//! is refused by name, and accepted if its value asks for nothing. `grammars` has those that are supported.

use octant::server::error::ApiError;
use serde_json::{Value, json};

use super::{a_chat, a_completion, chat, completion, with};

/// Asserts that both routes refuse these fields and name this one.
fn refused(more: &Value, param: &str) {
    for result in [chat(&a_chat(more)), completion(&a_completion(more))] {
        let error = result.map(|_| ()).expect_err(&more.to_string());
        assert_eq!(
            (error.status().as_u16(), error.code(), error.param()),
            (400, None, Some(param)),
            "{more}"
        );
    }
}

/// Asserts that both routes accept these fields.
fn accepted(more: &Value) {
    for result in [chat(&a_chat(more)), completion(&a_completion(more))] {
        result.unwrap_or_else(|error| panic!("{more}: {error}"));
    }
}

/// Fields of other local servers.
fn fields_of_local_servers(schema: &Value) -> Vec<(&'static str, Value)> {
    vec![
        // SGLang
        ("structural_tag", json!("x")),
        ("stop_regex", json!("a")),
        ("custom_logit_processor", json!("x")),
        // llama.cpp, KoboldCpp, TabbyAPI, text-generation-webui
        ("grammar", json!("root ::= \"a\"")),
        ("grammar_lazy", json!(true)),
        ("grammar_string", json!("x")),
        ("regex_pattern", json!("x")),
        ("banned_strings", json!(["x"])),
        ("banned_tokens", json!([1])),
        ("custom_token_bans", json!("1,2")),
        ("n_predict", json!(5)),
        // Ollama
        ("format", json!("json")),
        ("format", schema.clone()),
        ("num_predict", json!(5)),
        // TGI, mistral.rs
        ("grammar", json!({ "type": "regex", "value": "a" })),
        ("max_new_tokens", json!(5)),
        ("stop_sequences", json!(["x"])),
        // vLLM
        ("guided_something_new", json!(1)),
        ("structured_output", json!({ "json": {} })),
        ("logits_processor_pattern", json!("x")),
    ]
}

/// Fields of hosted services, of libraries, and of no server in particular.
fn fields_of_services_and_libraries(schema: &Value) -> Vec<(&'static str, Value)> {
    vec![
        // OpenAI, Anthropic, Gemini, Mistral
        ("output_format", json!({ "type": "json_schema" })),
        ("responseSchema", schema.clone()),
        ("response_mime_type", json!("application/json")),
        ("max_tokens_to_sample", json!(5)),
        ("max_output_tokens", json!(5)),
        ("stopSequences", json!(["x"])),
        // transformers, TensorRT-LLM
        ("suppress_tokens", json!([1])),
        ("force_words_ids", json!([[1]])),
        ("forced_eos_token_id", json!(1)),
        ("no_repeat_ngram_size", json!(2)),
        ("max_length", json!(5)),
        ("min_length", json!(5)),
        ("end_id", json!(5)),
        ("eos_token_id", json!(5)),
        ("stop_words", json!(["x"])),
        ("bad_words_ids", json!([[1]])),
        ("sequence_bias", json!([[[1], 5.0]])),
        ("forced_decoder_ids", json!([[1, 2]])),
        ("max_output_len", json!(5)),
        ("max_len", json!(5)),
        // Others
        ("json_mode", json!(true)),
        ("json", json!(true)),
        ("json", json!({})),
        ("json_output", json!(true)),
        ("return_json", json!(true)),
        ("force_json", json!(true)),
        ("max_response_tokens", json!(5)),
        ("max_response_output_tokens", json!(5)),
        ("max_answer_tokens", json!(5)),
        ("maxAnswerTokens", json!(5)),
        ("min_answer_tokens", json!(5)),
        ("token_limit", json!(5)),
        ("budget_tokens", json!(5)),
        ("logits_bias", json!({ "5": 1 })),
        ("Grammar", json!("x")),
        ("choice", json!(["a"])),
        ("pattern", json!("a")),
        ("lark", json!("x")),
        ("output-schema", schema.clone()),
    ]
}

#[test]
fn a_constraint_is_refused_by_name_in_every_spelling() {
    let schema = json!({ "type": "object" });
    let fields = [fields_of_local_servers(&schema), fields_of_services_and_libraries(&schema)].concat();
    for (field, value) in fields {
        refused(&json!({ field: value }), field);
        accepted(&json!({ field: null }));
    }
}

/// Names of constraints in spellings of no server in particular: other separators, letter cases and words.
const CONSTRAINTS: [&str; 72] = [
    "guidedJson",
    "GuidedJSON",
    "GUIDED_JSON",
    "guided-regex",
    "guidedgrammar",
    "guided.choice",
    "guideddecoding",
    "JSONSchema",
    "jsonschema",
    "json-schemas",
    "outputJsonSchema",
    "answer_schema",
    "responseschema",
    "output_schemata",
    "myRegex",
    "regexes",
    "answer_regexp",
    "EBNFGrammar",
    "gbnf_rules",
    "bnf",
    "grammars",
    "structuredOutput",
    "structuredoutputs",
    "answer_structure",
    "structural-tags",
    "constrainedDecoding",
    "constraints",
    "output_constraint",
    "jsonMode",
    "jsonmode",
    "strictJSON",
    "JSON_only",
    "enforce-json",
    "responseFormat",
    "RESPONSE_FORMAT",
    "responseMIMEType",
    "outputtype",
    "my_tool_choice",
    "logitBias1",
    "logits-processors",
    "LogitProcessor",
    "sequenceBiases",
    "allowedTokenIds",
    "allow_tokens",
    "wordAllowList",
    "whitelist",
    "blacklistedWords",
    "denylist",
    "bannedPhrases",
    "banTokens",
    "badwords",
    "suppressedTokens",
    "forcedBosTokenId",
    "noRepeatNGramSize",
    "norepeatngramsize",
    "maxnewtokens",
    "maximumTokens",
    "MinTokens2",
    "reasoning_max_tokens",
    "max_gen_toks",
    "maxGenerationLength",
    "tokenLimit",
    "thinking-token-budget",
    "response_length",
    "numpredict",
    "tokens_to_predict",
    "stopSequences",
    "stopwords",
    "stoppingCriteria",
    "custom_stop_strings",
    "custom_stopping_strings",
    "eosTokenIds",
];

/// Ordinary names with the letters of a constraint, or with some of its words.
const ORDINARY: [&str; 68] = [
    "infrastructure",
    "infrastructureId",
    "unstructured",
    "restructuring_plan",
    "admin_token",
    "adminTokens",
    "vitamin_tokens",
    "gemini_token",
    "jasmin-token-count",
    "syntax_tokens",
    "climaxTokens",
    "maxTokenizerThreads",
    "minute_token",
    "mins_per_token",
    "token_max_age",
    "tokenizer",
    "token",
    "access_token_ttl",
    "urban_token",
    "turban_tokens",
    "ban",
    "husbanned",
    "disbanned_units",
    "reschematize",
    "schematic",
    "schema_version",
    "schemaVersion",
    "programmarkup",
    "ungrammatical",
    "grammarian",
    "regexpert",
    "subnframe",
    "misguided_note",
    "guide",
    "guidelines",
    "unconstrained",
    "json_path",
    "jsonLogs",
    "jsonp",
    "format_version",
    "audio_format",
    "reformat",
    "information",
    "platform",
    "choice_id",
    "pattern_name",
    "lark_app_id",
    "stopwatch",
    "stopover_city",
    "nonstop",
    "bus_stop",
    "early_stopping",
    "unstoppable",
    "predicted_class",
    "predictable",
    "unpredictability",
    "listed",
    "wish_list",
    "shallowlist",
    "blacklight",
    "outputTypeface",
    "response_typewriter",
    "toolchain",
    "max_length_ms",
    "max_price",
    "maxgent",
    "suffering",
    "endids_of_rows",
];

#[test]
fn names_are_compared_by_their_words() {
    for name in CONSTRAINTS {
        refused(&json!({ name: "x" }), name);
    }
    for name in ORDINARY {
        let more = json!({ name: "x" });
        accepted(&more);
        assert_eq!(chat(&a_chat(&more)).unwrap().ignored(), [name]);
    }
}

#[test]
fn constraints_within_objects_are_refused_with_their_path() {
    for (more, param) in [
        (json!({ "nvext": { "top_k": 1 } }), "nvext.top_k"),
        (json!({ "nvext": { "guided_json": {}, "top_k": 1 } }), "nvext.top_k"),
        (json!({ "extra_body": { "guided_json": {} } }), "extra_body.guided_json"),
        (json!({ "extra_body": { "nvext": { "guided_json": {} } } }), "extra_body.nvext"),
        (json!({ "options": { "num_predict": 5 } }), "options.num_predict"),
        (json!({ "sampling_params": { "regex": "a" } }), "sampling_params.regex"),
        (json!({ "parameters": { "grammar": { "type": "json" } } }), "parameters.grammar"),
        (json!({ "generationConfig": { "responseSchema": {} } }), "generationConfig.responseSchema"),
        (json!({ "vllm_xargs": { "x": 1 } }), "vllm_xargs.x"),
        (json!({ "guided_decoding": { "json": {} } }), "guided_decoding.json"),
        (json!({ "text": { "format": { "type": "json_schema" } } }), "text"),
        (json!({ "output_config": { "format": { "type": "json_schema" } } }), "output_config.format"),
        (json!({ "mine": { "deep": { "guided_json": {} } } }), "mine.deep.guided_json"),
        (json!({ "mine": { "stop_words": ["a"] } }), "mine.stop_words"),
        (json!({ "mine": [{ "regex": "a" }] }), "mine[0].regex"),
        (json!({ "mine": [1, [{}, { "deep": [{ "json": {} }] }]] }), "mine[1][1].deep[0].json"),
        (json!({ "thinking": { "type": "enabled", "budget_tokens": 5 } }), "thinking.budget_tokens"),
        (json!({ "text": { "json_schema": {} } }), "text"),
        (json!({ "text": { "max_tokens": 5 } }), "text"),
        (json!({ "text": { "format": { "type": "text" }, "odd": 1 } }), "text"),
        (json!({ "text": "a" }), "text"),
        (json!({ "stream": true, "stream_options": { "guided_json": {} } }), "stream_options.guided_json"),
        (
            json!({ "stream": true, "stream_options": { "mine": [{ "regex": "a" }] } }),
            "stream_options.mine[0].regex",
        ),
    ] {
        refused(&more, param);
    }
    for harmless in [
        json!({ "nvext": {} }),
        json!({ "nvext": { "guided_json": null, "top_k": null } }),
        json!({ "extra_body": null, "options": {}, "sampling_params": {} }),
        json!({ "text": { "format": { "type": "text" } } }),
        json!({ "text": { "verbosity": "low" } }),
        json!({ "text": { "format": null, "verbosity": null, "max_tokens": null } }),
        json!({ "$schema": "https://a.example/request.json", "mine": { "$schema": "x" } }),
        json!({ "mine": [{ "regex": null, "odd": 1 }, "regex", 1, null, []] }),
        json!({ "json": false, "token_limit": 0 }),
        json!({ "thinking": { "type": "disabled", "budget_tokens": 0 } }),
        json!({ "stream": true, "stream_options": { "include_obfuscation": false, "guided_json": null } }),
        json!({ "plugins": [{ "id": "web", "max_results": 5 }] }),
        json!({ "provider": { "order": ["x"], "max_price": { "prompt": 1 } } }),
        json!({ "response_format": { "type": "text", "json_schema": null } }),
        json!({ "mine": { "deep": { "guided_json": null, "odd": 1 } } }),
        json!({ "grammar": "", "format": "", "json_mode": false, "stop_words": [], "max_length": null }),
        json!({ "no_repeat_ngram_size": 0, "min_length": 0, "banned_tokens": [] }),
    ] {
        accepted(&harmless);
    }
}

/// Validates a chat whose only message, and then the only part of its content, has these fields too.
fn in_messages(more: &Value) -> [(Result<(), ApiError>, &'static str); 2] {
    let ask = |message: Value| chat(&json!({ "messages": [message] })).map(|_| ());
    let part = with(json!({ "type": "text", "text": "a" }), more);
    [
        (ask(with(json!({ "role": "assistant", "content": "a" }), more)), "messages[0]"),
        (ask(json!({ "role": "assistant", "content": [part] })), "messages[0].content[0]"),
    ]
}

#[test]
fn constraints_in_messages_are_refused_with_their_path() {
    for (more, field) in [
        (json!({ "guided_json": {} }), "guided_json"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (json!({ "json_schema": {} }), "json_schema"),
        (json!({ "regex": "a" }), "regex"),
        (json!({ "max_tokens": 5 }), "max_tokens"),
        (json!({ "stop_sequences": ["a"] }), "stop_sequences"),
        (json!({ "extra_body": { "guided_json": {} } }), "extra_body.guided_json"),
        (json!({ "nvext": [{ "deep": { "guided_regex": "a" } }] }), "nvext[0].deep.guided_regex"),
    ] {
        for (result, place) in in_messages(&more) {
            let error = result.expect_err(&more.to_string());
            assert_eq!((error.status().as_u16(), error.code()), (400, None), "{more}");
            assert_eq!(error.param(), Some(&*format!("{place}.{field}")));
        }
    }
}

#[test]
fn fields_that_clients_send_back_in_messages_are_accepted() {
    for more in [
        json!({ "id": "1", "object": "message", "created_at": 1, "status": "completed", "model": "m" }),
        json!({ "audio": null, "function_call": null, "tool_calls": null, "refusal": null, "parsed": null }),
        json!({ "tool_calls": [], "invalid_tool_calls": [], "annotations": [], "refusal": "", "images": [] }),
        json!({ "reasoning": "a", "reasoning_content": "a", "thinking": "a", "provider": "x" }),
        json!({ "reasoning_details": [{ "type": "reasoning.text", "format": "anthropic-claude-v1" }] }),
        json!({ "stop_reason": "end_turn", "stop_sequence": "x", "finish_reason": "stop" }),
        json!({ "cache_control": { "type": "ephemeral" }, "metadata": { "json_schema": {} } }),
        json!({ "prefix": false, "partial": false, "weight": 1, "guided_json": null, "stop": [] }),
        json!({ "usage": { "completion_tokens_details": { "accepted_prediction_tokens": 3 } } }),
        json!({ "timings": { "predicted_n": 5 }, "response_metadata": { "stop_reason": "stop" } }),
        json!({ "toolInvocations": [{ "args": { "pattern": "a", "regex": "b" } }] }),
        json!({ "structuredContent": { "a": 1 }, "$schema": "x", "extra_body": {}, "options": ["a"] }),
    ] {
        for (result, place) in in_messages(&more) {
            result.unwrap_or_else(|error| panic!("{place} {more}: {error}"));
        }
    }
}

#[test]
fn another_spelling_of_a_known_field_is_refused_and_the_known_one_named() {
    for (field, value, known) in [
        ("maxTokens", json!(5), "max_tokens"),
        ("max-tokens", json!(5), "max_tokens"),
        ("topP", json!(0.5), "top_p"),
        ("topK", json!(5), "top_k"),
        ("Temperature", json!(0), "temperature"),
        ("ignoreEos", json!(true), "ignore_eos"),
    ] {
        let more = json!({ field: value });
        refused(&more, field);
        let error = completion(&a_completion(&more)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(known), "{error}");
    }
}

#[test]
fn a_last_message_that_the_answer_must_continue_is_refused() {
    for name in ["prefix", "partial"] {
        let ask = |value: Value| {
            let last = json!({ "role": "assistant", "content": "```json", name: value });
            chat(&json!({ "messages": [{ "role": "user", "content": "a" }, last] })).map(|_| ())
        };
        let error = ask(json!(true)).unwrap_err();
        assert_eq!(error.param(), Some(&*format!("messages[1].{name}")));
        assert!(ask(json!(false)).is_ok() && ask(json!(null)).is_ok());
    }
}
