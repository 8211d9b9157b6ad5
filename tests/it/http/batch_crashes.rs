//! A server process that is killed while a file arrives, while a batch is validated, runs, is cancelled or
//! ends: no line is lost or doubled.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use octant::batch::Store;
use octant::random::Random;
use serde_json::{Value, json};

use super::batches::form;
use super::client::{Connection, Reply, get, post, send};
use crate::HANG_GUARD;
use crate::simulation::binary::model;

const INSTRUCT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");
const LINES: usize = 300;
/// Processes that are killed; the one after them may finish.
const KILLS: usize = 6;

/// A running server, which is killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(model: &Path, data: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_octant"))
            .args(["serve", "--model", &model.to_string_lossy(), "--served-model-name", "m", "--port", "0"])
            .args(["--device", "simulate", "--simulate-config", INSTRUCT, "--simulate-pace", "0.1"])
            .args(["--data-dir", &data.to_string_lossy(), "--max-batch-lines", "3"])
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut before = Vec::new();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            before.push(line.clone());
            line.split_once("http://").and_then(|(_, at)| at.parse().ok())
        });
        // The process would wait for a reader of its log.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.unwrap_or_else(|| panic!("the server does not start: {before:#?}"));
        Self { process, address }
    }

    /// Sends SIGKILL and waits for the end.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _waited = self.process.wait();
    }
}

/// Number of whole records on disk.
fn results(data: &Path) -> usize {
    let files = std::fs::read_dir(data.join("files")).unwrap();
    let contents = files.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    contents.map(|text| text.matches("{\"id\":\"batch_req_").count()).sum()
}

/// Waits until more results are on disk.
async fn until_larger(data: &Path) {
    let size = || -> u64 {
        let files = std::fs::read_dir(data.join("files")).unwrap();
        files.map(|entry| entry.unwrap().metadata().map_or(0, |file| file.len())).sum()
    };
    let (end, before) = (Instant::now() + HANG_GUARD, size());
    while size() <= before {
        assert!(Instant::now() < end, "no line ended");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lines of which every seventh is invalid.
fn lines() -> String {
    let line = |i: usize| {
        let temperature = if i % 7 == 3 { 9 } else { 1 };
        let body =
            json!({ "model": "m", "prompt": "ab", "max_tokens": 1 + i % 5, "temperature": temperature });
        let line = json!({ "custom_id": format!("line-{i}"), "method": "POST", "url": "/v1/completions",
                           "body": body });
        format!("{line}\n")
    };
    (0..LINES).map(line).collect()
}

async fn text(address: SocketAddr, file: &Value) -> String {
    let path = format!("/v1/files/{}/content", file.as_str().expect("there is a file"));
    let reply = get(address, &path).await;
    assert!(reply.status == 200 && reply.complete);
    reply.text().to_owned()
}

#[tokio::test]
async fn a_batch_survives_kills_with_every_line_once() {
    let (model, data) = (model(), tempfile::tempdir().unwrap());
    let mut server = Server::start(model.path(), data.path());
    let file = uploaded(&server, lines().as_bytes()).await.json()["id"].clone();
    let id = created(&server, &file).await;
    let mut random = Random::new(7);
    for _ in 0..KILLS {
        until_larger(data.path()).await;
        tokio::time::sleep(Duration::from_millis(random.bits() % 20)).await;
        server.kill();
        assert!(results(data.path()) < LINES, "the batch ended before it was killed");
        tear_results(data.path(), &mut random);
        server = Server::start(model.path(), data.path());
    }
    let batch = until_status(&server, &id, "completed").await;
    let failed = (0..LINES).filter(|i| i % 7 == 3).count();
    let counts = json!({ "total": LINES, "completed": LINES - failed, "failed": failed });
    assert_eq!(batch["request_counts"], counts);
    every_line_has_one_result(server.address, &batch, LINES).await;
}

/// Asserts that each of `lines` lines has one whole record, in the file of its kind.
async fn every_line_has_one_result(address: SocketAddr, batch: &Value, lines: usize) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let files = ["output_file_id", "error_file_id"];
    for file in files.into_iter().filter(|file| batch[file].is_string()) {
        for line in text(address, &batch[file]).await.lines() {
            let line: Value = serde_json::from_str(line).expect("each line is a whole record");
            *seen.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
            let good = line["response"]["status_code"] == 200;
            assert_eq!(good, file == "output_file_id", "{line}");
        }
    }
    assert_eq!(seen.len(), lines);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

async fn uploaded(server: &Server, content: &[u8]) -> Reply {
    let (kind, body) = form("batch", content);
    send(server.address, "POST", "/v1/files", &[("content-type", &kind)], &body).await
}

/// Creates a batch of a file's lines and returns its id.
async fn created(server: &Server, file: &Value) -> String {
    let asked = json!({ "input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h" });
    let batch = post(server.address, "/v1/batches", &asked).await;
    batch.json()["id"].as_str().unwrap_or_else(|| panic!("{}", batch.text())).to_owned()
}

/// Waits until a batch has this status.
async fn until_status(server: &Server, id: &str, status: &str) -> Value {
    let end = Instant::now() + HANG_GUARD;
    loop {
        let batch = get(server.address, &format!("/v1/batches/{id}")).await.json();
        if batch["status"] == status {
            return batch;
        }
        assert!(Instant::now() < end, "the batch is not {status}: {batch}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The record of a batch on disk.
fn record(data: &Path, id: &str) -> Value {
    let bytes = std::fs::read(data.join(format!("batches/{id}.json"))).unwrap();
    serde_json::from_slice(&bytes).expect("a record is whole at any time")
}

/// Waits until a batch's record on disk has this status, or a later one.
async fn until_recorded(data: &Path, id: &str, status: &str, later: &str) {
    let end = Instant::now() + HANG_GUARD;
    while ![status, later].map(Value::from).contains(&record(data, id)["status"]) {
        assert!(Instant::now() < end, "the record has no status {status}");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// Attempts at a kill within a state that is left soon; one of them must meet it.
const ATTEMPTS: usize = 20;

#[tokio::test]
async fn a_kill_during_an_upload_leaves_no_file_and_no_bytes() {
    let (model, data) = (model(), tempfile::tempdir().unwrap());
    let mut server = Server::start(model.path(), data.path());
    // Bytes reach the disk in pieces of 256 KiB.
    let content = lines().repeat(20);
    let (kind, body) = form("batch", content.as_bytes());
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = Connection::open(server.address).await;
    connection.write(&[head.as_bytes(), &body[..body.len() / 2]].concat()).await.unwrap();
    let uploads = || std::fs::read_dir(data.path().join("uploads")).unwrap();
    let arrived = || uploads().any(|file| file.unwrap().metadata().is_ok_and(|file| file.len() > 0));
    let end = Instant::now() + HANG_GUARD;
    while !arrived() {
        assert!(Instant::now() < end, "nothing arrives");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.kill();
    assert!(arrived(), "the kill leaves half a file");
    server = Server::start(model.path(), data.path());
    assert_eq!((uploads().count(), results(data.path())), (0, 0));
    assert_eq!(get(server.address, "/v1/files").await.json()["data"], json!([]));
    let file = uploaded(&server, content.as_bytes()).await.json();
    assert_eq!(file["bytes"], content.len());
    assert!(text(server.address, &file["id"]).await == content);
}

#[tokio::test]
async fn a_batch_that_is_killed_while_it_is_validated_is_validated_again() {
    const MANY: usize = 20_000;
    let (model, data) = (model(), tempfile::tempdir().unwrap());
    let mut server = Server::start(model.path(), data.path());
    let line = |i: usize| {
        format!("{{\"custom_id\":\"{i}\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{{}}}}\n")
    };
    // The fault is in the last line, so that the check reads all of them.
    let content = (0..MANY).map(line).chain(["{}\n".to_owned()]).collect::<String>();
    let file = uploaded(&server, content.as_bytes()).await.json()["id"].clone();
    let (mut ids, mut met) = (Vec::new(), 0);
    while met == 0 {
        assert!(ids.len() < ATTEMPTS, "no kill met a batch that was validated");
        let id = created(&server, &file).await;
        // The check begins once the files for results exist.
        let output = record(data.path(), &id)["output_file_id"].as_str().unwrap().to_owned();
        let output = data.path().join(format!("files/{output}.jsonl"));
        let end = Instant::now() + HANG_GUARD;
        while record(data.path(), &id)["status"] == "validating" && !output.exists() {
            assert!(Instant::now() < end, "the check does not begin");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        server.kill();
        met += usize::from(record(data.path(), &id)["status"] == "validating");
        server = Server::start(model.path(), data.path());
        ids.push(id);
    }
    for id in &ids {
        let batch = until_status(&server, id, "failed").await;
        let errors = batch["errors"]["data"].as_array().unwrap();
        assert_eq!((errors.len(), &errors[0]["line"]), (1, &json!(MANY + 1)), "{errors:?}");
        assert!(batch["output_file_id"].is_null() && batch["error_file_id"].is_null(), "{batch}");
    }
    let files = std::fs::read_dir(data.path().join("files")).unwrap().count();
    assert_eq!(files, 2, "the input's content and record are left");
}

#[tokio::test]
async fn a_batch_that_is_killed_while_it_is_cancelled_has_every_line_once() {
    const MANY: usize = 3000;
    let (model, data) = (model(), tempfile::tempdir().unwrap());
    let mut server = Server::start(model.path(), data.path());
    let mut random = Random::new(5);
    let content = std::iter::repeat_with(lines).take(MANY / LINES).enumerate();
    let content: String =
        content.map(|(i, lines)| lines.replace("\"line-", &format!("\"line-{i}-"))).collect();
    let file = uploaded(&server, content.as_bytes()).await.json()["id"].clone();
    let (mut ids, mut met) = (Vec::new(), 0);
    while met == 0 {
        assert!(ids.len() < ATTEMPTS, "no kill met a batch that was cancelled");
        let id = created(&server, &file).await;
        until_larger(data.path()).await;
        let path = format!("/v1/batches/{id}/cancel");
        let recorded = until_recorded(data.path(), &id, "cancelling", "cancelled");
        let cancelled = send(server.address, "POST", &path, &[], b"");
        tokio::select! {
            () = recorded => {}
            reply = cancelled => assert_eq!(reply.status, 200, "{}", reply.text()),
        }
        server.kill();
        met += usize::from(record(data.path(), &id)["status"] == "cancelling");
        tear_results(data.path(), &mut random);
        server = Server::start(model.path(), data.path());
        ids.push(id);
    }
    for id in &ids {
        let batch = until_status(&server, id, "cancelled").await;
        let counts = &batch["request_counts"];
        let (done, failed) = (counts["completed"].as_u64().unwrap(), counts["failed"].as_u64().unwrap());
        assert_eq!((&counts["total"], done + failed), (&json!(MANY), MANY as u64), "{counts}");
        every_line_has_one_result(server.address, &batch, MANY).await;
    }
}

#[tokio::test]
async fn a_batch_that_is_killed_while_its_results_become_files_completes() {
    let (model, data) = (model(), tempfile::tempdir().unwrap());
    let mut server = Server::start(model.path(), data.path());
    let file = uploaded(&server, lines().as_bytes()).await.json()["id"].clone();
    let id = created(&server, &file).await;
    let before = until_status(&server, &id, "completed").await;
    server.kill();
    // The disk is as it was after one of the two files had its record.
    let mut finalizing = record(data.path(), &id);
    finalizing["status"] = json!("finalizing");
    (finalizing["has_output"], finalizing["has_errors"]) = (json!(false), json!(false));
    std::fs::write(data.path().join(format!("batches/{id}.json")), finalizing.to_string()).unwrap();
    let errors = before["error_file_id"].as_str().unwrap();
    std::fs::remove_file(data.path().join(format!("files/{errors}.json"))).unwrap();
    server = Server::start(model.path(), data.path());
    let after = until_status(&server, &id, "completed").await;
    for field in ["output_file_id", "error_file_id", "request_counts"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    every_line_has_one_result(server.address, &after, LINES).await;
}

#[test]
fn a_directory_is_used_by_one_process_at_a_time_and_damage_is_named() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(data.path(), 1 << 20).unwrap();
    let error = Store::open(data.path(), 1 << 20).unwrap_err().to_string();
    assert!(error.contains("another process") && error.contains("lock"), "{error}");
    drop(store);
    let record = data.path().join("batches/batch_1.json");
    std::fs::write(&record, b"{").unwrap();
    let error = Store::open(data.path(), 1 << 20).unwrap_err().to_string();
    assert!(error.contains("batch_1.json is damaged"), "{error}");
}

/// Cuts the last record of a result file in two, sometimes: a kill within a write or a loss of power does so.
fn tear_results(data: &Path, random: &mut Random) {
    for entry in std::fs::read_dir(data.join("files")).unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        let is_result = content.starts_with(b"{\"id\":\"batch_req_");
        if is_result && random.bits().is_multiple_of(2) {
            let cut = content.len() - 1 - (random.bits() % 20) as usize;
            std::fs::write(&path, &content[..cut]).unwrap();
        }
    }
}
