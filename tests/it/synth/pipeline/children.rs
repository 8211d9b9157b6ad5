//! Local models as child processes.

use std::fs;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Setup;
use crate::HANG_GUARD;
use crate::http::test_server::write_tokenizer;

/// A recipe that asks one local model.
const RECIPE: &str = "name = 'Local'
[given]
file = 'prompts.jsonl'
[[roles.responders]]
model = 'MODEL'
serve_args = ['--device', 'simulate', '--simulate-answer-tokens', '4', '--simulate-pace', '0']
sampling = { max_tokens = 8 }
[responses]
per_responder = 1
keep_unfinished = true
";

/// Writes a model that can be simulated. Its path begins at the recipe's folder.
fn write_model(setup: &Setup) {
    let model = setup.path().join("model");
    fs::create_dir(&model).unwrap();
    write_tokenizer(&model);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct/config.json");
    fs::copy(config, model.join("config.json")).unwrap();
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
}

/// The port of the child process, if its log exists.
fn port(setup: &Setup) -> Option<u16> {
    fs::read_dir(setup.path().join("out")).ok()?.find_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_prefix("server-")?.strip_suffix(".log")?.parse().ok()
    })
}

fn setup(model: &str) -> Setup {
    let setup = Setup::of(&RECIPE.replace("MODEL", model));
    fs::write(setup.path().join("prompts.jsonl"), "{\"prompt\": \"hi\"}\n{\"prompt\": \"you\"}\n").unwrap();
    setup
}

#[test]
fn a_local_model_is_served_while_a_stage_needs_it() {
    let setup = setup("model");
    write_model(&setup);
    setup.run_with("", false).said();
    let responses = setup.lines("08-responses.jsonl");
    assert_eq!(responses.len(), 2);
    assert_eq!(responses[0]["model"], "model");
    TcpStream::connect(("127.0.0.1", port(&setup).unwrap())).expect_err("the child has ended");
}

#[test]
fn settings_of_another_server_in_the_environment_do_not_reach_a_child() {
    let setup = setup("model");
    write_model(&setup);
    // The child would be refused: these need a port for administration, and a key.
    let mut command = setup.command("");
    command.envs([("OCTANT_ADMIN_HOST", "127.0.0.1"), ("OCTANT_REQUIRE_AUTH_FOR_METRICS", "true")]);
    let record = setup.path().join("record");
    command.env("OCTANT_RECORD", &record).env("OCTANT_API_KEYS", setup.path().join("no such file"));
    let config = setup.path().join("octant.toml");
    std::fs::write(&config, "api-key = 'of another server'\n").unwrap();
    command.env("OCTANT_CONFIG", config);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(setup.lines("08-responses.jsonl").len(), 2);
    assert!(!record.exists());
}

#[test]
fn a_run_that_is_killed_leaves_no_server_behind() {
    let mut setup = setup("model");
    write_model(&setup);
    // An answer that takes hours.
    setup.replace("'--simulate-answer-tokens', '4', '--simulate-pace', '0'", "'--simulate-pace', '1'");
    setup.replace("max_tokens = 8", "max_tokens = 4000, min_tokens = 4000");
    let mut process = setup.spawn("");
    let listens = || {
        let port = port(&setup)?;
        TcpStream::connect(("127.0.0.1", port)).ok()
    };
    let begun = Instant::now();
    while listens().is_none() {
        assert!(process.try_wait().unwrap().is_none() && begun.elapsed() < HANG_GUARD);
        sleep(Duration::from_millis(20));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    while listens().is_some() {
        assert!(begun.elapsed() < HANG_GUARD, "the server still runs");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_end_of_a_child_that_cannot_serve_is_reported() {
    let error = setup("no/such/model").run_with("", false).error();
    assert!(error.starts_with("roles.responders[0] (no/such/model): octant serve ended: "), "{error}");
    assert!(error.contains("no such directory"), "{error}");
}
