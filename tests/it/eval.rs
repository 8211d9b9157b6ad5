//! `octant eval` as a process, against a server whose answers the tests choose.

mod ifeval;
mod perplexity;
mod reward_bench;
mod server;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use server::ScriptedServer;

/// A folder with the input and the output of an evaluation.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file of JSON Lines.
    fn rows(&self, name: &str, rows: &[Value]) -> String {
        self.text(name, &rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }

    fn text(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn output(&self) -> String {
        self.0.path().join("out.json").to_string_lossy().into_owned()
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_octant")).arg("eval").args(args).env_clear().output().unwrap()
}

/// The table and the JSON of a run that succeeds.
fn report(args: &[&str], output: &str) -> (String, Value) {
    let run = run(&[args, &["--output", output]].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let json = std::fs::read(Path::new(output)).unwrap();
    (String::from_utf8(run.stdout).unwrap(), serde_json::from_slice(&json).unwrap())
}

/// The message of a run that fails.
fn failure(args: &[&str]) -> String {
    let run = run(args);
    assert_eq!(run.status.code(), Some(1), "{}", String::from_utf8_lossy(&run.stdout));
    String::from_utf8(run.stderr).unwrap()
}

#[track_caller]
fn near(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
}

#[test]
fn a_busy_server_is_asked_again_and_a_wrong_key_ends_the_run() {
    let folder = Folder::new();
    let file = folder.text("a.txt", "ab");
    let mut refusals = 2;
    let server = ScriptedServer::start(move |request| {
        if request.path == "/v1/completions" && refusals > 0 {
            refusals -= 1;
            return (429, serde_json::json!({ "error": { "message": "the queue is full" } }));
        }
        perplexity::answer(request)
    });
    let url = server.url();
    let (_, json) = report(&["perplexity", &file, "--url", &url], &folder.output());
    assert_eq!(json["tokens"], 2);
    let paths = server.paths();
    assert_eq!(paths.iter().filter(|path| *path == "/v1/completions").count(), 3, "{paths:?}");
    let refuses = ScriptedServer::start(|_| (401, serde_json::json!({ "error": { "message": "no key" } })));
    let error = failure(&["perplexity", &file, "--url", &refuses.url()]);
    assert!(error.contains("no key (HTTP 401); --api-key or OCTANT_API_KEY"), "{error}");
    let plain = refuses.url().replace("http:", "https:");
    let error = failure(&["perplexity", &file, "--url", &plain]);
    assert!(error.contains("tls handshake"), "{error}");
}

#[test]
fn a_row_that_is_not_what_was_expected_is_named() {
    let folder = Folder::new();
    for (name, text, expected) in [
        ("empty.jsonl", "\n", "expected at least one row, got none"),
        ("array.jsonl", "[{}]", "line 1: expected one JSON object a line (JSON Lines), got a JSON array"),
        (
            "broken.jsonl",
            "{\"text\": \"a\"}\n{\"text\"",
            "line 2: expected a JSON object: EOF while parsing an object (column 7)",
        ),
        ("missing.jsonl", "{\"text\": \"a\"}\n\n{}", "line 3: text: expected a string, got no such field"),
        ("number.jsonl", "{\"text\": 7}", "line 1: text: expected a string, got the number 7"),
    ] {
        let file = folder.text(name, text);
        let error = failure(&["perplexity", &file, "--model", "m", "--prefix-token", "0"]);
        assert!(error.contains(name) && error.contains(expected), "{name}: {error}");
    }
    let error = failure(&["perplexity", "nowhere.jsonl", "--model", "m"]);
    assert!(error.contains("nowhere.jsonl: No such file"), "{error}");
}
