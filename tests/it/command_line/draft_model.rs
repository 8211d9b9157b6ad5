//! `--speculate DIR`: draft models that do not agree with the model or do not fit are refused, and a server
//! with one gives the answers of a server without.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{error_of, octant};
use crate::http::client::{get, post};
use crate::tensor_parallel::served_model;

/// Standard error of `octant serve MODEL --speculate DRAFT`, which must refuse.
fn refused(model: &Path, draft: &Path, more: &[&str]) -> String {
    let [model, draft] = [model, draft].map(|path| path.to_str().unwrap());
    error_of(&octant(&[&["serve", model, "--port", "0", "--speculate", draft], more].concat(), &[]), 1)
}

/// Changes a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_draft_model_of_another_tokenizer_is_refused() {
    let (model, draft) = (served_model(), served_model());
    edit(&draft.path().join("tokenizer.json"), |tokenizer| {
        let vocab = &mut tokenizer["model"]["vocab"];
        (vocab["!"], vocab["\""]) = (json!(4), json!(3));
    });
    let error = refused(model.path(), draft.path(), &[]);
    let (own, other) = (draft.path().display(), model.path().display());
    let expected = format!("the draft model {own} has another tokenizer than {other}: token 3 is ");
    assert!(error.contains("--speculate: ") && error.contains(&expected), "{error}");
    assert!(error.contains(r#"token 3 is "\"" there and "!" here"#), "{error}");
}

#[test]
fn a_draft_model_of_fewer_ids_is_refused() {
    let (model, draft) = (served_model(), served_model());
    edit(&draft.path().join("config.json"), |config| config["vocab_size"] = json!(300));
    let error = refused(model.path(), draft.path(), &[]);
    let expected = format!(
        "the draft model {} has a vocabulary of 300; expected at least the 389 ids of {}",
        draft.path().display(),
        model.path().display()
    );
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_draft_model_that_does_not_fit_is_refused_with_both_numbers() {
    let (model, draft) = (served_model(), served_model());
    let error = refused(model.path(), draft.path(), &["--kv-cache-memory", "3000GiB"]);
    let parts =
        ["--speculate: the draft model ", " of weights, ", "for each KV block", "needs 3", "are available"];
    parts.iter().for_each(|part| assert!(error.contains(part), "`{error}` lacks `{part}`"));
}

#[test]
fn a_missing_draft_model_is_refused() {
    let model = served_model();
    let error = refused(model.path(), Path::new("/nonexistent/draft"), &[]);
    assert!(error.contains("--speculate: ") && error.contains("/nonexistent/draft"), "{error}");
}

/// A running server; killed when dropped.
struct Served {
    process: Child,
    address: SocketAddr,
    log: String,
}

impl Served {
    fn start(model: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command
            .env_clear()
            .arg("serve")
            .arg(model)
            .args(["--port", "0", "--served-model-name", "m"])
            .args(more);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = String::new();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines
            .inspect(|line| log += &format!("{line}\n"))
            .find_map(|line| Some(line.split_once("on http://")?.1.to_owned()));
        Self { process, address: address.unwrap_or_default().parse().unwrap(), log }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_server_with_a_draft_model_gives_the_answers_of_one_without() {
    let model = served_model();
    let draft = model.path().to_str().unwrap();
    for ranks in ["1", "2"] {
        let plain = Served::start(model.path(), &["--tensor-parallel-size", ranks]);
        let more = ["--tensor-parallel-size", ranks, "--speculate", draft, "--speculative-tokens", "3"];
        let drafting = Served::start(model.path(), &more);
        assert!(drafting.log.contains("milliseconds of a pass of the draft model: 1 "), "{}", drafting.log);
        assert!(drafting.log.contains("drafts      by "), "{}", drafting.log);
        for temperature in [0.0, 1.0] {
            let body = json!({ "model": "m", "prompt": "one two three", "max_tokens": 60, "n": 3, "seed": 5,
                               "temperature": temperature, "logprobs": 2, "ignore_eos": true });
            let choices = async |server: &Served| {
                post(server.address, "/v1/completions", &body).await.json()["choices"].clone()
            };
            let expected = choices(&plain).await;
            assert_eq!(choices(&drafting).await, expected, "{ranks} ranks, temperature {temperature}");
            assert!(expected[2]["text"].is_string(), "{expected}");
        }
        let metrics = get(drafting.address, "/metrics").await;
        assert!(metrics.text().contains("vllm:spec_decode_num_draft_tokens_total"), "{}", metrics.text());
    }
}
