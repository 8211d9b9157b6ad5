//! Runs that were interrupted, and recipes that changed.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::script::{Reply, usual};
use super::{ScriptServer, Setup, usual_but};

#[test]
fn a_run_interrupted_at_any_request_continues_to_the_same_files() {
    let whole = Setup::new();
    let server = ScriptServer::start(usual);
    whole.run(&server).said();
    let calls = server.calls();
    for stop in 0..calls.len() {
        let setup = Setup::new();
        let failing = usual_but(move |call| (call.number >= stop).then(|| Reply::error(401, "no key")));
        assert!(setup.run(&failing).error().contains("status 401: no key"));
        let server = ScriptServer::start(usual);
        setup.run(&server).said();
        assert_eq!(setup.files(), whole.files(), "after {stop} requests");
        // Only a dialogue has several requests, which all are sent again; two run side by side.
        let again = server.calls().len() + stop - calls.len();
        assert!(again < 5, "{again} requests were sent again after {stop}");
    }
}

/// A number of a request within each stage that asks a model, by the stage.
fn requests_of_stages(setup: &Setup) -> Vec<(String, usize)> {
    let mut summaries: Vec<PathBuf> = fs::read_dir(setup.path().join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".summary.json"))
        .collect();
    summaries.sort();
    let (mut before, mut found) = (0, Vec::new());
    for path in summaries {
        let summary: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let requests = summary["requests"].as_u64().unwrap() as usize;
        if requests > 0 {
            found.push((summary["stage"].as_str().unwrap().to_owned(), before + requests / 2));
        }
        before += requests;
    }
    found
}

#[test]
fn a_run_that_is_killed_within_any_stage_continues_to_the_same_files() {
    let whole = Setup::new();
    whole.run(&ScriptServer::start(usual)).said();
    let stages = requests_of_stages(&whole);
    let names: Vec<&str> = stages.iter().map(|(name, _)| name.as_str()).collect();
    let expected =
        ["topics", "subtopics", "keywords", "prompts", "refined", "dialogues", "responses", "rewards"];
    assert_eq!(names, expected);
    for (stage, request) in stages {
        let mut setup = Setup::new();
        setup.concurrency = 2;
        let pid = Arc::new(AtomicI32::new(0));
        let victim = Arc::clone(&pid);
        let server = usual_but(move |call| {
            if call.number != request {
                return None;
            }
            while victim.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            kill_process(Pid::from_raw(victim.load(Ordering::Acquire)).unwrap(), Signal::KILL).unwrap();
            None
        });
        let mut process = setup.spawn(&format!("http://{}", server.address));
        pid.store(process.id() as i32, Ordering::Release);
        assert_eq!(process.wait().unwrap().signal(), Some(9), "{stage}");
        let begun = format!("-{stage}.journal.jsonl");
        let left: Vec<String> = fs::read_dir(setup.path().join("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(left.iter().any(|name| name.ends_with(&begun)), "{stage}: {left:?}");
        let server = ScriptServer::start(usual);
        let mut process = setup.spawn(&format!("http://{}", server.address));
        assert!(process.wait().unwrap().success(), "{stage}");
        assert_eq!(setup.files(), whole.files(), "{stage}");
    }
}

#[test]
fn a_complete_run_sends_nothing() {
    let setup = Setup::new();
    setup.run(&ScriptServer::start(usual)).said();
    let files = setup.files();
    let server = ScriptServer::start(usual);
    setup.run(&server).said();
    assert_eq!((server.calls().len(), setup.files()), (0, files));
}

#[test]
fn an_incomplete_last_line_is_cut() {
    let whole = Setup::new();
    whole.run(&ScriptServer::start(usual)).said();
    let setup = Setup::new();
    let failing = usual_but(|call| {
        let is_late = call.body["model"] == "strong" && call.number % 2 == 0;
        is_late.then(|| Reply::error(401, "no key"))
    });
    setup.run(&failing).error();
    let journal = setup.path().join("out/08-responses.journal.jsonl");
    let mut file = OpenOptions::new().append(true).open(&journal).unwrap();
    file.write_all(b"{\"item\": \"t0.0.q0.r0.a1.0\", \"rec").unwrap();
    setup.run(&ScriptServer::start(usual)).said();
    assert_eq!(setup.files(), whole.files());
    assert!(!journal.exists());
}

#[test]
fn a_changed_recipe_is_refused_until_restart() {
    let mut setup = Setup::new();
    setup.run(&ScriptServer::start(usual)).said();
    setup.replace("turns = 2", "turns = 3");
    let error = setup.run(&ScriptServer::start(usual)).error();
    assert!(error.contains("07-dialogues.jsonl: made before dialogues changed"), "{error}");
    assert!(error.contains("--restart"), "{error}");
    setup.restart = true;
    let server = ScriptServer::start(usual);
    setup.run(&server).said();
    assert_eq!(setup.lines("07-dialogues.jsonl")[0]["messages"].as_array().unwrap().len(), 6);
    // Topics and prompts stay.
    assert!(server.calls().iter().all(|call| call.body["model"] != "writer"));
    // A changed threshold asks no model anything.
    setup.restart = false;
    setup.replace("threshold = 1.0", "threshold = 100.0");
    let server = ScriptServer::start(usual);
    setup.run(&server).said();
    assert_eq!((server.calls().len(), setup.lines("10-filtered.jsonl").len()), (0, 0));
}

#[test]
fn another_address_and_concurrency_are_no_change() {
    let mut setup = Setup::new();
    setup.run(&ScriptServer::start(usual)).said();
    setup.concurrency = 3;
    let server = ScriptServer::start(usual);
    setup.run(&server).said();
    assert!(server.calls().is_empty());
}

#[test]
fn a_stage_that_makes_nothing_ends_the_run_and_begins_again() {
    let setup = Setup::new();
    let server = usual_but(|call| call.list().map(|_| Reply::error(400, "no schemas here")));
    let error = setup.run(&server).error();
    assert!(error.starts_with("topics: nothing was made of 1 items"), "{error}");
    assert!(error.contains("status 400: no schemas here"), "{error}");
    setup.run(&ScriptServer::start(usual)).said();
    assert!(fs::exists(setup.path().join("out/report.html")).unwrap());
}
