//! Servers that are full or not available, over HTTP. `synth::back_off` tests the pauses.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::json;

use super::script::{Reply, usual};
use super::{ScriptServer, Setup, usual_but};

#[test]
fn a_full_server_is_asked_again() {
    let setup = Setup::new();
    setup.run(&ScriptServer::start(usual)).said();
    let mut other = Setup::new();
    other.concurrency = 4;
    let server = usual_but(|call| {
        let status = [429, 503][call.number % 2];
        let full = Reply { retry_after: Some("0"), ..Reply::error(status, "full") };
        (call.number % 5 < 2).then_some(full)
    });
    other.run(&server).said();
    assert_eq!(setup.files(), other.files());
}

#[test]
fn a_server_that_asks_for_a_long_pause_is_left_alone_and_named_in_the_log() {
    let setup = Setup::new();
    // A second request, which would come before the pause has ended, ends the run.
    let server = usual_but(|call| {
        let full = Reply { retry_after: Some("100"), ..Reply::error(429, "all seats are taken") };
        Some(if call.number == 0 { full } else { Reply::error(401, "asked again") })
    });
    let mut command = setup.command(&format!("http://{}", server.address));
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    let warning = lines.find(|line| line.contains("all seats are taken")).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    // It has no time without an answer, which is less than a second.
    let (who, what) =
        ("roles.prompt_writer (writer)", "status 429: all seats are taken; next request in 100.0 s");
    assert!(warning.contains("WARN") && warning.contains(who) && warning.contains(what), "{warning}");
    assert_eq!(server.calls().len(), 1);
}

#[test]
fn a_quota_that_is_used_up_ends_the_run() {
    let body = json!({ "error": { "message": "You exceeded your quota", "code": "insufficient_quota" } });
    let server = ScriptServer::start(move |_| Reply { body: body.clone(), ..Reply::error(429, "") });
    let error = Setup::new().run(&server).error();
    assert!(error.ends_with("status 429: You exceeded your quota"), "{error}");
    assert_eq!(server.calls().len(), 1);
}
