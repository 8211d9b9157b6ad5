//! Perplexity: a server with a token for each byte, whose log-probabilities depend on the token.

use serde_json::{Value, json};

use super::server::{ScriptedRequest, ScriptedServer};
use super::{Folder, failure, near, report};
use crate::http::test_server::Setup;

const BOS: u64 = 256;

/// Log-probability of a token, whatever stands before it.
fn logprob(token: u64) -> f64 {
    -((token % 7) as f64) / 8.0 - 0.5
}

/// Tokenizer, and log-probabilities of a prompt.
pub fn answer(request: &ScriptedRequest) -> (u16, Value) {
    match request.path.as_str() {
        "/tokenizer_info" => (200, json!({ "bos_token": { "content": "<bos>" }, "eos_token": "<eos>" })),
        "/tokenize" => {
            assert_eq!(request.body["add_special_tokens"], false);
            let text = request.body["prompt"].as_str().unwrap();
            let tokens = if text == "<bos>" { vec![BOS] } else { text.bytes().map(u64::from).collect() };
            (200, json!({ "tokens": tokens, "count": tokens.len(), "max_model_len": 6 }))
        }
        "/v1/completions" => {
            let body = &request.body;
            assert_eq!((&body["max_tokens"], &body["echo"]), (&json!(0), &json!(true)));
            let tokens: Vec<u64> =
                body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            let values: Vec<Option<f64>> =
                tokens.iter().enumerate().map(|(i, token)| (i > 0).then(|| logprob(*token))).collect();
            (200, json!({ "choices": [{ "logprobs": { "token_logprobs": values } }] }))
        }
        path => panic!("no answer to {path}"),
    }
}

#[test]
fn each_token_counts_once_over_rolling_windows() {
    let folder = Folder::new();
    let texts = ["one two three four", "  x\n", "y"];
    let rows: Vec<Value> = texts.iter().map(|text| json!({ "text": text })).collect();
    let file = folder.rows("texts.jsonl", &rows);
    let sum: f64 = texts.iter().flat_map(|text| text.bytes()).map(|byte| logprob(byte.into())).sum();
    // As Python's re.split, which finds an empty text before spaces at the start and after those at the end.
    let (words, bytes) = (4.0 + 3.0 + 1.0, 18.0 + 4.0 + 1.0);
    let mut reports = Vec::new();
    for concurrency in ["1", "8"] {
        let server = ScriptedServer::start(answer);
        let args = ["perplexity", &file, "--url", &server.url(), "--concurrency", concurrency];
        let (table, json) = report(&args, &folder.output());
        assert!(table.contains("bits per byte"), "{table}");
        near(&json["log_likelihood"], sum);
        near(&json["word_perplexity"], (-sum / words).exp());
        near(&json["byte_perplexity"], (-sum / bytes).exp());
        near(&json["bits_per_byte"], -sum / bytes / 2_f64.ln());
        assert_eq!((&json["max_length"], &json["prefix_token"]), (&json!(6), &json!(BOS)));
        // 18 tokens in windows of 5, and one window for each other text.
        assert_eq!(json["windows"], 6);
        reports.push(json);
    }
    assert_eq!(reports[0], reports[1]);
}

#[test]
fn windows_overlap_by_one_token_and_the_last_one_is_full() {
    let folder = Folder::new();
    let file = folder.text("a.txt", "abcdefg");
    let (sender, prompts) = std::sync::mpsc::channel();
    let server = ScriptedServer::start(move |request| {
        if request.path == "/v1/completions" {
            sender.send(request.body["prompt"].clone()).unwrap();
        }
        answer(request)
    });
    let args = [
        "perplexity",
        &file,
        "--url",
        &server.url(),
        "--max-length",
        "4",
        "--concurrency",
        "1",
        "--prefix-token",
    ];
    report(&[&args[..], &["9"]].concat(), &folder.output());
    let ids = |text: &str| text.bytes().map(u64::from).collect::<Vec<_>>();
    let first = [vec![9], ids("abc")].concat();
    let prompts: Vec<Value> = prompts.try_iter().collect();
    assert_eq!(prompts, [json!(first), json!(ids("cdef")), json!(ids("defg"))]);
}

#[test]
fn words_and_bytes_are_those_of_the_original() {
    let folder = Folder::new();
    let file = folder.rows("a.jsonl", &[json!({ "text": "a b", "original": "a @,@ b é" })]);
    let server = ScriptedServer::start(answer);
    let (_, json) = report(&["perplexity", &file, "--url", &server.url()], &folder.output());
    assert_eq!((&json["tokens"], &json["words"], &json["bytes"]), (&json!(3), &json!(4), &json!(10)));
}

#[test]
fn an_answer_without_the_log_probabilities_is_an_error() {
    let folder = Folder::new();
    let file = folder.text("a.txt", "abc");
    let server = ScriptedServer::start(|request| match request.path.as_str() {
        "/v1/completions" => {
            (200, json!({ "choices": [{ "logprobs": { "token_logprobs": [null, -1.0] } }] }))
        }
        _ => answer(request),
    });
    let error = failure(&["perplexity", &file, "--url", &server.url()]);
    assert!(error.contains("a.txt, line 1: /v1/completions: expected 4 numbers"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_octant_server_scores_windows_of_token_ids() {
    let server = Setup::new().launch();
    let url = format!("http://{}", server.address);
    let folder = Folder::new();
    let text = "two windows of this text".repeat(3);
    let file = folder.text("a.txt", &text);
    let output = folder.output();
    let run = tokio::task::spawn_blocking(move || {
        report(&["perplexity", &file, "--url", &url, "--max-length", "60", "--prefix-token", "258"], &output)
    });
    let (_, json) = run.await.unwrap();
    assert_eq!((&json["tokens"], &json["windows"]), (&json!(text.len()), &json!(2)));
    assert!(json["log_likelihood"].as_f64().unwrap() < 0.0, "{json}");
}
