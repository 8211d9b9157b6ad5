//! A server whose answers are scripted, for clients that are written in other languages.

use std::io::Read as _;

use serde_json::json;

use super::client::Reply;
use super::test_server::{Setup, TestServer};

/// The prompt, which the executor repeats, is the answer: what follows `ANSWER:` in the last message of the
/// user, or the words of the tools' results after it. Nothing else of the conversation is shown. The results
/// are messages of the user, because the template does not know of tools.
const TEMPLATE: &str = "\
    {%- set ns = namespace(answer='', results=false) -%}
    {%- for m in messages if m.role == 'user' -%}
    {%- if '<tool_response>' in m.content -%}
        {%- set said = m.content.replace('<tool_response>', '').replace('</tool_response>', '') -%}
        {%- set before = ns.answer + ' ' if ns.results else 'The tools say: ' -%}
        {%- set ns.answer = before + (said.split() | join(' ')) -%}
        {%- set ns.results = true -%}
    {%- else -%}
        {%- set ns.answer = m.content.split('ANSWER:')[-1] -%}
        {%- set ns.results = false -%}
    {%- endif -%}
    {%- endfor -%}
    {{- ns.answer }}<|eos|>";

fn launch() -> TestServer {
    let mut setup = Setup { template: TEMPLATE, ..Setup::new() };
    setup.config.max_model_len = 8192;
    setup.config.num_blocks = 512;
    setup.config.max_num_batched_tokens = 2048;
    setup.launch()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "tests/clients/run.py starts it and ends it"]
async fn serve_scripted_answers() {
    let server = launch();
    println!("\nlistening on {}", server.address);
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await.expect("it does not panic").expect("standard input is open");
}

#[tokio::test]
async fn the_script_is_the_answer_and_results_of_tools_follow_it() {
    let server = launch();
    let ask =
        |messages| server.post("/v1/chat/completions", json!({ "model": "parrot", "messages": messages }));
    let user = json!({ "role": "user", "content": "Hello. ANSWER:Good day." });
    let content = |reply: Reply| reply.json()["choices"][0]["message"]["content"].clone();
    assert_eq!(content(ask(json!([user])).await), "Good day.");
    let call =
        |id: &str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let assistant = json!({ "role": "assistant", "tool_calls": [call("a"), call("b")] });
    let result = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": id });
    let messages = json!([user, assistant, result("a"), result("b")]);
    assert_eq!(content(ask(messages).await), "The tools say: a b");
}
