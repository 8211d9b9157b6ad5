//! Whole chat templates, with the structure of those that come with models: the format of calls is found in
//! each, and tools, earlier calls and results reach the prompt.

use octant::tools::ToolFormat;
use serde_json::{Value, json};

use super::test_server::{Setup, TestServer, merged};

/// A template, its format, how a call begins without whitespace, and how the prompt has an earlier call and
/// its result.
struct Case {
    template: &'static str,
    format: ToolFormat,
    begin: &'static str,
    earlier: &'static str,
}

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../data/text/tool_templates/", $name, ".jinja"))
    };
}

const CASES: [Case; 4] = [
    Case {
        template: template!("hermes"),
        format: ToolFormat::Hermes,
        begin: "<tool_call>{\"name\":\"",
        earlier: "<|im_start|>assistant\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \
                  \"Paris\"}}\n</tool_call><|im_end|>\n<|im_start|>tool\n<tool_response>\n\"sunny\"\n\
                  </tool_response><|im_end|>",
    },
    Case {
        template: template!("qwen"),
        format: ToolFormat::Hermes,
        begin: "<tool_call>{\"name\":\"",
        earlier: "<|im_start|>assistant\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \
                  \"Paris\"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n\"sunny\"\n\
                  </tool_response><|im_end|>\n",
    },
    Case {
        template: template!("llama31"),
        format: ToolFormat::Llama3,
        begin: "{\"name\":\"",
        earlier: "assistant<|end_header_id|>\n\n{\"name\": \"weather\", \"parameters\": {\"city\": \
                  \"Paris\"}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n\"\\\"sunny\\\"\"\
                  <|eot_id|>",
    },
    // The template shows no calls: they are text of the assistant.
    Case {
        template: template!("nemotron_mini"),
        format: ToolFormat::Nemotron,
        begin: "<toolcall>{\"name\":\"",
        earlier: "<extra_id_1>Assistant\n<toolcall> {\"name\": \"weather\", \"arguments\": \
                  {\"city\":\"Paris\"}} </toolcall>\n<extra_id_1>Tool\n\"sunny\"\n",
    },
];

fn tools() -> Value {
    let city = json!({ "type": "string", "enum": ["Paris", "Rome"], "description": "The place" });
    let parameters = json!({ "type": "object", "properties": { "city": city }, "required": ["city"],
        "additionalProperties": false });
    let weather =
        json!({ "name": "weather", "description": "The weather of today", "parameters": parameters });
    json!([{ "type": "function", "function": weather }])
}

fn launch(template: &'static str) -> TestServer {
    let mut setup = Setup { template, ..Setup::new() };
    setup.config.max_model_len = 8192;
    setup.config.num_blocks = 256;
    setup.config.max_num_batched_tokens = 4096;
    setup.launch()
}

/// The prompt of a chat.
async fn prompt(server: &TestServer, body: &Value) -> String {
    let body = merged(body.clone(), json!({ "return_token_strs": true, "model": "parrot" }));
    let reply = server.post("/tokenize", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["token_strs"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect()
}

#[tokio::test]
async fn tools_and_calls_of_whole_templates_have_their_format() {
    for Case { template, format, begin, earlier } in CASES {
        assert_eq!(ToolFormat::of_template(template), Some(format), "{template}");
        let server = launch(template);
        let user = json!({ "role": "user", "content": "Is it sunny?" });
        let call = json!({ "id": "c", "type": "function",
            "function": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } });
        let history = json!([
            user,
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "c", "content": "\"sunny\"" },
        ]);
        let shown = prompt(&server, &json!({ "messages": history, "tools": tools() })).await;
        assert!(shown.contains("The weather of today") && shown.contains("\"city\""), "{shown}");
        assert!(shown.contains(earlier), "{shown}");
        let hidden = prompt(&server, &json!({ "messages": [user] })).await;
        assert!(!hidden.contains("weather") && !hidden.contains("tool_call"), "{hidden}");

        let body = json!({ "model": "parrot", "messages": [user], "tools": tools(), "logprobs": true,
            "tool_choice": "required" });
        let reply = server.post("/v1/chat/completions", body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let choice = reply.json()["choices"][0].clone();
        let tokens = choice["logprobs"]["content"].as_array().unwrap().iter();
        let raw: String = tokens.map(|token| token["token"].as_str().unwrap()).collect();
        assert!(raw.replace(char::is_whitespace, "").starts_with(begin), "{raw:?}");
        let function = &choice["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert!(["Paris", "Rome"].map(Value::from).contains(&arguments["city"]), "{choice}");
        assert_eq!((&function["name"], &choice["finish_reason"]), (&json!("weather"), &json!("tool_calls")));
    }
}
