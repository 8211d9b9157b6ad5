//! A server process that is killed at random points while a batch runs: no line is lost or doubled.

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
use super::client::{get, post, send};
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
    let (kind, body) = form("batch", lines().as_bytes());
    let file = send(server.address, "POST", "/v1/files", &[("content-type", &kind)], &body).await.json();
    let asked =
        json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    let batch = post(server.address, "/v1/batches", &asked).await.json();
    let path = format!("/v1/batches/{}", batch["id"].as_str().expect("a batch has an id"));
    let mut random = Random::new(7);
    for _ in 0..KILLS {
        until_larger(data.path()).await;
        tokio::time::sleep(Duration::from_millis(random.bits() % 20)).await;
        server.kill();
        assert!(results(data.path()) < LINES, "the batch ended before it was killed");
        tear_results(data.path(), &mut random);
        server = Server::start(model.path(), data.path());
    }
    let end = Instant::now() + HANG_GUARD;
    let batch = loop {
        let batch = get(server.address, &path).await.json();
        if batch["status"] == "completed" {
            break batch;
        }
        assert!(Instant::now() < end, "the batch did not end: {batch}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let failed = (0..LINES).filter(|i| i % 7 == 3).count();
    let counts = json!({ "total": LINES, "completed": LINES - failed, "failed": failed });
    assert_eq!(batch["request_counts"], counts);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for file in ["output_file_id", "error_file_id"] {
        for line in text(server.address, &batch[file]).await.lines() {
            let line: Value = serde_json::from_str(line).expect("each line is a whole record");
            *seen.entry(line["custom_id"].as_str().unwrap().to_owned()).or_default() += 1;
            let good = line["response"]["status_code"] == 200;
            assert_eq!(good, file == "output_file_id", "{line}");
        }
    }
    assert_eq!(seen.len(), LINES);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
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
