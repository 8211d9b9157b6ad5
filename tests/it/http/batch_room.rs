//! The directory of files and batches never has more bytes than its limit, and every byte is counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use octant::batch::Store;
use octant::server::Signal;
use serde_json::{Value, json};

use super::batches::{creation, form, jsonl, setup, until, uploaded};
use super::client::send;
use super::test_server::{TestServer, chat_body, merged};
use crate::HANG_GUARD;

const LIMIT: u64 = 1_000_000;

/// Bytes of all files of the directory. Contents leave the last of the folders, so none is counted twice.
fn bytes(directory: &Path) -> u64 {
    let folders =
        ["files", "batches", "uploads"].map(|name| std::fs::read_dir(directory.join(name)).unwrap());
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok().map(|entry| entry.path());
        path.and_then(|path| path.metadata().ok()).map_or(0, |file| file.len())
    };
    folders.into_iter().map(|folder| folder.map(size).sum::<u64>()).sum()
}

/// Looks at the directory all the time. Returns the most bytes that it had.
struct Watch {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Watch {
    fn begin(directory: PathBuf) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ended);
        let look = move || {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = most.max(bytes(&directory));
                std::thread::sleep(Duration::from_micros(200));
            }
            most.max(bytes(&directory))
        };
        Self { ended, thread: std::thread::spawn(look) }
    }

    fn end(self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The largest labels that a batch may have.
fn labels() -> Value {
    let label =
        |i: u32| (char::from_u32(0x1f600 + i).unwrap().to_string().repeat(64), "😀".repeat(512).into());
    Value::Object((0..16).map(label).collect())
}

fn line(custom_id: &str, text: &str) -> Value {
    let body = chat_body(text, json!({ "logprobs": true, "top_logprobs": 5 }));
    json!({ "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body })
}

/// Creates batches until there is no room, and waits for the end of each. Returns how many there were.
async fn fill(server: &TestServer, file: &str) -> usize {
    for count in 0.. {
        let asked = merged(creation(file), json!({ "metadata": labels() }));
        let reply = server.post("/v1/batches", asked).await;
        if reply.status == 413 {
            return count;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        let id = reply.json()["id"].as_str().unwrap().to_owned();
        until(server, &id, |batch| ["completed", "failed"].map(Value::from).contains(&batch["status"])).await;
    }
    unreachable!("the directory has a limit")
}

/// Bytes that the server counts, from its refusal of a batch whose lines need more than all the room.
async fn counted(server: &TestServer, large: &str) -> u64 {
    let reply = server.post("/v1/batches", creation(large)).await;
    assert_eq!(reply.error(), (413, Some("insufficient_storage".into()), None), "{}", reply.text());
    let text = reply.text().split(" of at most ").next().unwrap().to_owned();
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_directory_stays_below_its_limit_and_every_byte_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let watch = Watch::begin({
        let server_made_it = setup(dir.path(), LIMIT);
        drop(server_made_it);
        dir.path().to_owned()
    });
    let server = setup(dir.path(), LIMIT).launch();
    let large = uploaded(&server, &vec![b'\n'; 300]).await;
    assert_eq!(counted(&server, &large).await, bytes(dir.path()));
    // Each batch of these lines ends with a hundred faults, with names that are longest as JSON.
    let long = "\u{1}".repeat(120);
    let twice: Vec<Value> = (0..101).map(|_| line(&long, "one")).collect();
    let faulty = uploaded(&server, &jsonl(&twice)).await;
    assert!(fill(&server, &faulty).await >= 2, "there is room for some");
    assert_eq!(counted(&server, &large).await, bytes(dir.path()));
    let good: Vec<Value> = (0..3).map(|i| line(&i.to_string(), &"x".repeat(i * 20))).collect();
    let good = uploaded(&server, &jsonl(&good)).await;
    assert!(fill(&server, &good).await >= 2, "there is room for some");
    // As many files with long names as there is room for.
    let (kind, body) = form("batch", b"x");
    let body = String::from_utf8(body).unwrap().replace("put.jsonl", &"ü".repeat(900));
    let headers = [("content-type", kind.as_str())];
    while send(server.address, "POST", "/v1/files", &headers, body.as_bytes()).await.status == 200 {}
    let full = bytes(dir.path());
    assert_eq!(counted(&server, &large).await, full);
    assert!(full > LIMIT * 9 / 10, "{full} bytes of {LIMIT} are used");
    let server = restarted(server, dir.path()).await;
    assert_eq!(counted(&server, &large).await, full, "after a restart");
    let files = server.get("/v1/files?limit=10000").await.json()["data"].as_array().unwrap().clone();
    for file in files {
        let id = file["id"].as_str().unwrap().to_owned();
        if id != large {
            let path = format!("/v1/files/{id}");
            assert_eq!(send(server.address, "DELETE", &path, &[], b"").await.status, 200);
        }
    }
    assert_eq!(counted(&server, &large).await, bytes(dir.path()));
    let most = watch.end();
    assert!(most >= full && most <= LIMIT, "{most} bytes of at most {LIMIT}");
}

/// Ends a server and starts another in its directory.
async fn restarted(server: TestServer, directory: &Path) -> TestServer {
    server.signals.send(Signal::Interrupt).await.unwrap();
    tokio::time::timeout(HANG_GUARD, server.served).await.expect("it ends").unwrap();
    let end = Instant::now() + HANG_GUARD;
    while Store::open(directory, LIMIT).is_err() {
        assert!(Instant::now() < end, "the directory is not free");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    setup(directory, LIMIT).launch()
}

#[test]
fn half_written_records_are_removed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), LIMIT).unwrap());
    let left = ["files/file-1.tmp", "files/file-2.jsonl", "batches/batch_1.tmp", "uploads/file-3"];
    left.iter().for_each(|name| std::fs::write(dir.path().join(name), b"{").unwrap());
    drop(Store::open(dir.path(), LIMIT).unwrap());
    assert_eq!(left.map(|name| dir.path().join(name).exists()), [false; 4]);
}
