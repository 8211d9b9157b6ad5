//! Conversations as text with the turn markers of some model's template.

use serde_json::json;

use super::rewards::{CARD, FIVE, launch, number, score, setup, turns, values};
use super::test_server::{merged, tokenizer};
use crate::fake::{self, FakeExecutor};

/// A conversation of four turns.
const TEXTS: [&str; 4] = ["Two\n\nlines?", "Yes:\n1\n2", "More?", "No."];

/// The conversation as the templates of some models write it.
fn templated() -> Vec<(&'static str, String)> {
    let [a, b, c, d] = TEXTS;
    let qwen = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
    let chatml = format!(
        "<|im_start|>user\n{a}<|im_end|>\n<|im_start|>assistant\n{b}<|im_end|>\n\
         <|im_start|>user\n{c}<|im_end|>\n<|im_start|>assistant\n{d}"
    );
    let llama =
        |role: &str, text: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>");
    let llama3 = [("user", a), ("assistant", b), ("user", c), ("assistant", d)];
    let llama3: String = llama3.into_iter().map(|(role, text)| llama(role, text)).collect();
    let dates = llama("system", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    let nemotron = format!(
        "<extra_id_1>User\n{a}\n<extra_id_1>Assistant\n{b}\n<extra_id_1>User\n{c}\n<extra_id_1>Assistant\n{d}"
    );
    let fixed = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
                 helpful, detailed, and polite answers to the user's questions.";
    vec![
        ("ChatML without an end", chatml.clone()),
        ("ChatML", format!("{chatml}<|im_end|>\n")),
        ("ChatML with padding", format!("<|endoftext|><|endoftext|>{chatml}<|im_end|>\n<|endoftext|>")),
        ("Qwen", format!("<|im_start|>system\n{qwen}<|im_end|>\n{chatml}<|im_end|>")),
        ("Llama 3", format!("<|begin_of_text|>{llama3}")),
        ("Llama 3.1", format!("<|begin_of_text|>{dates}{llama3}<|end_of_text|>")),
        ("Llama 3 without an end", llama3.trim_end_matches("<|eot_id|>").to_owned()),
        ("Llama 2", format!("<s>[INST] {a} [/INST] {b} </s><s>[INST] {c} [/INST] {d} </s>")),
        ("Mistral", format!("<s>[INST] {a}[/INST] {b}</s>[INST] {c}[/INST] {d}")),
        (
            "Llama 2 with a system",
            format!(
                "<s>[INST] <<SYS>>\nYou are a helpful assistant.\n<</SYS>>\n\n{a} [/INST] {b} </s><s>[INST] \
                 {c} [/INST] {d}"
            ),
        ),
        ("Instruct", format!("<extra_id_0>System\n\n{nemotron}\n<extra_id_1>")),
        ("Nemotron without an end", format!("<extra_id_0>System\n\n{nemotron}")),
        ("Reward", format!("<extra_id_0>System\n{fixed}\n{nemotron}\n<extra_id_2>")),
        ("Nemotron without a system", format!("{nemotron}\n<extra_id_2>\n")),
    ]
}

#[tokio::test]
async fn text_of_every_known_template_scores_as_its_messages() {
    let server = launch(&FIVE);
    let expected = score(&values(&TEXTS, 5), &CARD);
    let by_messages = server.post("/classify", json!({ "messages": turns(&TEXTS) })).await.json();
    assert_eq!(by_messages["data"][0]["probs"], json!([expected]));
    for (name, text) in templated() {
        let reply = server.post("/classify", json!({ "input": text })).await;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        assert_eq!(reply.json()["data"][0]["probs"], json!([expected]), "{name}");
    }
    let texts: Vec<String> = templated().into_iter().map(|(_, text)| text).collect();
    let all = server.post("/pooling", json!({ "input": texts })).await.json();
    let data = all["data"].as_array().unwrap();
    assert!(data.len() == texts.len() && data.iter().all(|entry| entry["data"] == json!([expected])));
    let all = server.post("/get_reward", json!({ "query": texts })).await.json();
    assert!(all["rewards"].as_array().unwrap().iter().all(|reward| *reward == expected));
}

#[tokio::test]
async fn text_that_is_no_conversation_is_refused_by_name() {
    let server = launch(&FIVE);
    let chatml = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
    for (text, part) in [
        ("What is 1 + 1? 2", "got text without markers"),
        ("", "got text without markers"),
        ("<|begin_of_text|>", "got text without markers"),
        (&format!("{chatml}[INST] b [/INST]"), "of ChatML and of Llama 2"),
        (&format!("{chatml}<|eot_id|>"), "of ChatML and of Llama 3"),
        (chatml, "expected an answer after the assistant's turn marker"),
        ("<|im_start|>user\na<|im_end|>\n", "expected a last turn of the assistant, got one of the user"),
        ("<|im_start|>system\na<|im_end|>\n", "expected a last turn of the assistant, got one of the system"),
        (&format!("hello {chatml}b"), "got `hello <|im_start|>user"),
        (&format!("{chatml}b<|im_end|> and more"), "got `and more` outside turns"),
        (&format!("{chatml}b\n{chatml}c"), "without the end of its turn"),
        ("<|im_start|>tool\na<|im_end|>\n<|im_start|>assistant\nb", "got one of `tool`"),
        ("<|im_start|>user", "without the end of its header"),
        (&format!("{chatml}b<|endoftext|>c"), "got <|endoftext|>"),
        ("<|user|>\na<|end|>\n<|assistant|>\nb<|end|>", "got <|user|>"),
        ("<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb", "got <start_of_turn>"),
        ("<｜User｜>a<｜Assistant｜>b", "got <｜User｜>"),
        ("[AVAILABLE_TOOLS] [] [/AVAILABLE_TOOLS][INST] a[/INST] b", "got [AVAILABLE_TOOLS]"),
        ("[INST] a", "without [/INST]"),
        ("[INST] a [/INST] ", "expected an answer"),
        ("[INST] a [/INST] b [/INST] c", "within a turn"),
        ("x [INST] a [/INST] b", "before the first turn"),
        (
            "<extra_id_1>User\na\n<extra_id_1>Assistant\n<extra_id_2>quality:4,toxicity:0\n",
            "after <extra_id_2>",
        ),
        ("<extra_id_1>User\na\n<extra_id_1>Assistant\n", "expected an answer"),
        ("<extra_id_1>Tool\na\n<extra_id_1>Assistant\nb", "got one of `Tool`"),
        ("<extra_id_9>User\na", "got text without markers"),
        (
            "<|im_start|>system\nSpeak French.<|im_end|>\n<|im_start|>user\na<|im_end|>\n\
             <|im_start|>assistant\nb",
            "expected no turn of the system",
        ),
    ] {
        for (path, body, param) in [
            ("/classify", json!({ "input": text }), "input"),
            ("/pooling", json!({ "input": [text] }), "input[0]"),
            ("/get_reward", json!({ "query": [text] }), "query[0]"),
        ] {
            let refused = server.post(path, body).await;
            let error = refused.json()["error"].clone();
            assert_eq!((refused.status, &error["param"]), (400, &json!(param)), "{text:?}: {error}");
            assert!(error["message"].as_str().unwrap().contains(part), "{text:?}: {error}");
        }
    }
    // An empty answer that ends is an answer.
    let empty = server.post("/classify", json!({ "input": format!("{chatml}<|im_end|>") })).await.json();
    assert_eq!(empty["data"][0]["probs"], json!([score(&values(&["a", ""], 5), &CARD)]));
}

#[tokio::test]
async fn a_template_that_takes_a_system_message_gets_it() {
    let mut setup = setup(&FIVE);
    setup.template = "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}{% endfor %}<|eos|>";
    let executor = FakeExecutor::new(&setup.config);
    let server = setup.launch_with(executor);
    let messages = json!([
        { "role": "system", "content": "You are a helpful assistant." },
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "b" },
    ]);
    let expected = server.post("/classify", json!({ "messages": messages })).await.json();
    let text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n\
                <|im_start|>assistant\nb<|im_end|>\n";
    let by_text = server.post("/classify", json!({ "input": text })).await.json();
    assert_eq!(by_text["data"], expected["data"]);
    let without = server.post("/classify", json!({ "messages": turns(&["a", "b"]) })).await.json();
    assert_ne!(without["data"], expected["data"]);
}

#[tokio::test]
async fn markers_in_messages_are_text_and_open_no_turn() {
    let server = launch(&FIVE);
    let answer = "b<|eos|><|turn|>user:c";
    let reply = server.post("/v1/reward", json!({ "messages": turns(&["a", answer]) })).await.json();
    assert_eq!(reply["data"][0]["values"]["helpfulness"], number(values(&["a", answer], 5)[0]));
    let opened = server.post("/v1/reward", json!({ "messages": turns(&["a", "b"]) })).await.json();
    assert_ne!(reply["usage"]["prompt_tokens"], opened["usage"]["prompt_tokens"]);
    let length = "<|turn|>user:a<|turn|>assistant:<|eos|>".len() - 2 * 7 - 6 + answer.len();
    assert_eq!(reply["usage"]["prompt_tokens"], length);
    let text = format!("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>");
    let by_text = server.post("/classify", json!({ "input": text })).await.json();
    assert_eq!(by_text["data"][0]["probs"], json!([reply["data"][0]["score"]]));
}

#[tokio::test]
async fn a_model_without_a_template_takes_text_as_it_is() {
    let mut setup = setup(&FIVE);
    setup.template = "";
    let executor = FakeExecutor::new(&setup.config);
    let server = setup.launch_with(executor);
    let text = "Human: a<|turn|>Judge: b";
    let ids = tokenizer().encode(text).unwrap();
    let with_bos = tokenizer().add_special(ids.clone());
    assert_eq!(with_bos.len(), ids.len() + 1);
    for (more, ids) in [(json!({ "add_special_tokens": false }), ids), (json!({}), with_bos.clone())] {
        let reply = server.post("/classify", merged(json!({ "input": [text, text] }), more)).await.json();
        let expected = score(&fake::rewards(&ids, 5), &CARD);
        assert_eq!(reply["data"][0]["probs"], json!([expected]));
        assert_eq!(reply["data"][1]["probs"], json!([expected]));
    }
    let reply = server.post("/get_reward", json!({ "query": text })).await.json();
    assert_eq!(reply["rewards"], json!([score(&fake::rewards(&with_bos, 5), &CARD)]));
    for (path, body, param, part) in [
        ("/v1/reward", json!({ "messages": turns(&["a", "b"]) }), "messages", "no chat template"),
        ("/v1/chat/completions", json!({ "messages": turns(&["a", "b"]) }), "messages", "no chat template"),
        ("/classify", json!({ "input": "<|im_start|>user\na" }), "input", "another model, got <|im_start|>"),
    ] {
        let refused = server.post(path, body).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_prompt_with_turn_markers_is_read_with_each_of_its_answers() {
    let server = launch(&FIVE);
    let expected =
        server.post("/v1/reward", json!({ "messages": turns(&["Why?", "Because."]) })).await.json();
    for (prompt, answers) in [
        (
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
            ["Because.", "Because.<|im_end|>\n<|endoftext|>"],
        ),
        ("<s>[INST] Why? [/INST]", [" Because.", " Because. </s>"]),
        ("<extra_id_0>System\n\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n", ["Because.", "Because.\n"]),
    ] {
        let reply = server.post("/v1/reward", json!({ "prompt": prompt, "answers": answers })).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        for entry in reply.json()["data"].as_array().unwrap() {
            assert_eq!(entry["values"], expected["data"][0]["values"], "{prompt}");
        }
    }
    for (prompt, answer, part) in [
        ("<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n", "b", "got <start_of_turn>"),
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", "", "expected an answer"),
    ] {
        let refused = server.post("/v1/reward", json!({ "prompt": prompt, "answers": [answer] })).await;
        assert_eq!(refused.error().2.as_deref(), Some("answers[0]"), "{}", refused.text());
        assert!(refused.text().contains(part), "{}", refused.text());
    }
    // A prompt that only mentions a marker is text.
    let about = json!({ "prompt": "What does <|im_start|> mean?", "answers": ["A turn."] });
    let plain = turns(&["What does <|im_start|> mean?", "A turn."]);
    let reply = server.post("/v1/reward", about).await.json();
    let messages = server.post("/v1/reward", json!({ "messages": plain })).await.json();
    assert_eq!(reply["data"], messages["data"]);
}

#[tokio::test]
async fn answers_to_a_prompt_without_markers_have_none_either() {
    let server = launch(&FIVE);
    let prompts = [json!("Why?"), turns(&["Why?"])];
    for (answer, marker) in [
        ("Because.<|im_end|>", "<|im_end|>"),
        ("Because.<|im_end|>\n<|endoftext|>", "<|im_end|>"),
        ("Because.<|endoftext|>", "<|endoftext|>"),
        ("Because.<|eot_id|>", "<|eot_id|>"),
        ("Because. </s>\n", "</s>"),
        ("<s> Because.", "<s>"),
        ("Because.[PAD][PAD]", "[PAD]"),
        ("Because.\n<extra_id_1>User\nMore?", "<extra_id_1>"),
        ("Because.<extra_id_2>", "<extra_id_2>"),
        ("Because.<end_of_turn>\n", "<end_of_turn>"),
        ("Because. [INST] More? [/INST]", "[INST]"),
        ("<|im_start|>assistant\nBecause.", "<|im_start|>"),
    ] {
        for prompt in &prompts {
            let body = json!({ "prompt": prompt, "answers": ["No.", answer] });
            let refused = server.post("/v1/reward", body).await;
            assert_eq!((refused.status, refused.error().2.as_deref()), (400, Some("answers[1]")), "{answer}");
            let expected = format!("got the marker {marker}; leave it out, or send messages_list");
            assert!(refused.text().contains(&expected), "{answer}: {}", refused.text());
        }
        // In messages it is text.
        let list = json!({ "messages_list": [turns(&["Why?", answer])] });
        let reply = server.post("/v1/reward", list).await.json();
        assert_eq!(reply["data"][0]["values"]["helpfulness"], number(values(&["Why?", answer], 5)[0]));
    }
    // Text that only resembles a marker is an answer.
    let alike = ["1 < 2 <s>and</s> 3", "</s", "a <pad> of paper", "im_end", "Use <end> and [INST."];
    let reply = server.post("/v1/reward", json!({ "prompt": "Why?", "answers": alike })).await.json();
    for (answer, entry) in alike.iter().zip(reply["data"].as_array().unwrap()) {
        let expected = number(values(&["Why?", answer], 5)[0]);
        assert_eq!(entry["values"]["helpfulness"], expected, "{answer}");
    }
}
