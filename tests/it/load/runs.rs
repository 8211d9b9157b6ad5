//! Whole runs against a scripted server on loopback.

use std::future::{pending, ready};
use std::time::Duration;

use octant::bench::load_client::arrivals::{Arrivals, Rate, Spacing};
use octant::bench::load_client::body::{Bodies, Endpoint};
use octant::bench::load_client::client::Client;
use octant::bench::load_client::drive::{LoadTestPlan, Pace, run};
use octant::bench::load_client::measure::{FailureKind, LoadRun, Objectives, Summary, TokensCountedBy};
use octant::bench::load_client::prompts::PromptSource;
use octant::http_client::Target;

use super::server::{ScriptStep, Server, answer, end, head, piece, token, whole};

fn plan(server: &Server, pace: Pace, requests: u64) -> LoadTestPlan {
    LoadTestPlan {
        target: Target::parse(&server.url, Some("secret")).unwrap(),
        bodies: Bodies {
            prompts: PromptSource::Synthetic { tokens: 8, shared_prefix: 0, seed: 0 },
            endpoint: Endpoint::Chat,
            model: "m".to_owned(),
            max_tokens: 4,
            ignore_eos: false,
            temperature: None,
            extra: serde_json::Map::new(),
        },
        pace,
        requests: Some(requests),
        duration: None,
        warm_up: 0,
        timeout: Duration::from_secs(60),
        seed: 0,
    }
}

async fn finish(plan: &LoadTestPlan) -> (LoadRun, Summary) {
    let run = run(plan, pending(), &mut |_| {}).await;
    let summary = Summary::of(&run, Objectives::default());
    (run, summary)
}

const ONE: Pace = Pace::Closed { concurrency: 1 };

fn constant(rate: f64, max_concurrency: Option<usize>) -> Pace {
    Pace::Open { rate: Rate { from: rate, to: rate }, spacing: Spacing::Constant, max_concurrency }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[tokio::test]
async fn latencies_include_the_delays_of_the_server_and_counts_are_exact() {
    let server = Server::start(vec![answer(30, 4, 10, Some(9)), answer(30, 4, 10, Some(4))]).await;
    let (run, summary) = finish(&plan(&server, ONE, 4)).await;
    assert_eq!((summary.sent, summary.ok, summary.failed, summary.output_tokens), (4, 4, 0, 26));
    assert_eq!((summary.prompt_tokens, summary.tokens_counted), (28, TokensCountedBy::Usage));
    assert_eq!((summary.itl_ms.count, run.chunks), (12, 16));
    for record in &run.records {
        assert!(ms(record.ttft().unwrap()) >= 30.0 && ms(record.e2e().unwrap()) >= 60.0);
        // The server waits between sends. Chunks may arrive together, so only the sum of the waits is
        // certain.
        assert!(record.ended >= record.sent + record.e2e().unwrap());
    }
    assert!(run.elapsed >= Duration::from_millis(240) && run.cpu > Duration::ZERO);
    let log = server.log.lock().unwrap();
    assert_eq!(log.max_open, 1);
    assert!(log.requests.iter().all(|seen| seen.connection == 1), "the connection is reused");
    assert!(log.requests.iter().all(|seen| seen.head.contains("authorization: bearer secret")));
    let prompts: Vec<_> =
        log.requests.iter().map(|seen| seen.body["messages"][0]["content"].clone()).collect();
    assert!((1..4).all(|i| !prompts[..i].contains(&prompts[i])), "{prompts:?}");
}

#[tokio::test]
async fn each_failure_has_its_kind_and_message() {
    let event = |data: &str| piece(&format!("data: {data}\n\n"));
    let good = answer(0, 1, 0, None);
    let scripts = vec![
        vec![whole("429 Too Many Requests", "Retry-After: 3\r\n", r#"{"error":{"message":"full"}}"#)],
        vec![whole("500 Internal Server Error", "", "broken")],
        vec![head(), token(), event(r#"{"error":{"message":"gpu gone","code":500}}"#), ScriptStep::Cut],
        vec![head(), token(), ScriptStep::Cut],
        vec![head(), token(), ScriptStep::Send(b"0\r\n\r\n".to_vec())],
        vec![head(), token(), event("no json"), ScriptStep::Send(b"0\r\n\r\n".to_vec())],
        vec![whole("200 OK", "Content-Type: application/json\r\n", "{}")],
        [vec![head()], end(Some(0))].concat(),
        good,
    ];
    let count = scripts.len() as u64;
    let server = Server::start(scripts).await;
    let (mut run, summary) = finish(&plan(&server, ONE, count)).await;
    assert_eq!((summary.sent, summary.ok, summary.failed), (count, 1, count - 1));
    run.records.sort_by_key(|record| record.index);
    let kinds: Vec<_> =
        run.records.iter().map(|record| record.outcome.as_ref().map_err(|failure| failure.kind)).collect();
    let expected = [
        Err(FailureKind::Status(429)),
        Err(FailureKind::Status(500)),
        Err(FailureKind::Stream),
        Err(FailureKind::Cut),
        Err(FailureKind::Cut),
        Err(FailureKind::Malformed),
        Err(FailureKind::Malformed),
        Err(FailureKind::Empty),
        Ok(&()),
    ];
    assert_eq!(kinds, expected);
    let text = |i: usize| run.records[i].outcome.as_ref().unwrap_err().text.clone();
    assert_eq!((text(0), text(1)), ("full (Retry-After: 3)".to_owned(), "broken".to_owned()));
    assert_eq!(text(2), "gpu gone");
    assert_eq!(server.log.lock().unwrap().requests.len() as u64, count, "no request is repeated");
}

#[tokio::test]
async fn a_slow_answer_is_a_timeout_and_a_closed_port_is_no_connection() {
    let server = Server::start(vec![vec![head(), token(), ScriptStep::Wait(60_000), ScriptStep::Cut]]).await;
    let mut plan = plan(&server, ONE, 1);
    plan.timeout = Duration::from_millis(50);
    let (run, _) = finish(&plan).await;
    assert_eq!(run.records[0].outcome.as_ref().unwrap_err().kind, FailureKind::Timeout);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    plan.target = Target::parse(&format!("http://{closed}"), None).unwrap();
    let (run, summary) = finish(&plan).await;
    assert_eq!(run.records[0].outcome.as_ref().unwrap_err().kind, FailureKind::Connect);
    assert_eq!((summary.ok, summary.ttft_ms.count), (0, 0));
}

#[tokio::test]
async fn a_closed_idle_connection_is_replaced() {
    let close = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 78\r\n\r\n";
    let body = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\n";
    let padded = format!("{close}{body:<78}");
    let server = Server::start(vec![vec![ScriptStep::Send(padded.into_bytes()), ScriptStep::Cut]]).await;
    let (_, summary) = finish(&plan(&server, constant(50.0, None), 3)).await;
    assert_eq!((summary.ok, summary.failed), (3, 0));
    let log = server.log.lock().unwrap();
    assert_eq!(log.requests.iter().map(|seen| seen.connection).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_closed_loop_never_exceeds_its_concurrency() {
    let server = Server::start(vec![answer(5, 2, 2, None), answer(1, 3, 3, None)]).await;
    let mut plan = plan(&server, Pace::Closed { concurrency: 3 }, 30);
    plan.warm_up = 6;
    let (run, summary) = finish(&plan).await;
    assert_eq!(
        (summary.ok, summary.tokens_counted, summary.output_tokens),
        (30, TokensCountedBy::Chunks, 75)
    );
    assert_eq!(run.records.iter().map(|record| ms(record.lag())).fold(0.0, f64::max), 0.0);
    let log = server.log.lock().unwrap();
    assert_eq!((log.requests.len(), log.max_open), (36, 3));
}

#[tokio::test]
async fn an_open_loop_does_not_wait_for_answers() {
    // Ten requests are due within 100 ms; the first answer comes after 300 ms.
    let server = Server::start(vec![answer(300, 1, 0, Some(1))]).await;
    let (mut run, summary) = finish(&plan(&server, constant(100.0, None), 10)).await;
    assert_eq!((summary.ok, server.log.lock().unwrap().max_open), (10, 10));
    run.records.sort_by_key(|record| record.index);
    let due: Vec<Duration> = run.records.iter().map(|record| record.due).collect();
    let rate = Rate { from: 100.0, to: 100.0 };
    let expected: Vec<Duration> = Arrivals::new(rate, None, Spacing::Constant, 0).take(10).collect();
    assert_eq!(due, expected);
    assert!(run.records.iter().all(|record| record.sent >= record.due));
    let first_end = run.records.iter().map(|record| record.ended).min().unwrap();
    assert!(run.records.iter().all(|record| record.sent < first_end), "no request waited for an answer");
}

#[tokio::test]
async fn latencies_from_due_time_include_the_wait_for_the_concurrency_limit() {
    // All are due within 30 ms, one at a time is sent, and each takes 40 ms.
    let server = Server::start(vec![answer(40, 1, 0, None)]).await;
    let (mut run, summary) = finish(&plan(&server, constant(100.0, Some(1)), 3)).await;
    assert_eq!((summary.ok, server.log.lock().unwrap().max_open), (3, 1));
    run.records.sort_by_key(|record| record.index);
    // The last is due at 30 ms and cannot be sent before 10 + 2 * 40 ms.
    assert!(ms(run.records[2].lag()) >= 60.0, "{:?}", run.records[2].lag());
    assert!(summary.ttft_from_due_ms.max >= 100.0 && summary.lag_ms.max >= 60.0);
}

#[tokio::test]
async fn after_its_duration_a_run_waits_for_requests_in_flight() {
    let server = Server::start(vec![answer(60, 1, 0, None)]).await;
    let mut open = plan(&server, constant(50.0, None), 1);
    (open.requests, open.duration) = (None, Some(Duration::from_millis(100)));
    let (_, summary) = finish(&open).await;
    assert_eq!((summary.sent, summary.ok), (5, 5));
    let mut closed = LoadTestPlan { pace: ONE, ..open };
    closed.duration = Some(Duration::from_millis(130));
    let (_, summary) = finish(&closed).await;
    // They are sent one after the other, at least 60 ms apart.
    assert!(summary.sent <= 3 && summary.ok == summary.sent, "{} sent", summary.sent);
}

#[tokio::test]
async fn an_interrupt_aborts_requests_in_flight_and_keeps_those_that_ended() {
    let server =
        Server::start(vec![answer(0, 1, 0, None), vec![head(), ScriptStep::Wait(60_000), ScriptStep::Cut]])
            .await;
    let plan = plan(&server, ONE, 5);
    let log = std::sync::Arc::clone(&server.log);
    let second = async {
        while log.lock().unwrap().requests.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let stopped = run(&plan, second, &mut |_| {}).await;
    let summary = Summary::of(&stopped, Objectives::default());
    assert!(summary.interrupted);
    assert_eq!((summary.sent, summary.ok, summary.unfinished), (2, 1, 1));
    let at_once = run(&LoadTestPlan { warm_up: 3, ..plan }, ready(()), &mut |_| {}).await;
    assert!(at_once.interrupted && at_once.records.is_empty());
}

#[tokio::test]
async fn the_first_listed_model_is_used() {
    let list = r#"{"object":"list","data":[{"id":"first"},{"id":"second"}]}"#;
    let scripts = vec![
        vec![whole("200 OK", "", list)],
        vec![whole("401 Unauthorized", "", r#"{"error":{"message":"key"}}"#)],
    ];
    let server = Server::start(scripts).await;
    let client = Client::new(Target::parse(&server.url, None).unwrap(), Duration::from_secs(60));
    assert_eq!(client.first_model().await.unwrap(), "first");
    let error = client.first_model().await.unwrap_err().to_string();
    assert!(error.contains("HTTP 401: key") && error.contains("--model"), "{error}");
    assert!(server.log.lock().unwrap().requests[0].head.starts_with("get /v1/models "));
}
