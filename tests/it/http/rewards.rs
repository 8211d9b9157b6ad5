//! Scores of a model with a reward head: conversations, weights, every turn, the same bits alone and among
//! others, and the limits that hold for all requests.

use octant::generation::{ChatMessage, ChatTemplate, RenderOptions, Role};
use octant::server::Scoring;
use octant::server::Signal;
use serde_json::{Value, json};

use super::batches::{jsonl, lines_of, setup as batch_setup, until_status, uploaded};
use super::client::{Connection, send};
use super::test_server::{Setup, TestServer, merged, metric, tokenizer};
use crate::device::model::runner;
use crate::device::reward::heads;
use crate::fake::{self, FakeExecutor};

/// Turns of user and assistant with markers, then the end marker: a template like that of the 340B's Reward.
pub const TEMPLATE: &str = "\
    {%- for m in messages -%}
    {%- if m.role != ('user' if loop.index0 is even else 'assistant') -%}
        {{- raise_exception('turns of user and assistant only') -}}
    {%- endif -%}
    {{- '<|turn|>' + m.role + ':' + m.content -}}
    {%- endfor -%}
    {{- '<|eos|>' -}}";

/// The weights of NVIDIA's model card.
pub const CARD: [f64; 5] = [0.3, 0.74, 0.46, 0.47, -0.33];

/// The values of NeMo's heads. The first four are not trained.
const NINE: [&str; 9] = [
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
];

pub const FIVE: [&str; 5] = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"];

/// Settings of a server of a model whose head has these values.
pub fn setup(names: &[&str]) -> Setup {
    let mut setup = Setup { template: TEMPLATE, ..Setup::new() };
    setup.config.reward_width = names.len();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    setup.settings.scoring = Some(Scoring::new(&names));
    setup.settings.models = vec!["judge".to_owned()];
    setup
}

pub fn launch(names: &[&str]) -> TestServer {
    let setup = setup(names);
    let executor = FakeExecutor::new(&setup.config);
    setup.launch_with(executor)
}

/// Messages of user and assistant in turns.
pub fn turns(texts: &[&str]) -> Value {
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    texts.iter().enumerate().map(|(i, text)| json!({ "role": role(i), "content": text })).collect()
}

/// The token ids of a conversation.
pub fn ids(texts: &[&str]) -> Vec<u32> {
    let tokenizer = tokenizer();
    let template = ChatTemplate::from_source(TEMPLATE, &tokenizer).unwrap();
    let role = |i: usize| if i.is_multiple_of(2) { Role::User } else { Role::Assistant };
    let messages: Vec<ChatMessage> =
        texts.iter().enumerate().map(|(i, text)| ChatMessage::new(role(i), *text)).collect();
    tokenizer.encode_prompt(&template.render(&messages, &RenderOptions::default()).unwrap()).unwrap()
}

/// The values of the fake model after a conversation.
pub fn values(texts: &[&str], width: usize) -> Vec<f32> {
    fake::rewards(&ids(texts), width).to_vec()
}

/// A value as a client reads it: replies have its shortest digits.
pub fn number(value: f32) -> Value {
    serde_json::from_str(&format!("{value:?}")).unwrap()
}

/// The weighted sum of values, as a client reads it.
pub fn score(values: &[f32], weights: &[f64]) -> Value {
    let sum: f64 = values.iter().zip(weights).map(|(value, weight)| f64::from(*value) * weight).sum();
    number(sum as f32)
}

fn named(names: &[&str], values: &[f32]) -> Value {
    names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), number(*value))).collect()
}

#[tokio::test]
async fn one_conversation_many_and_many_answers_have_the_same_scores() {
    let server = launch(&FIVE);
    let one = server.post("/v1/reward", json!({ "messages": turns(&["Why?", "Because."]) })).await;
    assert_eq!(one.status, 200, "{}", one.text());
    let mut body = one.json();
    let expected = values(&["Why?", "Because."], 5);
    assert!(body["id"].as_str().unwrap().starts_with("reward-") && body["created"].as_u64() > Some(0));
    body["id"] = "ID".into();
    body["created"] = 0.into();
    let tokens = ids(&["Why?", "Because."]).len();
    assert_eq!(
        body,
        json!({
            "id": "ID", "object": "list", "created": 0, "model": "judge", "attributes": FIVE,
            "data": [{ "object": "reward", "index": 0, "score": score(&expected, &CARD),
                       "values": named(&FIVE, &expected) }],
            "usage": { "prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens,
                       "prompt_tokens_details": { "cached_tokens": 0 } },
        })
    );
    // The order of values is that of the head, which JSON objects of clients keep.
    assert!(
        one.text().contains(&format!("\"values\":{{\"helpfulness\":{:?},", expected[0])),
        "{}",
        one.text()
    );
    let answers = ["Because.", "No.", ""];
    let list: Vec<Value> = answers.iter().map(|answer| turns(&["Why?", answer])).collect();
    let many = server.post("/v1/reward", json!({ "model": "judge", "messages_list": list })).await.json();
    for prompt in [json!("Why?"), turns(&["Why?"])] {
        let answered =
            server.post("/v1/reward", json!({ "prompt": prompt, "answers": answers })).await.json();
        assert_eq!(answered["data"], many["data"]);
    }
    for (index, answer) in answers.iter().enumerate() {
        let values = values(&["Why?", answer], 5);
        let entry = &many["data"][index];
        assert_eq!((&entry["index"], &entry["values"]), (&json!(index), &named(&FIVE, &values)));
        assert_eq!(entry["score"], score(&values, &CARD));
    }
    assert_eq!(many["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn every_turn_has_the_score_of_the_conversation_up_to_it() {
    let server = launch(&FIVE);
    let texts = ["One?", "1.", "Two?", "2.", "Three?", "3."];
    let body = json!({ "messages_list": [turns(&texts), turns(&texts[..2])], "every_turn": true });
    let all = server.post("/v1/reward", body).await.json();
    let turns_of = all["data"][0]["turns"].as_array().unwrap();
    assert_eq!(turns_of.len(), 3);
    for (turn, end) in turns_of.iter().zip([1, 3, 5]) {
        let up_to = server.post("/v1/reward", json!({ "messages": turns(&texts[..=end]) })).await.json();
        assert_eq!(turn["index"], end);
        assert_eq!(
            (&turn["score"], &turn["values"]),
            (&up_to["data"][0]["score"], &up_to["data"][0]["values"])
        );
        assert!(up_to["data"][0].get("turns").is_none());
    }
    assert_eq!(all["data"][0]["score"], turns_of[2]["score"]);
    let second = &all["data"][1];
    assert_eq!(
        second["turns"],
        json!([{ "index": 1, "score": second["score"], "values": second["values"] }])
    );
    let prompt = json!({ "prompt": turns(&texts[..5]), "answers": ["3.", "4."], "every_turn": true });
    let answered = server.post("/v1/reward", prompt).await.json();
    assert_eq!(answered["data"][0]["turns"], all["data"][0]["turns"]);
    assert_eq!(answered["data"][1]["turns"][1], all["data"][0]["turns"][1]);
}

#[tokio::test]
async fn weights_are_the_cards_the_operators_or_the_requests() {
    let five = values(&["a", "b"], 5);
    let ask = json!({ "messages": turns(&["a", "b"]) });
    let weighted = merged(ask.clone(), json!({ "weights": { "verbosity": -1, "helpfulness": 0.5 } }));
    let server = launch(&FIVE);
    let reply = server.post("/v1/reward", weighted.clone()).await.json();
    assert_eq!(reply["data"][0]["score"], score(&five, &[0.5, 0.0, 0.0, 0.0, -1.0]));
    for (weights, part) in [
        (json!({}), "expected at least one weight"),
        (json!({ "beauty": 1 }), "expected names of helpfulness, correctness, coherence"),
        (json!({ "helpfulness": "1" }), "expected a number, got a string"),
        (json!({ "helpfulness": 1e9 }), "expected a weight from -1000000 to 1000000, got 1000000000"),
        (json!([1]), "expected an object"),
    ] {
        let refused = server.post("/v1/reward", merged(ask.clone(), json!({ "weights": weights }))).await;
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(refused.status, 400, "{weights}");
        assert!(message.starts_with("weights") && message.contains(part), "{message}");
    }
    // The operator's weights take the place of the card's.
    let mut own = setup(&FIVE);
    own.settings.scoring.as_mut().unwrap().set_weights([("coherence", 2.0)]).unwrap();
    let executor = FakeExecutor::new(&own.config);
    let server = own.launch_with(executor);
    let reply = server.post("/v1/reward", ask.clone()).await.json();
    assert_eq!(reply["data"][0]["score"], number(2.0 * five[2]));
    let reply = server.post("/v1/reward", weighted).await.json();
    assert_eq!(reply["data"][0]["score"], score(&five, &[0.5, 0.0, 0.0, 0.0, -1.0]));
    // Other values have no weights that anyone has published.
    let server = launch(&["good", "bad"]);
    let refused = server.post("/v1/reward", ask.clone()).await;
    assert_eq!(refused.error(), (400, Some("invalid_value".into()), Some("weights".into())));
    assert!(refused.text().contains("--reward-weights"), "{}", refused.text());
    let own = merged(ask, json!({ "weights": { "good": 1, "bad": -1 } }));
    let reply = server.post("/v1/reward", own).await.json();
    assert_eq!(reply["data"][0]["score"], score(&values(&["a", "b"], 2), &[1.0, -1.0]));
    let mut scoring = Scoring::new(&["good".to_owned()]);
    assert!(scoring.set_weights([("good", 1.0), ("good", 2.0)]).unwrap_err().to_string().contains("twice"));
    assert!(scoring.set_weights([("good", f64::NAN)]).is_err());
}

#[tokio::test]
async fn heads_of_nine_report_the_five_trained_values_and_heads_of_one_the_reward() {
    let server = launch(&NINE);
    let reply = server.post("/v1/reward", json!({ "messages": turns(&["a", "b"]) })).await.json();
    let all = values(&["a", "b"], 9);
    assert_eq!(reply["attributes"], json!(FIVE));
    assert_eq!(reply["data"][0]["values"], named(&FIVE, &all[4..]));
    assert_eq!(reply["data"][0]["score"], score(&all[4..], &CARD));
    let server = launch(&["reward"]);
    let reply = server.post("/v1/reward", json!({ "messages": turns(&["a", "b"]) })).await.json();
    let one = values(&["a", "b"], 1);
    assert_eq!((&reply["data"][0]["score"], &reply["attributes"]), (&number(one[0]), &json!(["reward"])));
}

#[tokio::test]
async fn conversations_that_cannot_be_scored_are_refused_with_their_path() {
    let server = launch(&FIVE);
    let good = turns(&["a", "b"]);
    let long = "x".repeat(600);
    for (body, param, part) in [
        (json!({}), "messages", "expected an array of messages, or messages_list, or prompt and answers"),
        (json!({ "messages": [] }), "messages", "expected 1 to 2048 messages, got 0"),
        (json!({ "messages": turns(&["a"]) }), "messages", "role assistant, which is the answer"),
        (json!({ "messages_list": [good, turns(&["a"])] }), "messages_list[1]", "got user"),
        (json!({ "messages_list": [good, []] }), "messages_list[1]", "at least one message"),
        (json!({ "messages_list": [good, 7] }), "messages_list[1]", "expected an array of messages, got 7"),
        (
            json!({ "messages_list": [good, [{ "role": "user" }]] }),
            "messages_list[1][0].content",
            "got nothing",
        ),
        (json!({ "messages": good, "prompt": "a", "answers": ["b"] }), "prompt", "got several"),
        (json!({ "messages": good, "messages_list": [good] }), "messages_list", "got several"),
        (json!({ "prompt": "a" }), "answers", "got nothing"),
        (json!({ "answers": ["a"] }), "prompt", "got nothing"),
        (json!({ "prompt": 7, "answers": ["a"] }), "prompt", "expected a string or an array of messages"),
        (json!({ "prompt": "a", "answers": ["b", 7] }), "answers[1]", "expected a string, got 7"),
        (
            json!({ "prompt": "a", "answers": vec!["b"; 257] }),
            "answers",
            "expected 1 to 256 answers, got 257",
        ),
        (
            json!({ "messages_list": [good, turns(&["a", &long])] }),
            "messages_list[1]",
            "maximum context length",
        ),
        (json!({ "prompt": "a", "answers": ["b", long] }), "answers[1]", "maximum context length is 512"),
        (json!({ "messages": good, "stream": true }), "stream", "not supported"),
        (json!({ "messages": good, "truncate_prompt_tokens": 5 }), "truncate_prompt_tokens", "not supported"),
        (json!({ "messages": good, "response_format": { "type": "json_object" } }), "response_format", ""),
        (json!({ "messages": good, "model": "other" }), "model", "does not exist"),
    ] {
        let refused = server.post("/v1/reward", body.clone()).await;
        let error = refused.json()["error"].clone();
        assert!(matches!(refused.status, 400 | 404), "{body}: {}", refused.text());
        assert_eq!(error["param"], param, "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{body}: {error}");
    }
    let system = json!([{ "role": "system", "content": "s" }, good[0], good[1]]);
    let refused = server.post("/v1/reward", json!({ "messages_list": [good, system] })).await;
    assert_eq!(refused.error().2.as_deref(), Some("messages_list[1]"));
    assert!(refused.text().contains("turns of user and assistant only"), "{}", refused.text());
    // The longest conversation is scored whole; one token more is refused and not cut.
    let rest = 512 - ids(&["a", ""]).len();
    let answers = ["x".repeat(rest), "x".repeat(rest + 1)];
    let whole = server.post("/v1/reward", json!({ "prompt": "a", "answers": answers[..1] })).await;
    assert_eq!((whole.status, &whole.json()["usage"]["prompt_tokens"]), (200, &json!(512)));
    let cut = server.post("/v1/reward", json!({ "prompt": "a", "answers": answers[1..] })).await;
    assert_eq!(cut.error().1.as_deref(), Some("context_length_exceeded"));
    assert!(cut.text().contains("513 in the messages, 0 in the completion"), "{}", cut.text());
    let every = json!({ "messages_list": vec![turns(&["a"; 10]); 52], "every_turn": true });
    let refused = server.post("/v1/reward", every).await;
    assert_eq!(refused.error().2.as_deref(), Some("every_turn"));
    assert!(refused.text().contains("expected at most 256 answers"), "{}", refused.text());
}

#[tokio::test]
async fn a_score_has_the_same_bits_alone_and_among_many() {
    let golden = heads().into_iter().find(|golden| golden.width() == 9).expect("a head of nine values");
    let model = golden.checkpoint();
    let mut setup = setup(&NINE);
    setup.config.vocab_size = 384;
    setup.config.max_model_len = 256;
    let runner = runner(model.path(), &setup.config);
    let server = setup.launch_with(runner);
    let prompt = "Name the capitals of as many countries as you can, with a word on each. ".repeat(2);
    let answers: Vec<String> =
        (0..24).map(|i| "Paris, Rome, Oslo; ".repeat(1 + i % 4) + &i.to_string()).collect();
    // No score comes from blocks that another request has computed.
    let ask =
        |answers: &[String], salt: &str| json!({ "prompt": prompt, "answers": answers, "cache_salt": salt });
    let together = server.post("/v1/reward", ask(&answers, "together")).await;
    assert_eq!(together.status, 200, "{}", together.text());
    let together = together.json();
    assert!(together["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0));
    let scores: Vec<&Value> =
        together["data"].as_array().unwrap().iter().map(|entry| &entry["values"]).collect();
    assert!(scores.windows(2).any(|pair| pair[0] != pair[1]));
    for (i, answer) in answers.iter().enumerate().step_by(5) {
        let alone = server.post("/v1/reward", ask(std::slice::from_ref(answer), &format!("alone {i}"))).await;
        assert_eq!(&alone.json()["data"][0]["values"], scores[i], "{i}");
    }
}

#[tokio::test]
async fn a_conversation_that_breaks_the_model_fails_alone() {
    let setup = setup(&FIVE);
    let executor = FakeExecutor::new(&setup.config).poison(u32::from(b'~'));
    let server = setup.launch_with(executor);
    let ask = |text: &str| json!({ "messages": turns(&["Why?", text]) });
    let expected = server.post("/v1/reward", ask("Because.")).await.json()["data"].clone();
    let (bad, refused, good) = tokio::join!(
        server.post("/v1/reward", ask("a~b")),
        server.post("/v1/reward", json!({ "messages": turns(&["Why?"]) })),
        server.post("/v1/reward", ask("Because.")),
    );
    assert_eq!((bad.status, refused.status), (500, 400));
    assert_eq!(bad.header("x-should-retry"), Some("false"));
    assert_eq!(good.json()["data"], expected);
    // An entry that fails takes its request with it: half a list of scores would be a trap.
    let list = json!({ "prompt": "Why?", "answers": ["Because.", "~"] });
    assert_eq!(server.post("/v1/reward", list).await.status, 500);
    server.until_empty().await;
    assert_eq!(server.post("/v1/reward", ask("Because.")).await.json()["data"], expected);
}

#[tokio::test]
async fn metrics_costs_deadlines_and_cancellation_hold_for_scores() {
    let setup = setup(&FIVE);
    let (executor, permits) = FakeExecutor::new(&setup.config).gated();
    let server = setup.launch_with(executor);
    let body = json!({ "messages": turns(&["Why?", "Because."]), "return_cost": true, "user": "ann" });
    // A client that leaves frees what its request holds.
    let mut gone = Connection::open(server.address).await;
    gone.request("POST", "/v1/reward", &[], body.to_string().as_bytes()).await;
    server.until(|stats| stats.counts.running == 1).await;
    drop(gone);
    let mut late = Connection::open(server.address).await;
    let hasty = merged(body.clone(), json!({ "timeout": 1e-6 }));
    late.request("POST", "/v1/reward", &[], hasty.to_string().as_bytes()).await;
    let headers = [("x-request-deadline-ms", "0")];
    let refused = send(server.address, "POST", "/classify", &headers, b"{}").await;
    assert_eq!(refused.error().2.as_deref(), Some("x-request-deadline-ms"));
    drop(permits);
    let late = late.reply_to("POST").await;
    assert!(matches!(late.status, 429 | 504), "{}", late.text());
    server.until_empty().await;
    let reply = server.post("/v1/reward", body).await.json();
    let tokens = ids(&["Why?", "Because."]).len();
    assert_eq!(reply["octant"]["computed_tokens"], tokens);
    server.until_empty().await;
    let text = server.get("/metrics").await;
    let text = text.text();
    let route = "handler=\"/v1/reward\"";
    assert_eq!(metric(text, "http_requests_total", &[route, "status=\"2xx\""]), 1.0);
    assert_eq!(metric(text, "vllm:request_success_total", &["finished_reason=\"length\""]), 1.0);
    assert_eq!(metric(text, "vllm:request_success_total", &["finished_reason=\"abort\""]), 1.0);
    assert_eq!(metric(text, "vllm:generation_tokens_total", &[]), 0.0);
    assert_eq!(metric(text, "vllm:time_to_first_token_seconds_count", &[]), 0.0);
    assert_eq!(metric(text, "vllm:request_prefill_time_seconds_count", &[]), 1.0);
    assert_eq!(server.get("/health").await.status, 200);
    server.signals.send(Signal::Terminate).await.unwrap();
    server.served.await.unwrap();
}

#[tokio::test]
async fn a_full_queue_and_a_wrong_key_refuse_scores_as_they_refuse_answers() {
    let mut setup = setup(&FIVE);
    setup.config.max_num_seqs = 1;
    setup.config.max_queue_requests = 1;
    setup.settings.api_key = Some("sesame".to_owned());
    let (executor, permits) = FakeExecutor::new(&setup.config).gated();
    let server = setup.launch_with(executor);
    let body = json!({ "prompt": "Why?", "answers": ["Because.", "No.", "So."] }).to_string();
    let post = async |path: &str, key: &str| {
        let mut connection = Connection::open(server.address).await;
        let bearer = format!("Bearer {key}");
        connection.request("POST", path, &[("authorization", &bearer)], body.as_bytes()).await;
        connection
    };
    let routes = ["/v1/reward", "/pooling", "/classify", "/get_reward", "/v1/chat/completions"];
    for path in routes {
        assert_eq!(post(path, "wrong").await.reply_to("POST").await.status, 401, "{path}");
    }
    // An empty queue takes a request of any size.
    let mut first = post("/v1/reward", "sesame").await;
    server.until(|stats| (stats.counts.running, stats.counts.waiting) == (1, 2)).await;
    for path in routes {
        let full = post(path, "sesame").await.reply_to("POST").await;
        assert_eq!((full.status, full.header("retry-after").is_some()), (429, true), "{path}");
    }
    drop(permits);
    let scored = first.reply_to("POST").await;
    assert_eq!((scored.status, scored.json()["data"].as_array().map(Vec::len)), (200, Some(3)));
}

#[tokio::test]
async fn lines_of_batches_are_scored_like_live_requests() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(&FIVE);
    setup.settings.batches = batch_setup(dir.path(), 1 << 30).settings.batches;
    let executor = FakeExecutor::new(&setup.config);
    let server = setup.launch_with(executor);
    let line = |id: &str, body: Value| {
        let url = "/v1/reward";
        json!({ "custom_id": id, "method": "POST", "url": url, "body": body })
    };
    let good = json!({ "prompt": "Why?", "answers": ["Because.", "No."], "every_turn": true });
    let lines = [line("good", good.clone()), line("bad", json!({ "messages": turns(&["Why?"]) }))];
    let id = created_for(&server, &lines).await;
    let batch = until_status(&server, &id, "completed").await;
    let results = lines_of(&server, &batch["output_file_id"]).await;
    let live = server.post("/v1/reward", good).await.json();
    assert_eq!(results[0]["response"]["body"]["data"], live["data"]);
    let errors = lines_of(&server, &batch["error_file_id"]).await;
    assert_eq!(errors[0]["response"]["body"]["error"]["param"], "messages");
}

/// Creates a batch of lines for `/v1/reward` and returns its id.
async fn created_for(server: &TestServer, lines: &[Value]) -> String {
    let file = uploaded(server, &jsonl(lines)).await;
    let body = json!({ "input_file_id": file, "endpoint": "/v1/reward", "completion_window": "24h" });
    let reply = server.post("/v1/batches", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["id"].as_str().unwrap().to_owned()
}
