//! Lines of batches beside live requests, and a batch that stops the server again and again.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octant::batch::Store;
use octant::generation::CpuWork;
use octant::server::Signal;
use serde_json::{Value, json};

use super::batches::{
    created, creation, ends, form, gated, jsonl, lines_of, many, setup, until, until_status, uploaded,
};
use super::client::send;
use super::test_server::merged;
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
