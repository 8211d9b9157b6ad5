//! Answers of simulated GPUs, through the real server.

use std::sync::Arc;

use octant::launch::simulated::words;
use octant::request::{Finish, Request, SamplingParams, StopRules};
use octant::simulator::{SimulatedModel, Simulator, SyntheticAnswers};
use serde_json::json;

use super::cost;
use crate::fake::request;
use crate::http::client::Connection;
use crate::http::test_server::{EOS, PADDED_VOCAB, Setup, TestServer, VOCAB, tokenizer};

fn answers(mean: f64) -> SyntheticAnswers {
    SyntheticAnswers::new(words(&tokenizer(), VOCAB), vec![EOS], mean, PADDED_VOCAB).unwrap()
}

fn server(mean: f64, pace: f64) -> TestServer {
    Setup::new().launch_with(Simulator::new(SimulatedModel::new(cost(), answers(mean)), pace).unwrap())
}

/// The request that the server makes of a completion.
fn submitted(prompt: Vec<u32>, max_tokens: u32, sampling: SamplingParams) -> Request {
    let sampling = Arc::new(SamplingParams { barred: vec![EOS], ..sampling });
    let stop = StopRules { max_tokens, stop_ids: vec![EOS] };
    Request { sampling, stop, ..request(prompt, max_tokens) }
}

fn prompt(i: u32, len: u32) -> Vec<u32> {
    // ASCII characters: an incomplete character at the end of the prompt would change the text of the answer.
    (0..len).map(|at| 40 + (i * 31 + at * (i + 1)) % 80).collect()
}

/// Text and finish reason of the expected answer.
fn expected(request: &Request, mean: f64) -> (String, &'static str) {
    let (mut tokens, finish) = answers(mean).answer(request);
    let reason = if finish == Finish::Stop(EOS) { "stop" } else { "length" };
    tokens.retain(|token| *token != EOS);
    (tokenizer().decode(&tokens, true), reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_documented_tokens() {
    let server = Arc::new(server(30.0, 0.0));
    let clients: Vec<_> = (0..24u32)
        .map(|i| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let prompt = prompt(i, 5 + 13 * i);
                let (temperature, seed) = (f32::from(i % 2 == 1), u64::from(i / 2));
                let more = json!({ "max_tokens": 40, "temperature": temperature, "seed": seed });
                let reply = server.complete(prompt.clone(), more).await.json();
                let sampling = SamplingParams { temperature, seed, ..SamplingParams::greedy() };
                let (text, reason) = expected(&submitted(prompt, 40, sampling), 30.0);
                assert_eq!(reply["choices"][0]["text"], text.as_str(), "request {i}");
                assert_eq!(reply["choices"][0]["finish_reason"], reason, "request {i}");
                reason
            })
        })
        .collect();
    let mut reasons = Vec::new();
    for client in clients {
        reasons.push(client.await.unwrap());
    }
    assert!(reasons.contains(&"stop") && reasons.contains(&"length"), "{reasons:?}");
    server.until_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_does_not_depend_on_disconnecting_clients() {
    let server = server(1e6, 0.05);
    let mut leavers = Vec::new();
    for i in 1..8 {
        let body = json!({ "model": "parrot", "prompt": prompt(i, 90), "max_tokens": 200, "stream": true });
        let mut connection = Connection::open(server.address).await;
        let headers = [("content-type", "application/json")];
        connection.request("POST", "/v1/completions", &headers, body.to_string().as_bytes()).await;
        leavers.push(connection);
    }
    let alone = submitted(prompt(0, 100), 60, SamplingParams::greedy());
    let more = json!({ "max_tokens": 60, "temperature": 0 });
    let innocent = server.complete(prompt(0, 100), more);
    let leaving = async {
        for mut leaver in leavers {
            leaver.until("data: ").await;
            drop(leaver);
        }
    };
    let (reply, ()) = tokio::join!(innocent, leaving);
    assert_eq!(reply.json()["choices"][0]["text"], expected(&alone, 1e6).0.as_str());
    server.until_empty().await;
}

#[tokio::test]
async fn min_tokens_max_tokens_and_ignore_eos_are_applied() {
    let server = server(1.0, 0.0);
    let usage =
        async |more| server.complete(prompt(3, 9), more).await.json()["usage"]["completion_tokens"].clone();
    assert_eq!(usage(json!({ "max_tokens": 30 })).await, 1, "a mean of one token gives one token");
    assert_eq!(
        usage(json!({ "max_tokens": 30, "min_tokens": 7 })).await,
        8,
        "the end is barred for seven tokens"
    );
    assert_eq!(
        usage(json!({ "max_tokens": 30, "ignore_eos": true })).await,
        30,
        "the end-of-sequence token is not generated"
    );
}

#[tokio::test]
async fn log_probabilities_are_negative_and_sum_to_at_most_one() {
    let server = server(1e6, 0.0);
    let more = json!({ "max_tokens": 3, "echo": true, "logprobs": 4, "temperature": 0 });
    let reply = server.complete(prompt(1, 70), more).await.json();
    let scores = reply["choices"][0]["logprobs"].clone();
    let values = scores["token_logprobs"].as_array().unwrap();
    assert_eq!(values.len(), 73);
    assert!(values[1..].iter().all(|x| x.as_f64().is_some_and(|x| x < 0.0)), "{values:?}");
    for top in &scores["top_logprobs"].as_array().unwrap()[1..] {
        let sum: f64 = top.as_object().unwrap().values().map(|x| x.as_f64().unwrap().exp()).sum();
        assert!(sum <= 1.0 && sum > 0.9, "{top}");
    }
}

#[test]
fn answers_have_the_mean_length_and_invalid_vocabularies_are_refused() {
    let answers = answers(20.0);
    let count = 4000;
    let greedy = SamplingParams::greedy();
    let lengths = (0..count).map(|i| answers.length(SyntheticAnswers::key(&[i, 7], &greedy)));
    let mean = lengths.sum::<u64>() as f64 / f64::from(count);
    assert!((mean - 20.0).abs() < 1.5, "{mean}");
    assert!(SyntheticAnswers::new(Vec::new(), vec![1], 5.0, 10).is_err());
    assert!(SyntheticAnswers::new(vec![1], vec![1], 5.0, 10).is_err());
    assert!(SyntheticAnswers::new(vec![10], vec![1], 5.0, 10).is_err());
    assert!(SyntheticAnswers::new(vec![2], vec![1], 0.5, 10).is_err());
}
