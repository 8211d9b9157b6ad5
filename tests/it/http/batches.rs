//! Files and batches: their whole life over HTTP, what is refused, and who sees what.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octant::batch::Store;
use octant::request::Tenant;
use octant::server::api_keys::Caller;
use octant::server::{BatchSettings, Ended, Signal};
use serde_json::{Value, json};

use super::client::{Reply, send};
use super::test_server::{BOS, Setup, TestServer, merged, metric};
use crate::HANG_GUARD;
use crate::fake::FakeExecutor;

/// A time of the tests' own clock.
const NOW: u64 = 1_800_000_000;

/// A server that keeps files and batches in a directory of at most `limit` bytes.
pub fn setup(directory: &Path, limit: u64) -> Setup {
    let mut setup = Setup::new();
    let store = Arc::new(Store::open(directory, limit).expect("the directory is free"));
    setup.settings.batches = Some(BatchSettings { store, max_lines: 4, clock: || NOW });
    setup
}

/// A form with a purpose and a file.
pub fn form(purpose: &str, content: &[u8]) -> (String, Vec<u8>) {
    let mut body = format!(
        "--limit\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n--limit\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"in \\\"put.jsonl\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n--limit--\r\n");
    ("multipart/form-data; boundary=limit".to_owned(), body)
}

async fn with_key(server: &TestServer, key: &str, method: &str, path: &str, body: &[u8]) -> Reply {
    let bearer = format!("Bearer {key}");
    let kind = if path == "/v1/files" { "multipart/form-data; boundary=limit" } else { "application/json" };
    send(server.address, method, path, &[("authorization", &bearer), ("content-type", kind)], body).await
}

async fn upload(server: &TestServer, content: &[u8]) -> Reply {
    let (kind, body) = form("batch", content);
    send(server.address, "POST", "/v1/files", &[("content-type", &kind)], &body).await
}

/// Uploads lines and returns the file's id.
pub async fn uploaded(server: &TestServer, content: &[u8]) -> String {
    let reply = upload(server, content).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["id"].as_str().expect("a file has an id").to_owned()
}

pub fn creation(file: &str) -> Value {
    json!({ "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h" })
}

/// Creates a batch of these lines and returns its id.
pub async fn created(server: &TestServer, lines: &[Value]) -> String {
    let file = uploaded(server, &jsonl(lines)).await;
    let reply = server.post("/v1/batches", creation(&file)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let batch = reply.json();
    assert_eq!((&batch["status"], &batch["object"]), (&json!("validating"), &json!("batch")));
    batch["id"].as_str().expect("a batch has an id").to_owned()
}

pub fn jsonl(lines: &[Value]) -> Vec<u8> {
    lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

fn line(custom_id: &str, text: &str, more: Value) -> Value {
    let body = super::test_server::chat_body(text, more);
    json!({ "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body })
}

/// Waits until a batch meets a condition.
pub async fn until(server: &TestServer, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + HANG_GUARD;
    loop {
        let batch = server.get(&format!("/v1/batches/{id}")).await.json();
        if wanted(&batch) {
            return batch;
        }
        assert!(Instant::now() < end, "the batch did not get there: {batch}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn until_status(server: &TestServer, id: &str, status: &str) -> Value {
    until(server, id, |batch| batch["status"] == status).await
}

/// The lines of a file.
pub async fn lines_of(server: &TestServer, id: &Value) -> Vec<Value> {
    let id = id.as_str().expect("there is a file");
    let reply = server.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.header("content-disposition").is_some_and(|value| value.starts_with("attachment")));
    reply.text().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

#[tokio::test]
async fn a_batch_runs_from_upload_to_results() {
    let dir = tempfile::tempdir().unwrap();
    let server = setup(dir.path(), 1 << 30).launch();
    let lines = [
        line("a", "one", json!({})),
        line("b", "two", json!({ "n": 2, "logprobs": true })),
        line("c", "bad", json!({ "temperature": 9 })),
        line("d", "streams", json!({ "stream": true })),
        line("e", "unknown", json!({ "model": "other" })),
    ];
    let content = jsonl(&lines);
    let reply = upload(&server, &content).await.json();
    let expected = json!({ "id": reply["id"], "object": "file", "bytes": content.len(), "created_at": NOW,
        "expires_at": null, "filename": "in \"put.jsonl", "purpose": "batch", "status": "processed",
        "status_details": null });
    assert_eq!(reply, expected);
    let file = reply["id"].as_str().unwrap();
    let mut asked = creation(file);
    asked["metadata"] = json!({ "run": "7" });
    let batch = server.post("/v1/batches", asked).await.json();
    assert_eq!((&batch["expires_at"], &batch["metadata"]["run"]), (&json!(NOW + 86_400), &json!("7")));
    let id = batch["id"].as_str().unwrap();
    let batch = until_status(&server, id, "completed").await;
    assert_eq!(batch["request_counts"], json!({ "total": 5, "completed": 2, "failed": 3 }));
    for time in ["created_at", "in_progress_at", "finalizing_at", "completed_at"] {
        assert_eq!(batch[time], NOW, "{time}");
    }
    for null in ["errors", "failed_at", "expired_at", "cancelling_at", "cancelled_at"] {
        assert!(batch[null].is_null() && batch.as_object().unwrap().contains_key(null), "{null}");
    }
    let mut good = lines_of(&server, &batch["output_file_id"]).await;
    good.sort_by_key(|line| line["custom_id"].to_string());
    let answers = good.iter().map(|line| &line["response"]["body"]["choices"]);
    let texts: Vec<Vec<&str>> = answers
        .map(|all| {
            all.as_array().unwrap().iter().map(|c| c["message"]["content"].as_str().unwrap()).collect()
        })
        .collect();
    assert_eq!(texts, [vec!["one"], vec!["two", "two"]]);
    assert_eq!((&good[0]["response"]["status_code"], &good[0]["error"]), (&json!(200), &Value::Null));
    assert_eq!(good[0]["response"]["request_id"], good[0]["id"]);
    assert!(good[1]["response"]["body"]["choices"][0]["logprobs"]["content"].is_array());
    let mut bad = lines_of(&server, &batch["error_file_id"]).await;
    bad.sort_by_key(|line| line["custom_id"].to_string());
    let errors = bad.iter().map(|line| {
        let response = &line["response"];
        (response["status_code"].as_u64().unwrap(), response["body"]["error"]["param"].as_str().unwrap())
    });
    assert_eq!(errors.collect::<Vec<_>>(), [(400, "temperature"), (400, "stream"), (404, "model")]);
    let text = server.get("/metrics").await.text().to_owned();
    assert_eq!(metric(&text, "octant_batch_lines_total", &["result=\"completed\""]), 2.0);
    assert_eq!(metric(&text, "octant_batch_lines_total", &["result=\"failed\""]), 3.0);
    assert_eq!(metric(&text, "vllm:time_to_first_token_seconds_count", &[]), 0.0, "no live request ran");
    lists_and_deletion(&server, file, &batch).await;
}

/// The lists after one batch, and the deletion of its files.
async fn lists_and_deletion(server: &TestServer, file: &str, batch: &Value) {
    let ids = |list: &Value| -> Vec<Value> {
        list["data"].as_array().unwrap().iter().map(|entry| entry["id"].clone()).collect()
    };
    let list = server.get("/v1/files?order=asc").await.json();
    let all = [json!(file), batch["output_file_id"].clone(), batch["error_file_id"].clone()];
    assert_eq!((ids(&list), &list["has_more"]), (all.to_vec(), &json!(false)));
    let outputs = server.get("/v1/files?purpose=batch_output&limit=1").await.json();
    assert_eq!((ids(&outputs), &outputs["has_more"]), (vec![batch["error_file_id"].clone()], &json!(true)));
    let after = format!("/v1/files?after={}", batch["output_file_id"].as_str().unwrap());
    assert_eq!(ids(&server.get(&after).await.json()), [file]);
    assert_eq!(ids(&server.get("/v1/batches").await.json()), [batch["id"].clone()]);
    let path = format!("/v1/files/{file}");
    let deleted = send(server.address, "DELETE", &path, &[], b"").await;
    assert_eq!(deleted.json(), json!({ "id": file, "object": "file", "deleted": true }));
    assert_eq!(server.get(&path).await.error(), (404, None, None));
    assert_eq!(server.get(&format!("{path}/content")).await.error(), (404, None, None));
}

#[tokio::test]
async fn text_completions_run_in_batches_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = setup(dir.path(), 1 << 30).launch();
    let url = "/v1/completions";
    let body = json!({ "prompt": "abc", "max_tokens": 3 });
    let line = json!({ "custom_id": "x", "method": "POST", "url": url, "body": body });
    let file = uploaded(&server, &jsonl(&[line])).await;
    let mut asked = creation(&file);
    asked["endpoint"] = json!(url);
    let batch = server.post("/v1/batches", asked).await.json();
    let batch = until_status(&server, batch["id"].as_str().unwrap(), "completed").await;
    let line = &lines_of(&server, &batch["output_file_id"]).await[0];
    assert_eq!(line["response"]["body"]["choices"][0]["text"], "abc");
    assert!(batch["error_file_id"].is_null());
}

#[tokio::test]
async fn an_invalid_input_file_fails_the_batch_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = setup(dir.path(), 1 << 30).launch();
    let good = || line("a", "one", json!({}));
    let with = |field: &str, value: Value| {
        let mut line = line("b", "two", json!({}));
        line[field] = value;
        jsonl(&[good(), line])
    };
    let cases: [(Vec<u8>, &str, Value, Value); 12] = [
        (b"\n \r\n".to_vec(), "empty_file", Value::Null, Value::Null),
        (
            [jsonl(&[good()]), b"{\"custom_id\"\n".to_vec()].concat(),
            "invalid_json_line",
            json!(2),
            Value::Null,
        ),
        (b"[1]".to_vec(), "invalid_json_line", json!(1), Value::Null),
        (jsonl(&[good(), good()]), "duplicate_custom_id", json!(2), json!("custom_id")),
        (with("custom_id", Value::Null), "missing_required_parameter", json!(2), json!("custom_id")),
        (with("custom_id", json!(5)), "invalid_type", json!(2), json!("custom_id")),
        (with("custom_id", json!("")), "invalid_value", json!(2), json!("custom_id")),
        (with("method", json!("GET")), "invalid_method", json!(2), json!("method")),
        (with("url", json!("/v1/completions")), "invalid_url", json!(2), json!("url")),
        (with("body", json!("text")), "invalid_type", json!(2), json!("body")),
        (with("body", Value::Null), "missing_required_parameter", json!(2), json!("body")),
        (b"\xff\xfe{}\n".to_vec(), "invalid_json_line", json!(1), Value::Null),
    ];
    for (content, code, line, param) in cases {
        let file = uploaded(&server, &content).await;
        let batch = server.post("/v1/batches", creation(&file)).await.json();
        let batch = until_status(&server, batch["id"].as_str().unwrap(), "failed").await;
        let error = &batch["errors"]["data"][0];
        assert_eq!(
            (&error["code"], &error["line"], &error["param"]),
            (&json!(code), &line, &param),
            "{batch}"
        );
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(batch["failed_at"], NOW);
        assert!(batch["output_file_id"].is_null() && batch["error_file_id"].is_null());
    }
}

#[tokio::test]
async fn invalid_requests_name_the_field_and_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let server = setup(dir.path(), 1 << 30).launch();
    let file = uploaded(&server, b"{}").await;
    for (field, value, part) in [
        (
            "endpoint",
            json!("/v1/embeddings"),
            "/v1/chat/completions, /v1/completions, /v1/responses, /v1/reward, got \"/v1/embeddings\"",
        ),
        ("completion_window", json!("48h"), "expected \"24h\", got \"48h\""),
        ("input_file_id", json!(7), "expected a string, got 7"),
        ("metadata", json!(["a"]), "expected an object, got an array"),
        ("output_expires_after", json!({ "anchor": "created_at", "seconds": 3600 }), "do not expire"),
    ] {
        let mut asked = creation(&file);
        asked[field] = value;
        let reply = server.post("/v1/batches", asked).await;
        assert_eq!((reply.status, reply.error().2.as_deref()), (400, Some(field)));
        assert!(reply.text().contains(&part.replace('"', "\\\"")), "{}", reply.text());
    }
    let reply = server.post("/v1/batches", merged(creation(&file), json!({ "metadata": { "a": 1 } }))).await;
    assert_eq!(reply.error().2.as_deref(), Some("metadata.a"));
    for field in ["input_file_id", "endpoint", "completion_window"] {
        let mut asked = creation(&file);
        asked.as_object_mut().unwrap().remove(field);
        assert_eq!(server.post("/v1/batches", asked).await.error().2.as_deref(), Some(field));
    }
    assert_eq!(server.post("/v1/batches", creation("file-none")).await.error(), (404, None, None));
    let (kind, body) = form("fine-tune", b"{}");
    let reply = send(server.address, "POST", "/v1/files", &[("content-type", &kind)], &body).await;
    assert_eq!(reply.error(), (400, Some("invalid_value".into()), Some("purpose".into())));
    let reply = send(server.address, "POST", "/v1/files", &[("content-type", &kind)], &body[..200]).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    let reply = server.post("/v1/files", json!({})).await;
    assert_eq!(reply.status, 415, "{}", reply.text());
    for path in ["/v1/files?limit=0", "/v1/batches?limit=101", "/v1/files?limit=x"] {
        assert_eq!(server.get(path).await.error().2.as_deref(), Some("limit"), "{path}");
    }
    assert_eq!(server.get("/v1/files?order=up").await.error().2.as_deref(), Some("order"));
    for path in ["/v1/batches/batch_none", "/v1/files/file-none", "/v1/files?after=file-none"] {
        assert_eq!(server.get(path).await.error(), (404, None, None), "{path}");
    }
    assert_eq!(server.post("/v1/batches/batch_none/cancel", json!({})).await.error(), (404, None, None));
    assert!(std::fs::read_dir(dir.path().join("uploads")).unwrap().next().is_none(), "nothing is left");
}

#[tokio::test]
async fn a_server_without_a_directory_names_the_setting() {
    let server = Setup::new().launch();
    for path in ["/v1/files", "/v1/files/x", "/v1/files/x/content", "/v1/batches", "/v1/batches/x"] {
        let reply = server.get(path).await;
        assert!(reply.status == 400 && reply.text().contains("--data-dir"), "{path}: {}", reply.text());
    }
}

#[tokio::test]
async fn the_directorys_limit_counts_files_and_the_room_for_results() {
    let dir = tempfile::tempdir().unwrap();
    let server = setup(dir.path(), 40_000).launch();
    let reply = upload(&server, &vec![b'x'; 40_000]).await;
    assert_eq!(reply.error(), (413, Some("insufficient_storage".into()), None));
    assert!(reply.text().contains("40000 bytes"), "{}", reply.text());
    let lines: Vec<Value> = (0..9).map(|i| line(&i.to_string(), "one", json!({}))).collect();
    let file = uploaded(&server, &jsonl(&lines)).await;
    let reply = server.post("/v1/batches", creation(&file)).await;
    assert_eq!(reply.error(), (413, Some("insufficient_storage".into()), None));
    // One line's answer is too long for the room that is left, which costs that line alone.
    let long = "x".repeat(300);
    let more = json!({ "logprobs": true, "top_logprobs": 20 });
    let id = created(&server, &[line("long", &long, more), line("short", "one", json!({}))]).await;
    let batch = until_status(&server, &id, "completed").await;
    assert_eq!(batch["request_counts"], json!({ "total": 2, "completed": 1, "failed": 1 }));
    let failed = &lines_of(&server, &batch["error_file_id"]).await[0];
    assert_eq!(
        (&failed["custom_id"], &failed["error"]["code"]),
        (&json!("long"), &json!("insufficient_storage"))
    );
}

/// A server whose steps wait for a message.
pub fn gated(setup: Setup) -> (TestServer, flume::Sender<()>) {
    let (executor, gate) = FakeExecutor::new(&setup.config).parrot(BOS).gated();
    (setup.launch_with(executor), gate)
}

pub fn many(count: usize) -> Vec<Value> {
    (0..count).map(|i| line(&format!("line-{i:02}"), "one", json!({}))).collect()
}

/// The `custom_id` of each result with its error's code; the output file's have none.
pub async fn ends(server: &TestServer, batch: &Value) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    for file in ["output_file_id", "error_file_id"] {
        if batch[file].is_string() {
            all.extend(lines_of(server, &batch[file]).await);
        }
    }
    let end = |line: &Value| {
        let code = line["error"]["code"].as_str().map(str::to_owned);
        (line["custom_id"].as_str().unwrap().to_owned(), code)
    };
    let mut ends: Vec<_> = all.iter().map(end).collect();
    ends.sort();
    ends
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let (server, gate) = gated(setup(dir.path(), 1 << 30));
    let id = created(&server, &many(60)).await;
    while until(&server, &id, |_| true).await["request_counts"]["completed"] == 0 {
        let _full = gate.try_send(());
    }
    let reply = server.post(&format!("/v1/batches/{id}/cancel"), json!({})).await.json();
    assert_eq!((&reply["status"], &reply["cancelling_at"]), (&json!("cancelling"), &json!(NOW)));
    let batch = until_status(&server, &id, "cancelled").await;
    let ends = ends(&server, &batch).await;
    let ids: Vec<&str> = ends.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, (0..60).map(|i| format!("line-{i:02}")).collect::<Vec<_>>(), "each line once");
    let cancelled = ends.iter().filter(|(_, code)| code.as_deref() == Some("batch_cancelled")).count();
    let done = ends.iter().filter(|(_, code)| code.is_none()).count();
    assert!(cancelled > 0 && done > 0 && cancelled + done == 60, "{ends:?}");
    assert_eq!(batch["request_counts"], json!({ "total": 60, "completed": done, "failed": cancelled }));
    drop(gate);
    let again = server.post(&format!("/v1/batches/{id}/cancel"), json!({})).await;
    assert_eq!((again.status, again.header("x-should-retry")), (409, Some("false")));
    server.until_empty().await;
}

#[tokio::test]
async fn an_expired_batch_keeps_what_was_done() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW);
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 1 << 30);
    if let Some(batches) = &mut setup.settings.batches {
        batches.clock = || CLOCK.load(Ordering::Relaxed);
    }
    let (server, gate) = gated(setup);
    let id = created(&server, &many(6)).await;
    server.until(|stats| stats.counts.batch_running > 0).await;
    CLOCK.store(NOW + 86_400, Ordering::Relaxed);
    let batch = until_status(&server, &id, "expired").await;
    assert_eq!((&batch["expired_at"], &batch["request_counts"]["failed"]), (&json!(NOW + 86_400), &json!(6)));
    drop(gate);
}

#[tokio::test]
async fn a_file_that_a_batch_uses_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (server, gate) = gated(setup(dir.path(), 1 << 30));
    let id = created(&server, &many(1)).await;
    let batch = until_status(&server, &id, "in_progress").await;
    let path = format!("/v1/files/{}", batch["input_file_id"].as_str().unwrap());
    let reply = send(server.address, "DELETE", &path, &[], b"").await;
    assert!(reply.status == 409 && reply.text().contains(&id), "{}", reply.text());
    drop(gate);
    until_status(&server, &id, "completed").await;
    assert_eq!(send(server.address, "DELETE", &path, &[], b"").await.status, 200);
}

#[tokio::test]
async fn a_drain_parks_batches_and_does_not_wait_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 1 << 30);
    setup.times.timeout = HANG_GUARD;
    let (server, gate) = gated(setup);
    let id = created(&server, &many(5)).await;
    server.until(|stats| stats.counts.batch_running > 0).await;
    server.signals.send(Signal::Interrupt).await.unwrap();
    let ended = tokio::time::timeout(HANG_GUARD / 2, server.served).await.expect("it does not wait").unwrap();
    assert_eq!(ended, Ended::Drained);
    drop(gate);
    let record = std::fs::read(dir.path().join(format!("batches/{id}.json"))).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["status"], "in_progress", "it goes on after the next start");
    for file in ["output_file_id", "error_file_id"] {
        let path = dir.path().join(format!("files/{}.jsonl", record[file].as_str().unwrap()));
        assert_eq!(std::fs::metadata(path).unwrap().len(), 0, "no line has ended");
    }
}

#[tokio::test]
async fn files_and_batches_belong_to_the_key_that_made_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 1 << 30);
    let caller = |name: &str| Caller { tenant: Tenant { name: name.into(), weight: 1 }, priority: 0 };
    setup.settings.named_keys =
        vec![("one".to_owned(), caller("key:one")), ("two".to_owned(), caller("key:two"))];
    setup.settings.api_key = Some("shared".to_owned());
    let server = setup.launch();
    let (_, body) = form("batch", &jsonl(&many(2)));
    let file = with_key(&server, "one", "POST", "/v1/files", &body).await.json()["id"].clone();
    let file = file.as_str().unwrap();
    let asked = creation(file).to_string();
    for other in ["two", "shared"] {
        for (method, path) in [
            ("GET", format!("/v1/files/{file}")),
            ("GET", format!("/v1/files/{file}/content")),
            ("DELETE", format!("/v1/files/{file}")),
        ] {
            assert_eq!(
                with_key(&server, other, method, &path, b"").await.status,
                404,
                "{other} {method} {path}"
            );
        }
        assert_eq!(with_key(&server, other, "POST", "/v1/batches", asked.as_bytes()).await.status, 404);
        assert_eq!(with_key(&server, other, "GET", "/v1/files", b"").await.json()["data"], json!([]));
    }
    let batch = with_key(&server, "one", "POST", "/v1/batches", asked.as_bytes()).await.json();
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let end = Instant::now() + HANG_GUARD;
    while with_key(&server, "one", "GET", &path, b"").await.json()["status"] != "completed" {
        assert!(Instant::now() < end, "the batch did not end");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for (method, path) in [("GET", path.clone()), ("POST", format!("{path}/cancel"))] {
        assert_eq!(with_key(&server, "two", method, &path, b"").await.status, 404);
    }
    let text = with_key(&server, "one", "GET", "/metrics", b"").await.text().to_owned();
    assert_eq!(metric(&text, "octant_key_requests_total", &["key=\"key:one\""]), 2.0, "its usage is counted");
    assert_eq!(server.get("/v1/batches").await.status, 401);
}

#[tokio::test]
async fn a_live_request_overtakes_a_batch_that_fills_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 1 << 30);
    setup.config.max_num_seqs = 1;
    setup.config.max_queue_requests = 1;
    let (server, gate) = gated(setup);
    let id = created(&server, &many(40)).await;
    server.until(|stats| stats.counts.batch_running == 1).await;
    let stats = server.engine.stats();
    assert_eq!((stats.counts.running, stats.counts.waiting), (0, 0), "gauges of live requests are 0");
    drop(gate);
    let live = server.chat("alone", json!({})).await;
    assert_eq!(live.json()["choices"][0]["message"]["content"], "alone");
    let batch = until_status(&server, &id, "completed").await;
    assert_eq!(batch["request_counts"]["completed"], 40);
}
