//! Local models as child processes.

use std::fs;
use std::net::TcpStream;

use super::Setup;
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

fn setup(model: &str) -> Setup {
    let setup = Setup::of(&RECIPE.replace("MODEL", model));
    fs::write(setup.path().join("prompts.jsonl"), "{\"prompt\": \"hi\"}\n{\"prompt\": \"you\"}\n").unwrap();
    setup
}

#[test]
fn a_local_model_is_served_while_a_stage_needs_it() {
    // The path begins at the recipe's folder.
    let setup = setup("model");
    let model = setup.path().join("model");
    fs::create_dir(&model).unwrap();
    write_tokenizer(&model);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct/config.json");
    fs::copy(config, model.join("config.json")).unwrap();
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    setup.run_with("", false).said();
    let responses = setup.lines("08-responses.jsonl");
    assert_eq!(responses.len(), 2);
    assert_eq!(responses[0]["model"], "model");
    let log = fs::read_dir(setup.path().join("out")).unwrap().find_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_prefix("server-")?.strip_suffix(".log")?.parse::<u16>().ok()
    });
    TcpStream::connect(("127.0.0.1", log.unwrap())).expect_err("the child has ended");
}

#[test]
fn the_end_of_a_child_that_cannot_serve_is_reported() {
    let error = setup("no/such/model").run_with("", false).error();
    assert!(error.starts_with("roles.responders[0] (no/such/model): octant serve ended: "), "{error}");
    assert!(error.contains("no such directory"), "{error}");
}
