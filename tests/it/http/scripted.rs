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

/// The answers to the prompts of NeMo Curator's pipeline of open questions, as it words them: a numbered list
/// of as many items as the last number of the prompt says, about the prompt's subject; and the items of a
/// numbered list as YAML.
const LISTS: &str = "\
    {%- set text = messages[-1].content -%}
    {%- if 'yaml list of strings' in text -%}
    {%- for line in text.split('\\n') if line[:1].isdigit() -%}
    - {{ line[3:] ~ '\\n' }}
    {%- endfor -%}
    {%- else -%}
    {%- set ns = namespace(count=0) -%}
    {%- for word in text.split() if word.isdigit() -%}{%- set ns.count = word | int -%}{%- endfor -%}
    {%- if text.startswith('Question: ') -%}
        {%- set subject = text.split('\\n')[0].replace('Question: ', '') -%}
        {%- set item = [subject ~ ' Give ', ' reasons.'] -%}
    {%- elif 'related to ' in text -%}
        {%- set subject = text.split('related to ')[1].split('?')[0] -%}
        {%- set item = ['What are the ', ' main facts on ' ~ subject ~ '?'] -%}
    {%- else -%}
        {%- set subject = text.split('aspects of ')[1].split('?')[0] -%}
        {%- set item = ['', ' parts of ' ~ subject] -%}
    {%- endif -%}
    {{- 'Here is the list.\\n' -}}
    {%- for word in ['two', 'three', 'four', 'five'][:ns.count] -%}
    {{ loop.index ~ '. ' ~ item | join(word) ~ '\\n' }}
    {%- endfor -%}
    {%- endif -%}
    <|eos|>";

fn launch(template: &'static str) -> TestServer {
    let mut setup = Setup { template, ..Setup::new() };
    setup.config.max_model_len = 8192;
    setup.config.num_blocks = 512;
    setup.config.max_num_batched_tokens = 2048;
    setup.launch()
}

/// Serves until standard input ends.
async fn serve(template: &'static str) {
    let server = launch(template);
    println!("\nlistening on {}", server.address);
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await.expect("it does not panic").expect("standard input is open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "tests/clients/harness.py starts it and ends it"]
async fn serve_scripted_answers() {
    serve(TEMPLATE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "tests/clients/harness.py starts it and ends it"]
async fn serve_lists() {
    serve(LISTS).await;
}

#[tokio::test]
async fn the_script_is_the_answer_and_results_of_tools_follow_it() {
    let server = launch(TEMPLATE);
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

#[tokio::test]
async fn lists_have_the_items_that_a_prompt_asks_for_and_become_yaml() {
    let server = launch(LISTS);
    let list = "Here is the list.\n1. two parts of the sea\n2. three parts of the sea\n";
    let yaml = "- two parts of the sea\n- three parts of the sea\n";
    let convert = format!("Parse it into a yaml list of strings.\n\n {list}");
    for (prompt, expected) in [
        ("Can you generate 2 topics that encompass various aspects of the sea? Be diverse.", list),
        (&convert, yaml),
    ] {
        let messages = json!([{ "role": "user", "content": prompt }]);
        let body = json!({ "model": "parrot", "messages": messages });
        let reply = server.post("/v1/chat/completions", body).await.json();
        assert_eq!(reply["choices"][0]["message"]["content"], expected);
    }
}
