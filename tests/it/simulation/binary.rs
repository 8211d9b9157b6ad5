//! The commands `serve --device simulate`, `--record` and `simulate`, as processes.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::http::client;

const INSTRUCT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");

fn octant(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_octant")).env_clear().args(args).output().unwrap()
}

/// A model directory with configuration and tokenizer but no weights.
pub(crate) fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    std::fs::copy(data.join("golden/nemotron/config.json"), dir.path().join("config.json")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(data.join("text/byte_level").join(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn a_server_that_is_stopped_during_startup_exits_with_0() {
    let dir = model();
    // Reading a FIFO without a writer blocks, so startup never ends.
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("tokenizer.json")).status().unwrap().success());
    for drain in [false, true] {
        let mut server = Command::new(env!("CARGO_BIN_EXE_octant"))
            .args(["serve", "--model", &dir.path().to_string_lossy(), "--port", "0"])
            .args(["--admin-port", "0", "--health-port", "0", "--device", "simulate"])
            .args(["--simulate-config", INSTRUCT])
            .env_clear()
            .env("OCTANT_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The signal handlers are installed before these ports open.
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
        let addresses: Vec<String> = lines
            .by_ref()
            .filter_map(|line| Some(line.split_once("http://")?.1.to_owned()))
            .take(2)
            .collect();
        if drain {
            let drained = octant(&["drain", "--admin", &addresses[1]]);
            let text = String::from_utf8_lossy(&drained.stdout);
            assert!(drained.status.success() && text.contains("\"phase\":\"drained\""), "{drained:?}");
            assert!(server.try_wait().unwrap().is_none(), "a drained server runs until it is stopped");
        }
        let stop = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
        assert!(stop.success());
        assert_eq!(server.wait().unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn a_recording_of_a_simulated_server_is_replayed_with_other_settings() {
    let dir = model();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let mut server = Command::new(env!("CARGO_BIN_EXE_octant"))
        .args([
            "serve",
            "--model",
            &path(""),
            "--served-model-name",
            "m",
            "--port",
            "0",
            "--device",
            "simulate",
        ])
        .args(["--simulate-config", INSTRUCT, "--simulate-pace", "0", "--drain-grace", "0"])
        .args(["--record", &path("recording")])
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let ready =
        lines.find_map(|line| line.unwrap().split_once("http://").map(|(_, at)| at.to_owned())).unwrap();
    let address: SocketAddr = ready.parse().unwrap();
    for i in 0..3 {
        let body =
            json!({ "model": "m", "prompt": format!("the fox {i}"), "max_tokens": 20, "ignore_eos": true });
        let reply = client::post(address, "/v1/completions", &body).await;
        assert_eq!(reply.json()["usage"]["completion_tokens"], 20);
    }
    let stop = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(stop.success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(server.wait().unwrap().success(), "{rest:?}");

    let mode = std::fs::metadata(path("recording")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "only the owner may read prompts");
    let same = octant(&["simulate", "--replay", &path("recording")]);
    let text = String::from_utf8_lossy(&same.stdout);
    assert!(same.status.success() && text.contains("plans, all equal"), "{text} {same:?}");
    for (flag, value, method) in [("--acceptance", "0.5", "DIR"), ("--speculative-tokens", "3", "ngram")] {
        let error = simulate_error(&["--replay", &path("recording"), flag, value]);
        assert!(error.contains(&format!("{flag}: expected --speculate {method} ")), "{error}");
    }
    let args = ["simulate", "--replay", &path("recording"), "--max-num-seqs", "1", "--json", &path("report")];
    let other = octant(&[&args[..], &["--svg", &path("picture")]].concat());
    assert!(other.status.success(), "{other:?}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(path("report")).unwrap()).unwrap();
    for name in ["recorded", "as_recorded", "as_changed"] {
        assert_eq!(report[name]["generated_tokens"], 60, "{name} of {report}");
    }
    assert!(std::fs::read_to_string(path("picture")).unwrap().contains("as changed"));

    let mut damaged = std::fs::read(path("recording")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(path("damaged"), damaged).unwrap();
    let refused = octant(&["simulate", "--replay", &path("damaged")]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && text.contains("at byte"), "{text}");
}

/// The template of the model shows no tools, so calls have the form of Hermes unless the operator names one.
#[tokio::test]
async fn calls_have_the_form_that_the_operator_names() {
    let dir = model();
    for (parser, begin) in [(None, "<tool_call>"), (Some("llama3"), "{")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command.args(["serve", "--model", &dir.path().to_string_lossy(), "--served-model-name", "m"]);
        command.args(["--port", "0", "--device", "simulate", "--simulate-config", INSTRUCT]);
        command.args(parser.into_iter().flat_map(|parser| ["--tool-call-parser", parser]));
        let mut server = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
        let ready = lines.find_map(|line| line.split_once("http://").map(|(_, at)| at.to_owned())).unwrap();
        let parameters = json!({ "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } },
            "required": ["city"], "additionalProperties": false });
        let tool = json!({ "type": "function", "function": { "name": "weather", "parameters": parameters } });
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }], "tools": [tool],
            "tool_choice": "required", "parallel_tool_calls": false, "logprobs": true });
        let reply = client::post(ready.parse().unwrap(), "/v1/chat/completions", &body).await;
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let choice = reply.json()["choices"][0].clone();
        let tokens = choice["logprobs"]["content"].as_array().unwrap().iter();
        let raw: String = tokens.map(|token| token["token"].as_str().unwrap()).collect();
        assert!(raw.starts_with(begin), "{parser:?}: {raw}");
        assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "weather", "{choice}");
        assert_eq!(choice["finish_reason"], "tool_calls");
    }
}

#[test]
fn random_requests_are_simulated_and_reported() {
    let args =
        ["simulate", "--config", INSTRUCT, "--poisson", "3", "--requests", "40", "--answer-tokens", "20:0.5"];
    let output = octant(&args);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in ["TTFT", "goodput", "KV use", "40/0/0"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

/// JSON report of `octant simulate` with `args` and `more`.
fn report(args: &[&str], more: &[&str]) -> Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_string_lossy().into_owned();
    let output = octant(&[&["simulate", "--config", INSTRUCT, "--json", &path], args, more].concat());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    report["simulated"].clone()
}

#[test]
fn every_admission_setting_changes_the_simulation() {
    // More requests than the KV blocks hold.
    let overload =
        ["--poisson", "20", "--requests", "60", "--prompt-tokens", "200:0", "--answer-tokens", "400:0"];
    let overload = [&overload[..], &["--max-model-len", "1024", "--kv-cache-memory", "256MiB"]].concat();
    let usual = report(&overload, &[]);
    let number = |report: &Value, name: &str| report[name].as_u64().unwrap();
    assert!(number(&usual, "preemptions") > 0 && number(&usual, "refused") == 0, "{usual}");
    for flag in [["--kv-reserve", "1"], ["--max-preemptions", "0"]] {
        let other = report(&overload, &flag);
        assert_eq!((number(&other, "preemptions"), number(&other, "finished")), (0, 60), "{flag:?}");
    }
    let other = report(&overload, &["--max-ttft", "1"]);
    assert!(number(&other, "refused") > 0 && number(&other, "finished") > 0, "{other}");
    assert!(other["ttft"]["max"].as_f64() < usual["ttft"]["max"].as_f64(), "{other}");

    // One request of low priority; requests of higher priority always wait for the same slot.
    let request_line = |at: f64, priority: i32| {
        json!({ "at": at, "prompt_tokens": 20, "answer_tokens": 40, "priority": priority }).to_string()
    };
    let lines: Vec<String> = (0..30).map(|i| request_line(0.3 * f64::from(i), i32::from(i == 1))).collect();
    let trace = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(trace.path(), lines.join("\n")).unwrap();
    let path = trace.path().to_string_lossy().into_owned();
    let line = ["--trace", &path, "--max-num-seqs", "1"];
    let longest = |steps: &str| report(&line, &["--ageing-steps", steps])["ttft"]["max"].as_f64().unwrap();
    let (never, soon) = (longest("0"), longest("10"));
    assert!(soon < 0.8 * never, "{soon} {never}");
}

#[test]
fn invalid_combinations_of_flags_are_refused() {
    let model = model();
    let dir = model.path().to_string_lossy();
    let serve = ["serve", "--model", &dir];
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--device", "simulate", "--cpu-instructions", "avx2"], 2, "expected --device cpu, got simulate"),
        (&["--simulate-pace", "1"], 2, "expected --device simulate, got cpu"),
        (&["--device", "simulate", "--simulate-pace=-1"], 2, "expected a number from 0"),
        (&["--device", "simulate", "--simulate-answer-tokens", "0.5"], 2, "--simulate-answer-tokens"),
        (&["--device", "simulate", "--gpus", "0"], 2, "expected --device cuda, got simulate"),
        (&["--device", "simulate", "--gpu", "abacus"], 1, "--gpu"),
        (&["--device", "simulate"], 1, "--tensor-parallel-size"),
        (&["--device", "simulate", "--simulate-config", INSTRUCT, "--record", "/dev/null/no"], 1, "--record"),
    ];
    for (args, status, part) in cases {
        let output = octant(&[&serve[..], args].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(status) && text.contains(part), "{args:?}: {text}");
    }
    for (flag, part) in
        [("--kv-reserve=1.5", "expected from 0 to 1"), ("--max-ttft=0", "expected seconds above 0")]
    {
        let output = octant(&["simulate", "--config", INSTRUCT, "--poisson", "1", flag]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains(part), "{flag}: {text}");
    }
    let none = octant(&["simulate", "--config", INSTRUCT]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
}

/// Standard error of `octant simulate` with these arguments, which must refuse.
fn simulate_error(args: &[&str]) -> String {
    let output = octant(&[&["simulate"], args].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{args:?}: {output:?}");
    text
}

#[test]
fn settings_of_drafts_without_drafts_are_refused() {
    let random = ["--config", INSTRUCT, "--tp", "8", "--poisson", "1", "--requests", "2"];
    let expected = ": expected --speculate ngram or --speculate DIR with it";
    for (flag, value) in [("--acceptance", "0.5"), ("--speculative-tokens", "3")] {
        let given = [&random[..], &[flag, value]].concat();
        let off = [&given[..], &["--speculate", "off"]].concat();
        for args in [&given, &off] {
            let error = simulate_error(args);
            assert!(error.contains(&format!("{flag}{expected}")), "{error}");
        }
        let ngram = octant(&[&["simulate"], &given[..], &["--speculate", "ngram"]].concat());
        assert!(ngram.status.success(), "{ngram:?}");
    }
}

#[test]
fn models_that_do_not_fit_in_a_simulation_are_refused_with_the_draft_models_needs() {
    let random = ["--config", INSTRUCT, "--tp", "8", "--poisson", "1", "--requests", "2"];
    let error =
        simulate_error(&[&random[..], &["--speculate", INSTRUCT, "--kv-cache-memory", "9GiB"]].concat());
    let parts =
        [&format!("--speculate: the draft model {INSTRUCT} needs "), " of weights, ", "for each KV block"];
    parts.iter().for_each(|part| assert!(error.contains(part), "`{error}` lacks `{part}`"));
}

#[test]
fn two_batches_that_no_step_can_have_are_refused() {
    let random = ["--config", INSTRUCT, "--poisson", "1", "--requests", "2"];
    for (args, expected) in [
        (&["--tp", "8", "--deterministic", "false"][..], "expected --deterministic true, got false"),
        (
            &["--tp", "8", "--max-num-batched-tokens", "512"],
            "expected at most --max-num-batched-tokens, 512, got 768",
        ),
        (&["--tp", "1"], "expected --tp of at least 2, got 1"),
        (
            &["--tp", "8", "--max-num-batched-tokens", "200"],
            "expected --max-num-batched-tokens of at least 256, got 200",
        ),
    ] {
        let error = simulate_error(&[&random[..], &["--two-batch-tokens", "768"], args].concat());
        assert!(error.contains(&format!("--two-batch-tokens: {expected}")), "{error}");
    }
}
