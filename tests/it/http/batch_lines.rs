//! Lines of batches beside live requests, and a batch that stops the server again and again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octant::batch::Store;
use octant::generation::CpuWork;
use octant::server::Signal;
use serde_json::{Value, json};

use super::batches::{
    created, creation, ends, form, gated, jsonl, lines_of, many, setup, until, until_status, uploaded,
};
use super::client::send;
use super::test_server::{TestServer, merged};
use crate::HANG_GUARD;
use crate::device::model::{fixture, runner};

#[tokio::test]
async fn a_live_stream_beside_a_batch_keeps_its_bits() {
    let model = fixture("nemotron");
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 1 << 30);
    setup.config.vocab_size = 384;
    setup.config.max_model_len = 256;
    let runner = runner(&model, &setup.config);
    let server = setup.launch_with(runner);
    let body = |seed: usize, tokens: usize| {
        let prompt: Vec<usize> = (0..100).map(|i| 3 + (i * 37 + seed * 101) % 250).collect();
        json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 5, "ignore_eos": true,
                "return_token_ids": true })
    };
    // The answers must not come from blocks that another request computed.
    let salted = |salt: &str| merged(body(0, 40), json!({ "cache_salt": salt }));
    let alone = server.post("/v1/completions", salted("alone")).await;
    assert_eq!(alone.status, 200, "{}", alone.text());
    let alone = alone.json()["choices"].clone();
    assert_eq!(alone[0]["logprobs"]["token_logprobs"].as_array().unwrap().len(), 40);
    let url = "/v1/completions";
    let line = |i: usize, body: Value| {
        let custom_id = format!("{i:03}");
        json!({ "custom_id": custom_id, "method": "POST", "url": url, "body": body })
    };
    let mut lines = vec![line(0, salted("batch"))];
    lines.extend((1..200).map(|i| line(i, body(i, 120))));
    let file = uploaded(&server, &jsonl(&lines)).await;
    let mut asked = creation(&file);
    asked["endpoint"] = json!(url);
    let id = server.post("/v1/batches", asked).await.json()["id"].as_str().unwrap().to_owned();
    server.until(|stats| stats.counts.batch_running > 1).await;
    for salt in ["first", "second"] {
        let beside = server.post("/v1/completions", salted(salt)).await.json();
        assert_eq!(beside["choices"], alone, "{salt}");
    }
    let batch = until(&server, &id, |batch| batch["request_counts"]["completed"] != 0).await;
    assert_eq!(batch["status"], "in_progress", "the batch ran all the time");
    let cancel = format!("/v1/batches/{id}/cancel");
    assert_eq!(send(server.address, "POST", &cancel, &[], b"").await.status, 200);
    let batch = until_status(&server, &id, "cancelled").await;
    let results = lines_of(&server, &batch["output_file_id"]).await;
    let first = results.iter().find(|line| line["custom_id"] == "000").expect("the first line ends first");
    assert_eq!(first["response"]["body"]["choices"], alone);
}

#[tokio::test]
async fn texts_of_batches_that_take_long_delay_no_live_text() {
    const PERMITS: usize = 3;
    let work = Arc::new(CpuWork::new(PERMITS));
    let (release, wait) = flume::bounded::<()>(0);
    let (begun, begins) = flume::unbounded();
    let texts: Vec<_> = (0..10)
        .map(|i| {
            let (work, wait, begun) = (Arc::clone(&work), wait.clone(), begun.clone());
            tokio::spawn(async move {
                let text = move || {
                    begun.send(i).unwrap();
                    wait.recv().unwrap_err();
                };
                work.run(true, text).await
            })
        })
        .collect();
    for _ in 0..PERMITS.div_ceil(2) {
        tokio::time::timeout(HANG_GUARD, begins.recv_async()).await.unwrap().unwrap();
    }
    for i in 0..2 * PERMITS {
        let live = tokio::time::timeout(HANG_GUARD, work.run(false, move || i));
        assert_eq!(live.await.expect("a live text does not wait"), Ok(i));
    }
    assert!(begins.is_empty(), "at most half as many texts of batches as of live requests");
    drop(release);
    for text in texts {
        assert_eq!(text.await.unwrap(), Ok(()));
    }
}

/// Waits until no server holds a directory.
async fn until_free(directory: &Path) {
    let end = Instant::now() + HANG_GUARD;
    while Store::open(directory, 1 << 30).is_err() {
        assert!(Instant::now() < end, "the directory is not free");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Changes the record of a batch, as if the server had been killed `stalled` times in a row.
fn killed(directory: &Path, id: &str, stalled: u32) {
    let path = directory.join(format!("batches/{id}.json"));
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&record["status"], &record["stalled_starts"]), (&json!("in_progress"), &json!(0)));
    record["stalled_starts"] = json!(stalled);
    std::fs::write(path, record.to_string()).unwrap();
}

#[tokio::test]
async fn a_batch_that_stops_the_server_eleven_times_in_a_row_is_given_up() {
    // This start is one more that found no new result.
    for (stalled, runs) in [(9, true), (10, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (server, _gate) = gated(setup(dir.path(), 1 << 30));
        let id = created(&server, &many(3)).await;
        server.until(|stats| stats.counts.batch_running > 0).await;
        server.signals.send(Signal::Interrupt).await.unwrap();
        tokio::time::timeout(HANG_GUARD, server.served).await.expect("it ends").unwrap();
        until_free(dir.path()).await;
        killed(dir.path(), &id, stalled);
        let server = setup(dir.path(), 1 << 30).launch();
        let batch = until_status(&server, &id, if runs { "completed" } else { "expired" }).await;
        let codes: Vec<_> = ends(&server, &batch).await.into_iter().map(|(_, code)| code).collect();
        let code = (!runs).then(|| "batch_stalled".to_owned());
        assert_eq!(codes, vec![code; 3], "{stalled}");
        let healthy = server.chat("alive", json!({})).await;
        assert_eq!(healthy.status, 200);
    }
}

#[tokio::test]
async fn unknown_fields_of_batches_and_uploads_are_named_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    for strict in [false, true] {
        let path = dir.path().join(if strict { "strict" } else { "lenient" });
        let mut setup = setup(&path, 1 << 30);
        setup.settings.reject_unknown_fields = strict;
        let server = setup.launch();
        let (kind, plain) = form("batch", &jsonl(&many(1)));
        let headers = [("content-type", kind.as_str())];
        let file = send(server.address, "POST", "/v1/files", &headers, &plain).await;
        let file_id = file.json()["id"].as_str().unwrap().to_owned();
        let more = "--limit\r\ncontent-disposition: form-data; name=\"colour\"\r\n\r\nred\r\n";
        let coloured = [more.as_bytes(), &plain].concat();
        let upload = send(server.address, "POST", "/v1/files", &headers, &coloured).await;
        let asked = merged(creation(&file_id), json!({ "colour": "red", "nothing": null }));
        let batch = server.post("/v1/batches", asked).await;
        for reply in [&upload, &batch] {
            if strict {
                assert_eq!(reply.error(), (400, None, Some("colour".into())));
            } else {
                assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, Some("colour")));
            }
        }
        assert_eq!(file.header("x-ignored-fields"), None);
        let asked = merged(creation(&file_id), json!({ "response_format": { "type": "json_object" } }));
        let refused = server.post("/v1/batches", asked).await;
        assert_eq!(refused.error(), (400, None, Some("response_format".into())));
    }
}

/// Runs a batch of these lines, each a custom_id and a body, to its end. Returns the results.
async fn results(server: &TestServer, url: &str, bodies: &[(&str, Value)]) -> Vec<Value> {
    let line =
        |(id, body): &(&str, Value)| json!({ "custom_id": id, "method": "POST", "url": url, "body": body });
    let lines: Vec<Value> = bodies.iter().map(line).collect();
    let mut asked = creation(&uploaded(server, &jsonl(&lines)).await);
    asked["endpoint"] = json!(url);
    let batch = server.post("/v1/batches", asked).await;
    assert_eq!(batch.status, 200, "{}", batch.text());
    let batch = until_status(server, batch.json()["id"].as_str().unwrap(), "completed").await;
    let mut results = Vec::new();
    for file in ["output_file_id", "error_file_id"] {
        if batch[file].is_string() {
            results.extend(lines_of(server, &batch[file]).await);
        }
    }
    results.sort_by_key(|result| result["custom_id"].to_string());
    results
}

#[tokio::test]
async fn unknown_fields_of_lines_are_named_or_refused_as_those_of_live_requests_are() {
    let dir = tempfile::tempdir().unwrap();
    for strict in [false, true] {
        let path = dir.path().join(if strict { "strict" } else { "lenient" });
        let mut setup = setup(&path, 1 << 30);
        setup.settings.reject_unknown_fields = strict;
        let server = setup.launch();
        let plain = json!({ "messages": [{ "role": "user", "content": "a" }] });
        let message = json!({ "messages": [{ "role": "user", "content": "a", "shade": 1 }] });
        let bodies = [
            ("a", plain.clone()),
            ("b", merged(plain.clone(), json!({ "colour": "red", "größe, x": 1, "store": true }))),
            ("c", message),
            ("d", merged(plain, json!({ "guided_thing": "a" }))),
        ];
        let results = results(&server, "/v1/chat/completions", &bodies).await;
        for (result, (id, body)) in results.iter().zip(bodies) {
            let live = server.post("/v1/chat/completions", body).await;
            let response = &result["response"];
            assert_eq!((&result["custom_id"], &response["status_code"]), (&json!(id), &json!(live.status)));
            let param = &response["body"]["error"]["param"];
            if live.status == 200 {
                let names: Option<Vec<&str>> =
                    live.header("x-ignored-fields").map(|names| names.split(',').collect());
                assert_eq!(response.get("ignored_fields"), names.map(|names| json!(names)).as_ref(), "{id}");
                assert_eq!(id == "a", response.get("ignored_fields").is_none(), "{result}");
            } else {
                assert_eq!((Some(param), strict || id == "d"), (live.json()["error"].get("param"), true));
            }
        }
    }
}

#[tokio::test]
async fn responses_run_in_batches_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = setup(dir.path(), 1 << 30).launch();
    let bodies = [
        ("a", json!({ "input": "hello", "instructions": "be ", "metadata": { "x": "y" }, "odd": 1 })),
        ("b", json!({ "input": "abcdef", "max_output_tokens": 3 })),
        ("c", json!({ "input": "x", "previous_response_id": "resp_1" })),
        ("d", json!({ "input": "x", "stream": true })),
        ("e", json!({ "messages": [] })),
    ];
    let results = results(&server, "/v1/responses", &bodies).await;
    let bodies: Vec<&Value> = results.iter().map(|result| &result["response"]["body"]).collect();
    for (body, text, status) in [(bodies[0], "be hello", "completed"), (bodies[1], "abc", "incomplete")] {
        assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!(status)));
        assert_eq!(body["output"][0]["content"][0]["text"], text);
        assert!(body["id"].as_str().unwrap().starts_with("resp_") && body["created_at"] != 0, "{body}");
    }
    assert_eq!(bodies[0]["metadata"]["x"], "y");
    assert_eq!(results[0]["response"]["ignored_fields"], json!(["odd"]));
    let params: Vec<&Value> = bodies[2..].iter().map(|body| &body["error"]["param"]).collect();
    assert_eq!(params, ["previous_response_id", "stream", "messages"]);
}

/// Unix time of the next test's server in seconds.
static LATER: AtomicU64 = AtomicU64::new(0);

#[tokio::test]
async fn the_record_of_a_batch_is_removed_thirty_days_after_its_end_if_its_results_are() {
    const DAY: u64 = 24 * 3600;
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 1 << 30);
    if let Some(batches) = &mut setup.settings.batches {
        batches.clock = || LATER.load(Ordering::Relaxed);
    }
    let server = setup.launch();
    let mut deleted = Vec::new();
    let ids = [created(&server, &many(1)).await, created(&server, &many(1)).await];
    for id in &ids {
        let batch = until_status(&server, id, "completed").await;
        deleted.push(format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap()));
    }
    let failed = created(&server, &[json!({})]).await;
    until_status(&server, &failed, "failed").await;
    let of_first = async || send(server.address, "DELETE", &deleted[0], &[], b"").await.status;
    assert_eq!(of_first().await, 200);
    let status = async |id: &str| server.get(&format!("/v1/batches/{id}")).await.status;
    for (time, first, of_failed) in [(30 * DAY - 1, 200, 200), (30 * DAY, 404, 404)] {
        LATER.store(time, Ordering::Relaxed);
        created(&server, &many(1)).await;
        let found = (status(&ids[0]).await, status(&ids[1]).await, status(&failed).await);
        assert_eq!(found, (first, 200, of_failed), "{time}");
        let on_disk = dir.path().join(format!("batches/{}.json", ids[0])).exists();
        assert_eq!(on_disk, first == 200);
    }
    let list = server.get("/v1/batches").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn of_batches_without_results_only_the_newest_thousand_of_each_owner_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let launched = setup(dir.path(), 1 << 30).launch();
    let failed = created(&launched, &[json!({})]).await;
    until_status(&launched, &failed, "failed").await;
    launched.signals.send(Signal::Interrupt).await.unwrap();
    tokio::time::timeout(HANG_GUARD, launched.served).await.expect("it ends").unwrap();
    until_free(dir.path()).await;
    let path = |id: &str| dir.path().join(format!("batches/{id}.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(path(&failed)).unwrap()).unwrap();
    let add = |id: String, owner: &str, order: u64| {
        let copy = merged(record.clone(), json!({ "id": id, "owner": owner, "order": order }));
        std::fs::write(path(&id), copy.to_string()).unwrap();
    };
    // The older, the smaller the order: batch_0 is the oldest, and the failed one the newest.
    (0..1009).for_each(|i| add(format!("batch_{i}"), record["owner"].as_str().unwrap(), 10 + i));
    (0..9).for_each(|i| add(format!("batch_other_{i}"), "key:other", i));
    let before = |store: &Path| std::fs::read_dir(store.join("batches")).unwrap().count();
    assert_eq!(before(dir.path()), 1019);
    let server = setup(dir.path(), 1 << 30).launch();
    let new = created(&server, &many(1)).await;
    assert_eq!(before(dir.path()), 1000 + 9 + 1);
    for (id, kept) in
        [("batch_9", false), ("batch_10", true), ("batch_other_0", true), (&*failed, true), (&*new, true)]
    {
        assert_eq!(path(id).exists(), kept, "{id}");
    }
    assert_eq!(server.get("/v1/batches/batch_9").await.error(), (404, None, None));
    assert_eq!(server.get("/v1/batches/batch_10").await.status, 200);
}
