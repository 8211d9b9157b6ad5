//! Recipes that are refused, the example, and dry runs.

use std::path::Path;

use octant::synth::recipe::Recipe;

use super::script::usual;
use super::{RECIPE, ScriptServer, Setup};

fn text() -> String {
    RECIPE.replace("SERVER", "http://127.0.0.1:1").replace("CONCURRENCY", "2")
}

/// The error of the recipe with one part replaced.
fn error(part: &str, by: &str) -> String {
    let text = text();
    assert!(text.contains(part), "{part}");
    Recipe::parse(&text.replacen(part, by, 1), Path::new("r.toml")).unwrap_err().to_string()
}

/// The line of a part of the recipe.
fn line(part: &str) -> usize {
    text().lines().position(|line| line.contains(part)).unwrap() + 1
}

#[test]
fn errors_name_line_key_expected_and_got() {
    let rows = [
        ("per_topic = 2", "per_topics = 2", "unknown field `per_topics`, expected `per_topic`"),
        ("per_topic = 2", "per_topic = \"two\"", "invalid type: string \"two\", expected usize"),
        (
            "per_topic = 2",
            "per_topic = 0",
            "open_questions.per_topic: expected a whole number from 1 to 1000; got 0",
        ),
        ("threshold = 1.0", "", "missing field `threshold`"),
        (
            "attempts = 1",
            "prompt_tokens_per_second = 0.0",
            "roles.prompt_writer.prompt_tokens_per_second: expected a number above 0; got 0",
        ),
        ("weights = {", "weights = {} # {", "reward.weights: expected the weight of each attribute"),
        ("threshold = 1.0", "threshold = nan", "reward.threshold: expected a finite number; got NaN"),
    ];
    for (part, by, expected) in rows {
        let error = error(part, by);
        assert!(error.starts_with("r.toml:") && error.contains(expected), "{error}");
    }
    let at = line("per_topic = 2");
    assert!(error("per_topic = 2", "per_topic = 0").starts_with(&format!("r.toml:{at}: ")));
    assert!(error("per_topic = 2", "per_topics = 2").starts_with(&format!("r.toml:{at}: ")));
}

#[test]
fn parts_that_need_each_other_are_refused_alone() {
    let rows = [
        ("[roles.user]", "[roles.prompt_writer2]", "unknown field `prompt_writer2`"),
        (
            "[reward]\nweights = { helpfulness = 1.0, verbosity = -0.5 }\nthreshold = 1.0\n",
            "",
            "roles.judge: expected [reward] with `weights` and `threshold`",
        ),
        ("generate = 2\ngiven = [\"Given\"]", "", "open_questions: expected topics.generate above 0"),
        ("turns = 2", "turns = 1", "responses.two_turn: expected [dialogues] with turns >= 2"),
        (
            "temperature = 0.5",
            "model = 'x'",
            "roles.prompt_writer.sampling: expected sampling fields; got `model`",
        ),
        (
            "http://127.0.0.1:1/v1",
            "127.0.0.1:1",
            "roles.prompt_writer.endpoint: expected http://HOST or https://HOST",
        ),
    ];
    for (part, by, expected) in rows {
        let error = error(part, by);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_template_with_an_unknown_variable_is_refused() {
    let error = error("[topics]", "[templates]\nrefine = \"{{ promt }}\"\n\n[topics]");
    assert!(error.contains("templates.refine: expected a Jinja template with the variables"), "{error}");
    assert!(error.contains("prompt"), "{error}");
}

#[test]
fn the_examples_are_valid() {
    for name in ["synth.toml", "synth_demo.toml"] {
        Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap();
    }
}

#[test]
fn a_dry_run_counts_requests_and_sends_nothing() {
    let server = ScriptServer::start(usual);
    let setup = Setup::new();
    let said = setup.run_with(&format!("http://{}", server.address), true).said();
    assert!(server.calls().is_empty() && !setup.path().join("out").exists());
    let requests = |said: &str, stage: &str| -> usize {
        let line = said.lines().find(|line| line.starts_with(stage)).unwrap_or_else(|| panic!("{said}"));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    setup.run(&server).said();
    // With full lists, the estimate of requests is exact.
    assert_eq!(requests(&said, "total"), server.calls().len());
    let said = setup.run_with(&format!("http://{}", server.address), true).said();
    assert!(said.lines().filter(|line| line.ends_with("done")).count() == 8, "{said}");
}

#[test]
fn a_missing_key_and_a_dead_endpoint_are_named() {
    let mut setup = Setup::new();
    setup.replace("model = \"writer\"", "model = \"writer\"\napi_key_env = \"OCTANT_TEST_NO_SUCH_KEY\"");
    let error = setup.run_with("http://127.0.0.1:1", false).error();
    assert!(error.starts_with("roles.prompt_writer (writer): OCTANT_TEST_NO_SUCH_KEY: expected"), "{error}");
    let error = Setup::new().run_with("http://127.0.0.1:1", false).error();
    assert!(error.starts_with("roles.prompt_writer (writer): http://127.0.0.1:1: "), "{error}");
}
