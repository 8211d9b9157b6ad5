//! Models by name, from a local server that speaks the hub's paths, by the real binary.

mod faults;
mod names;
mod test_hub;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use safetensors::tensor::{SafeTensors, serialize};
use serde_json::json;
use test_hub::{COMMIT, Host, TestHub};

use crate::HANG_GUARD;
use crate::http::client;

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

/// A hub with the model org/tiny in two shards, and the home directory of a user.
struct Setup {
    hub: TestHub,
    home: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let hub = TestHub::start();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let golden = data.join("golden/nemotron");
        hub.add("config.json", fs::read(golden.join("config.json")).unwrap());
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            hub.add(name, fs::read(data.join("text/byte_level").join(name)).unwrap());
        }
        for (name, contents) in [
            ("generation_config.json", "{}"),
            (".gitattributes", "x"),
            ("README.md", "x"),
            ("pytorch_model.bin", "a pickle"),
            ("original/model.safetensors", "another form"),
        ] {
            hub.add(name, contents.into());
        }
        let weights = fs::read(golden.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&weights).unwrap();
        let mut shards = BTreeMap::from([(FIRST, Vec::new()), (SECOND, Vec::new())]);
        let mut weight_map = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let shard = if name.contains("layers.1") { SECOND } else { FIRST };
            shards.get_mut(shard).unwrap().push((name, view));
            weight_map.insert(name, shard);
        }
        for (shard, views) in shards {
            hub.add(shard, serialize(views, None).unwrap());
        }
        hub.add(INDEX, json!({ "metadata": {}, "weight_map": weight_map }).to_string().into());
        Self { hub, home: tempfile::tempdir().unwrap() }
    }

    /// `octant` with these arguments and only this environment.
    fn command(&self, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command.args(args).env_clear().current_dir(self.home.path()).env("HOME", self.home.path());
        command.env("HF_ENDPOINT", format!("http://{}", self.hub.address)).envs(env.iter().copied());
        command
    }

    /// Downloads org/tiny, or fails.
    fn download(&self, env: &[(&str, &str)]) -> Output {
        let out = self.home.path().join("out");
        let _absent_at_first = fs::remove_dir_all(&out);
        self.command(&["quantize", "org/tiny", out.to_str().unwrap()], env).output().unwrap()
    }

    /// The error of a download with status 1.
    fn refused(&self, env: &[(&str, &str)]) -> String {
        error_of(&self.download(env), 1)
    }

    /// The model's part of the cache.
    fn cache(&self) -> PathBuf {
        self.home.path().join(".cache/huggingface/hub/models--org--tiny")
    }

    fn partial(&self, name: &str) -> PathBuf {
        self.cache().join("blobs").join(format!("{}.incomplete", self.hub.sha256(name)))
    }

    /// Checks that the snapshot has the hub's files, each a link to a blob.
    fn check_snapshot(&self) {
        let snapshot = self.cache().join("snapshots").join(COMMIT);
        let mut found: Vec<String> = fs::read_dir(&snapshot)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        let expected = [
            "config.json",
            "generation_config.json",
            FIRST,
            SECOND,
            INDEX,
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        assert_eq!(found, expected);
        for name in expected {
            assert!(fs::read(snapshot.join(name)).unwrap() == self.hub.bytes(name), "{name}");
            let link = fs::read_link(snapshot.join(name)).unwrap();
            assert!(link.starts_with("../../blobs"), "{name}: {}", link.display());
        }
        let link = fs::read_link(snapshot.join(FIRST)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(self.hub.sha256(FIRST)));
        let blobs = fs::read_dir(self.cache().join("blobs")).unwrap();
        let left = blobs
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".incomplete"));
        assert_eq!(left.count(), 0);
        assert_eq!(fs::read_to_string(self.cache().join("refs/main")).unwrap(), COMMIT);
    }
}

/// Standard error of a run that ends with this status, without the log's lines before an error.
fn error_of(output: &Output, status: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{text}");
    let error = text.trim_end().lines().last().unwrap_or_default();
    assert!(!error.contains("os error"), "{error}");
    error.strip_prefix("error: ").unwrap_or(error).to_owned()
}

fn succeeds(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// A process whose standard error is read line by line. It is killed at the end.
struct Process {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads lines up to one with this part.
    fn line_with(&mut self, part: &str) -> String {
        let (mut line, mut all) = (String::new(), String::new());
        while self.log.read_line(&mut line).unwrap() > 0 {
            if line.contains(part) {
                return line;
            }
            all.push_str(&line);
            line.clear();
        }
        panic!("the log ended without `{part}`:\n{all}")
    }

    fn end(mut self) -> (i32, String) {
        let mut text = String::new();
        self.log.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code().unwrap(), text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Waits until a file has this many bytes.
fn wait_for(path: &Path, bytes: u64) {
    let start = Instant::now();
    while fs::metadata(path).map_or(0, |meta| meta.len()) < bytes {
        assert!(start.elapsed() < HANG_GUARD, "{} does not grow", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_model_is_downloaded_and_served_by_its_name() {
    let setup = Setup::new();
    setup.hub.require("hf_secret");
    let mut server = Process::spawn(
        setup.command(&["serve", "org/tiny", "--port", "0", "-tp", "1"], &[("HF_TOKEN", "hf_secret")]),
    );
    let line = server.line_with("downloaded 0.00 GB in");
    assert!(line.contains("GB/s"), "{line}");
    let line = server.line_with("ready in");
    let address = line.trim().rsplit("http://").next().unwrap().parse().unwrap();
    let models = client::get(address, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "org/tiny");
    let body = json!({ "model": "org/tiny", "prompt": "abc", "max_tokens": 3, "ignore_eos": true });
    let reply = client::post(address, "/v1/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["usage"]["completion_tokens"], 3);
    kill_process(Pid::from_child(&server.child), Signal::INT).unwrap();
    assert_eq!(server.end().0, 0);
    setup.check_snapshot();
    for seen in setup.hub.seen() {
        let is_hub = seen.host == Host::Hub;
        assert_eq!(seen.authorization.as_deref(), is_hub.then_some("Bearer hf_secret"), "{seen:?}");
        assert!(!seen.path.ends_with(".bin") && !seen.path.contains("original"), "{seen:?}");
    }
}

#[tokio::test]
async fn probes_are_answered_during_the_download() {
    let setup = Setup::new();
    let open = setup.hub.stall(FIRST, 50_000);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let number = port.port().to_string();
    let mut server =
        Process::spawn(setup.command(&["serve", "org/tiny", "--port", &number, "-tp", "1"], &[]));
    wait_for(&setup.partial(FIRST), 50_000);
    let start = Instant::now();
    loop {
        let probe = client::get(port, "/health/startup").await;
        assert_eq!(probe.status, 503);
        let body = probe.json();
        assert_eq!(body["phase"], "downloading_model", "{body}");
        // The second file arrives meanwhile, and the progress is noted several times a second.
        if body["percent"].as_f64().unwrap() > 25.0 {
            break;
        }
        assert!(start.elapsed() < HANG_GUARD, "{body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client::get(port, "/health/live").await.status, 200);
    open.send(()).unwrap();
    server.line_with("ready in");
    assert_eq!(client::get(port, "/health/ready").await.status, 200);
}

#[test]
fn a_second_download_reads_nothing_and_offline_mode_asks_nothing() {
    let setup = Setup::new();
    succeeds(&setup.download(&[]));
    setup.check_snapshot();
    let before = setup.hub.seen().len();
    let text = succeeds(&setup.download(&[]));
    assert!(text.contains("org/tiny is in the cache: "), "{text}");
    let seen = setup.hub.seen().split_off(before);
    assert!(seen.iter().all(|seen| seen.method == "HEAD" || seen.path.contains("/api/")), "{seen:?}");
    let before = setup.hub.seen().len();
    for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        for value in ["1", "true"] {
            succeeds(&setup.download(&[(variable, value)]));
        }
    }
    assert_eq!(setup.hub.seen().len(), before);
    // A hub that cannot be reached is no reason to fail.
    let text = succeeds(&setup.download(&[("HF_ENDPOINT", "http://127.0.0.1:1")]));
    let warning =
        "org/tiny: 127.0.0.1:1: Connection refused (5 attempts); the snapshot in the cache is used: ";
    assert!(text.contains(warning), "{text}");
}

#[test]
fn offline_mode_says_what_the_cache_lacks() {
    let setup = Setup::new();
    let cache = setup.cache();
    let error = setup.refused(&[("HF_HUB_OFFLINE", "1")]);
    let expected = format!("the cache has no revision `main` in {}", cache.display());
    assert_eq!(error, format!("org/tiny: HF_HUB_OFFLINE forbids downloads, and {expected}"));
    succeeds(&setup.download(&[]));
    fs::remove_file(cache.join("blobs").join(setup.hub.sha256(SECOND))).unwrap();
    let error = setup.refused(&[("TRANSFORMERS_OFFLINE", "yes")]);
    let snapshot = cache.join("snapshots").join(COMMIT);
    let expected = format!(
        "the cache lacks 1 of the 3 files that are needed, such as {SECOND}, in {}",
        snapshot.display()
    );
    assert_eq!(error, format!("org/tiny: TRANSFORMERS_OFFLINE forbids downloads, and {expected}"));
    assert_eq!(setup.hub.reads(SECOND).len(), 1);
    // Any other value does not forbid it.
    succeeds(&setup.download(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "no")]));
    setup.check_snapshot();
    assert_eq!((setup.hub.reads(FIRST).len(), setup.hub.reads(SECOND).len()), (1, 2));
}

#[test]
fn the_cache_is_where_other_programs_look_for_it() {
    let setup = Setup::new();
    let home = setup.home.path();
    let text = |name: &str| home.join(name).to_string_lossy().into_owned();
    for (variables, expected) in [
        (vec![("HF_HUB_CACHE", text("a"))], "a"),
        (vec![("HUGGINGFACE_HUB_CACHE", text("b")), ("HF_HOME", text("c"))], "b"),
        (vec![("HF_HOME", text("d"))], "d/hub"),
        (vec![("HF_HOME", "~/e".to_owned())], "e/hub"),
        (vec![("XDG_CACHE_HOME", text("f"))], "f/huggingface/hub"),
    ] {
        let variables: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let args = ["plan", "--config", "org/tiny"];
        succeeds(&setup.command(&args, &variables).output().unwrap());
        let model = home.join(expected).join("models--org--tiny");
        // A plan reads no weights and no tokenizer.
        let files = fs::read_dir(model.join("snapshots").join(COMMIT)).unwrap().count();
        assert_eq!(files, 2, "{variables:?}");
    }
    assert!(!setup.home.path().join(".cache").exists());
    assert!(setup.hub.seen().iter().all(|seen| seen.host == Host::Hub));
}

/// A hub for clients that are written in other languages.
#[test]
#[ignore = "tests/clients/hub_client.py starts it and ends it"]
fn serve_a_hub() {
    let setup = Setup::new();
    println!("\nlistening on {}", setup.hub.address);
    std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input is open");
}
