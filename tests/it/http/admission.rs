//! Admission: refusals because of the predicted wait, `Retry-After`, deadlines, and fair shares by API key
//! and user.

use std::time::Duration;

use octant::engine::Forecast;
use octant::request::Tenant;
use octant::server::api_keys::Caller;
use serde_json::{Value, json};

use super::client::{Connection, Reply, send};
use super::test_server::{BOS, Setup, TestServer, chat_body, merged, metric};
use crate::fake::FakeExecutor;

const CHAT: &str = "/v1/chat/completions";
const STEP: Duration = Duration::from_millis(20);

/// A setup whose forecast expects this many seconds per step.
fn expecting(seconds: f64) -> Setup {
    let mut setup = Setup::new();
    setup.start.forecast = Forecast::new(&[(1, seconds); 400]);
    setup
}

/// Starts a server whose steps take 20 ms.
fn slow(setup: Setup) -> TestServer {
    let executor = FakeExecutor::new(&setup.config).delay(STEP);
    setup.launch_with(executor)
}

/// A chat of 100 tokens.
fn long(more: Value) -> Value {
    chat_body("innocent", merged(json!({ "ignore_eos": true, "max_tokens": 100, "seed": 7 }), more))
}

fn content(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["choices"].to_string()
}

async fn with_deadline(server: &TestServer, ms: &str, body: &Value) -> Reply {
    send(server.address, "POST", CHAT, &[("x-request-deadline-ms", ms)], body.to_string().as_bytes()).await
}

#[tokio::test]
async fn a_predicted_wait_over_max_ttft_is_a_429_with_retry_after() {
    let mut setup = expecting(10.0);
    setup.start.max_ttft = Some(Duration::from_secs(2));
    let server = slow(setup);
    let alone = slow(expecting(0.0));
    let trouble = async {
        server.until(|stats| stats.counts.running == 1).await;
        let refused = server.chat("b", json!({ "stream": true })).await;
        assert_eq!(refused.error(), (429, Some("queue_full".into()), None), "before any header of a stream");
        // The step in flight and the request's own, of about ten seconds each, less the limit of two seconds.
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((14..=18).contains(&seconds), "{seconds}");
        assert_eq!(refused.header("retry-after-ms"), Some(format!("{seconds}000").as_str()));
    };
    // An idle engine admits a request that it expects to take ten seconds; else it would never serve any.
    let (first, ()) = tokio::join!(server.post(CHAT, long(json!({}))), trouble);
    assert_eq!(content(&first), content(&alone.post(CHAT, long(json!({}))).await));
    server.until_empty().await;
}

/// The prompt is longer than the context. Only tokenizing it can tell, and that is then a 400.
#[tokio::test]
async fn a_long_wait_is_refused_before_the_prompt_is_tokenized() {
    let huge = chat_body(&"x".repeat(100_000), json!({ "max_tokens": 5 }));
    let mut setup = expecting(10.0);
    setup.start.max_ttft = Some(Duration::from_secs(2));
    let busy = slow(setup);
    let mut running = Connection::open(busy.address).await;
    running.request("POST", CHAT, &[], long(json!({})).to_string().as_bytes()).await;
    busy.until(|stats| stats.counts.running == 1).await;
    assert_eq!(busy.post(CHAT, huge.clone()).await.error().0, 429);
    drop(running);
    busy.until_empty().await;
    // The engine is idle, so the prompt is tokenized.
    assert_eq!(busy.post(CHAT, huge.clone()).await.error().0, 400);
    let idle = slow(expecting(10.0));
    let unmet = Some("deadline_unmet".to_owned());
    assert_eq!(with_deadline(&idle, "3000", &huge).await.error(), (429, unmet, None));
    assert_eq!(with_deadline(&idle, "60000", &huge).await.error().0, 400);
    let reply = busy.get("/metrics").await;
    assert_eq!(metric(reply.text(), "octant_admissions_total", &["decision=\"busy\""]), 1.0);
}

#[tokio::test]
async fn a_full_queue_predicts_retry_after() {
    let mut setup = expecting(10.0);
    setup.config.max_num_seqs = 1;
    setup.config.max_queue_requests = 1;
    let server = slow(setup);
    let mut running = Connection::open(server.address).await;
    running.request("POST", CHAT, &[], long(json!({})).to_string().as_bytes()).await;
    server.until(|stats| stats.counts.running == 1).await;
    let mut waiting = Connection::open(server.address).await;
    waiting.request("POST", CHAT, &[], long(json!({})).to_string().as_bytes()).await;
    server.until(|stats| stats.counts.waiting == 1).await;
    let refused = server.chat("c", json!({})).await;
    assert_eq!(refused.error().0, 429);
    // A reply of about 128 steps of ten seconds, capped at 120 s, beyond which clients ignore the header.
    assert_eq!(refused.header("retry-after"), Some("120"));
}

#[tokio::test]
async fn an_unmeetable_deadline_is_refused_at_once() {
    let server = slow(expecting(10.0));
    for reply in [
        with_deadline(&server, "3000", &long(json!({}))).await,
        with_deadline(&server, "60000", &long(json!({ "timeout": 3 }))).await,
        server.post(CHAT, long(json!({ "timeout": 3.0, "stream": true }))).await,
    ] {
        assert_eq!(reply.error(), (429, Some("deadline_unmet".into()), None));
        // The request takes longer than its deadline even on an idle server, so a retry cannot help.
        assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (None, Some("false")));
    }
    assert_eq!(server.engine.stats().counts.steps, 0, "no step ran before the refusals");
    let met = with_deadline(&server, "60000", &chat_body("ab", json!({ "max_tokens": 2 }))).await;
    assert_eq!(met.status, 200);
}

#[tokio::test]
async fn a_deadline_covers_min_tokens_and_the_last_sequence_of_a_request() {
    let server = slow(expecting(1.0));
    let hopeless = |reply: &Reply| {
        assert_eq!(reply.error(), (429, Some("deadline_unmet".into()), None));
        assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (None, Some("false")));
    };
    // Steps take a second: forty tokens need forty steps, and forty prompts five batches of eight.
    let forty = json!({ "min_tokens": 40, "max_tokens": 50 });
    hopeless(&with_deadline(&server, "20000", &chat_body("ab", forty.clone())).await);
    assert_eq!(with_deadline(&server, "60000", &chat_body("ab", forty)).await.status, 200);
    let prompts: Vec<String> = (0..40).map(|i| format!("{i:02}")).collect();
    let many = json!({ "model": "parrot", "prompt": prompts, "max_tokens": 2 });
    let refused = server.post("/v1/completions", merged(many.clone(), json!({ "timeout": 3.0 }))).await;
    hopeless(&refused);
    assert_eq!(server.post("/v1/completions", merged(many, json!({ "timeout": 9000.0 }))).await.status, 200);
}

#[tokio::test]
async fn the_shortest_of_several_deadlines_applies() {
    let server = slow(expecting(10.0));
    let headers = [("x-request-deadline-ms", "60000"), ("x-request-deadline-ms", "3000")];
    let body = long(json!({})).to_string();
    let reply = send(server.address, "POST", CHAT, &headers, body.as_bytes()).await;
    assert_eq!(reply.error(), (429, Some("deadline_unmet".into()), None));
}

#[tokio::test]
async fn a_request_can_only_lower_the_priority_of_its_key() {
    let mut setup = Setup::new();
    let tenant = Tenant { name: "key:a".into(), weight: 1 };
    setup.settings.api_key = Some("shared".to_owned());
    setup.settings.named_keys = vec![("a".to_owned(), Caller { tenant, priority: 5 })];
    let server = setup.launch();
    for (key, priority, status) in [("a", -1, 400), ("a", 100, 200), ("shared", -1, 400), ("shared", 0, 200)]
    {
        let bearer = format!("Bearer {key}");
        let body = chat_body("ab", json!({ "priority": priority })).to_string();
        let reply = send(server.address, "POST", CHAT, &[("authorization", &bearer)], body.as_bytes()).await;
        assert_eq!(reply.status, status, "{key} {priority}");
    }
}

#[tokio::test]
async fn an_expired_deadline_ends_only_its_own_request() {
    let server = slow(expecting(0.0));
    let alone = content(&server.post(CHAT, long(json!({}))).await);
    server.until_empty().await;
    let late = async {
        let whole = with_deadline(&server, "400", &long(json!({ "seed": 8 }))).await;
        assert_eq!(whole.error(), (504, Some("deadline_exceeded".into()), None));
        assert_eq!(whole.header("x-should-retry"), Some("false"));
        let stream = server.post(CHAT, long(json!({ "timeout": 0.4, "stream": true, "n": 2 }))).await;
        assert_eq!(stream.status, 200);
        assert!(!stream.complete, "an aborted stream is incomplete on the wire");
        let events = stream.events();
        assert!(events.len() > 4, "it had started: {events:?}");
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "deadline_exceeded");
        assert!(!stream.text().contains("[DONE]"));
    };
    let (beside, ()) = tokio::join!(server.post(CHAT, long(json!({}))), late);
    assert_eq!(content(&beside), alone);
    server.until_empty().await;
    let reply = server.get("/metrics").await;
    let ended = |reason: &str| {
        metric(reply.text(), "vllm:request_success_total", &[&format!("finished_reason=\"{reason}\"")])
    };
    assert_eq!(
        (ended("deadline"), ended("error"), ended("length")),
        (3.0, 0.0, 2.0),
        "a missed deadline is not counted as a server error"
    );
    let late = metric(reply.text(), "octant_http_errors_total", &["code=\"deadline_exceeded\""]);
    assert_eq!(late, 1.0, "an error event of a stream is not counted as a response");
    assert_eq!(server.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn a_deadline_expires_in_the_queue() {
    let mut setup = expecting(0.0);
    setup.config.max_num_seqs = 1;
    let server = slow(setup);
    let late = async {
        server.until(|stats| stats.counts.running == 1).await;
        let reply = with_deadline(&server, "700", &long(json!({}))).await;
        assert_eq!(reply.error(), (504, Some("deadline_exceeded".into()), None));
        assert_eq!(server.engine.stats().counts.running, 1, "the reply did not wait for the other request");
        server.until(|stats| stats.counts.waiting == 0).await;
        assert_eq!(server.engine.stats().counts.running, 1, "the other request still runs");
    };
    let (first, ()) = tokio::join!(server.post(CHAT, long(json!({}))), late);
    assert_eq!(first.status, 200);
    server.until_empty().await;
    let reply = server.get("/metrics").await;
    let queue = |of: &str| metric(reply.text(), &format!("vllm:request_queue_time_seconds_{of}"), &[]);
    assert_eq!(queue("count"), 2.0, "a request that never started counts too");
    assert!(queue("sum") > 0.6, "{}", queue("sum"));
}

#[tokio::test]
async fn invalid_deadlines_are_refused_by_name() {
    let server = Setup::new().launch();
    for bad in [json!(0), json!(-1), json!("3"), json!(1e9), json!([])] {
        let reply = server.chat("ab", json!({ "timeout": bad })).await;
        assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("timeout".into())), "{bad}");
    }
    for bad in ["0", "-1", "1.5", "soon", "99999999999999999999"] {
        let reply = with_deadline(&server, bad, &chat_body("ab", json!({}))).await;
        let param = Some("x-request-deadline-ms".into());
        assert_eq!(reply.error(), (400, Some("invalid_value".into()), param), "{bad}");
    }
    let reply = server.chat("ab", json!({ "user": "x".repeat(513) })).await;
    assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("user".into())));
}

/// Sends ten requests of one caller, then one of another. Returns how many of the ten ended before that one.
async fn ended_before(server: &TestServer, heavy: (&str, &str), light: (&str, &str)) -> usize {
    let (ended, mut order) = tokio::sync::mpsc::unbounded_channel();
    let ask = |(key, user): (&str, &str)| {
        let (address, ended) = (server.address, ended.clone());
        let body = json!({ "user": user, "ignore_eos": true, "max_tokens": 6 });
        let body = chat_body("ab", body).to_string();
        let (key, sender) = (format!("Bearer {key}"), format!("{key}{user}"));
        tokio::spawn(async move {
            let reply = send(address, "POST", CHAT, &[("authorization", &key)], body.as_bytes()).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            ended.send(sender).expect("the test still receives");
        })
    };
    for _ in 0..10 {
        ask(heavy);
    }
    server.until(|stats| stats.counts.waiting + stats.counts.running == 10).await;
    let light_one = ask(light);
    let mut before = 0;
    while order.recv().await.expect("the light one ends") != format!("{}{}", light.0, light.1) {
        before += 1;
    }
    light_one.await.unwrap();
    server.until_empty().await;
    before
}

#[tokio::test]
async fn fair_sharing_is_by_key_or_else_by_user() {
    let caller = |name: &str, priority| Caller { tenant: Tenant { name: name.into(), weight: 1 }, priority };
    let setup = |keys: &[&str]| {
        let mut setup = Setup::new();
        setup.config.max_num_seqs = 1;
        let named = keys.iter().map(|key| ((*key).to_owned(), caller(key, i32::from(*key == "low"))));
        setup.settings.named_keys = named.collect();
        setup.settings.api_key = Some("shared".to_owned());
        let executor = FakeExecutor::new(&setup.config).parrot(BOS).delay(STEP);
        setup.launch_with(executor)
    };
    let server = setup(&["one", "two", "low"]);
    let by_key = ended_before(&server, ("one", ""), ("two", "")).await;
    let same_key = ended_before(&server, ("one", "a"), ("one", "b")).await;
    let by_user = ended_before(&server, ("shared", "a"), ("shared", "b")).await;
    let low = ended_before(&server, ("one", ""), ("low", "")).await;
    assert!(by_key <= 4 && by_user <= 4, "{by_key} and {by_user} of ten ended first");
    assert_eq!(same_key, 10, "a named key is one tenant, whatever users its requests name");
    assert_eq!(low, 10, "the priority of the key is lower");
    let wrong = send(server.address, "POST", CHAT, &[("authorization", "Bearer three")], b"{}").await;
    assert_eq!(wrong.error(), (401, Some("invalid_api_key".into()), None));
}
