//! Runs that were interrupted, and recipes that changed.

use std::fs::{self, OpenOptions};
use std::io::Write;

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
