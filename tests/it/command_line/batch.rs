//! `octant batch` as a process: with a simulated model that is killed again and again, and with servers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use octant::random::Random;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::{error_of, octant, parsed, tiny};
use crate::HANG_GUARD;
use crate::http::test_server::{Setup, TestServer};
use crate::simulation::binary::model;

const BINARY: &str = env!("CARGO_BIN_EXE_octant");
const INSTRUCT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");
const LINES: usize = 300;
/// Processes that are killed; the one after them may finish.
const KILLS: usize = 5;

/// The files of a run in a directory.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(input: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("in.jsonl"), input).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The lines of a file, sorted.
    fn sorted(&self, name: &str) -> Vec<String> {
        let mut lines: Vec<String> = self.text(name).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// Bytes of both files of results.
    fn written(&self) -> u64 {
        let size = |name| std::fs::metadata(self.path(name)).map_or(0, |file| file.len());
        size("out.jsonl") + size("out.errors.jsonl")
    }

    fn command(&self, output: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.env_clear().arg("batch").arg(self.path("in.jsonl")).arg(self.path(output));
        command
    }

    /// A run with a simulated model.
    fn simulated(&self, output: &str, model: &Path) -> Command {
        let mut command = self.command(output);
        command.arg(model).args([
            "--served-model-name",
            "m",
            "--device",
            "simulate",
            "--max-model-len",
            "256",
        ]);
        command.args(["--simulate-config", INSTRUCT, "--simulate-pace", "0.05", "--concurrency", "3"]);
        command
    }

    /// A run by servers.
    async fn by_servers(&self, output: &str, servers: &[String], more: &[&str]) -> Output {
        let mut command = self.command(output);
        servers.iter().for_each(|url| _ = command.args(["--endpoint", url]));
        command.args(more);
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        tokio::time::timeout(HANG_GUARD, run).await.expect("the run ends").unwrap()
    }
}

fn line(custom_id: &str, url: &str, body: &Value) -> String {
    let line = json!({ "custom_id": custom_id, "method": "POST", "url": url, "body": body });
    format!("{line}\n")
}

/// Requests of all kinds. Some are refused, some lines are no requests, and one `custom_id` occurs twice.
fn requests() -> String {
    let request = |i: usize| match i % 10 {
        3 => line(&format!("line-{i}"), "/v1/completions", &json!({ "prompt": "ab", "temperature": 9 })),
        5 => {
            let messages =
                json!([{ "role": "user", "content": "Hello." }, { "role": "assistant", "content": "Hi." }]);
            let body = json!({ "messages": messages, "add_generation_prompt": false, "max_tokens": 0,
                               "prompt_logprobs": 0, "prompt_logprobs_start": 20 });
            line(&format!("line-{i}"), "/v1/chat/completions", &body)
        }
        6 => {
            let body = json!({ "model": "m", "input": format!("text {i}"), "max_output_tokens": 1 + i % 7 });
            line(&format!("line-{i}"), "/v1/responses", &body)
        }
        7 => format!("{{\"custom_id\": \"line-{i}\"\n"),
        8 => line(&format!("line-{}", i / 100 * 100), "/v1/completions", &json!({ "prompt": "again" })),
        9 => line(&format!("line-{i}"), "/v1/images", &json!({})),
        _ => {
            let (prompt, tokens, n) = (format!("text {i}"), 1 + i % 5, 1 + i % 2);
            let body = json!({ "model": "m", "prompt": prompt, "max_tokens": tokens, "n": n });
            line(&format!("line-{i}"), "/v1/completions", &body)
        }
    };
    (0..LINES).map(request).collect()
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Waits until a process has written more.
fn until_larger(files: &Files, before: u64, process: &mut Child) {
    let end = Instant::now() + HANG_GUARD;
    while files.written() <= before {
        assert!(process.try_wait().unwrap().is_none(), "the run ended without a further record");
        assert!(Instant::now() < end, "no line ended");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Cuts the last record of a file in two, as a kill within a write does.
fn tear(path: &Path, random: &mut Random) {
    let content = std::fs::read(path).unwrap_or_default();
    if content.len() > 50 {
        let cut = content.len() - 1 - (random.bits() % 40) as usize;
        std::fs::write(path, &content[..cut]).unwrap();
    }
}

/// The tokens of a whole run and the rest of the line about it on standard error.
fn total(told: &str) -> (u64, &str) {
    let (_, line) = told.split_once("this run: 300 requests and ").expect(told);
    let (tokens, rest) = line.split_once(" tokens in ").expect(told);
    (tokens.parse().expect(told), rest.lines().next().expect(told))
}

#[test]
fn a_run_that_is_killed_and_resumed_writes_the_records_of_one_that_is_not() {
    let (files, model) = (Files::new(&requests()), model());
    let whole = files.simulated("whole.jsonl", model.path()).output().unwrap();
    let told = String::from_utf8_lossy(&whole.stderr).into_owned();
    assert_eq!(status(&whole), Some(3), "some lines fail: {told}");
    assert!(told.contains("180 answers in ") && told.contains("120 errors in "), "{told}");
    let (tokens, rate) = total(&told);
    assert!(tokens > 0 && rate.ends_with(" tokens/s"), "{told}");
    let mut random = Random::new(11);
    for kill in 0..KILLS {
        let before = files.written();
        let mut process = files.simulated("out.jsonl", model.path()).stderr(Stdio::null()).spawn().unwrap();
        until_larger(&files, before, &mut process);
        std::thread::sleep(Duration::from_millis(random.bits() % 10));
        process.kill().unwrap();
        process.wait().unwrap();
        let records = files.sorted("out.jsonl").len() + files.sorted("out.errors.jsonl").len();
        assert!(records < LINES, "the run ended before kill {kill}");
        let torn = if kill % 2 == 0 { "out.jsonl" } else { "out.errors.jsonl" };
        tear(&files.path(torn), &mut random);
    }
    let rest = files.simulated("out.jsonl", model.path()).output().unwrap();
    assert_eq!(status(&rest), Some(3), "{}", String::from_utf8_lossy(&rest.stderr));
    assert_eq!(files.sorted("out.jsonl"), files.sorted("whole.jsonl"));
    assert_eq!(files.sorted("out.errors.jsonl"), files.sorted("whole.errors.jsonl"));
    // A run with nothing to do loads no model and changes nothing.
    let before = files.text("out.jsonl");
    let again = files.simulated("out.jsonl", Path::new("/nonexistent")).output().unwrap();
    assert_eq!(status(&again), Some(3));
    assert_eq!(files.text("out.jsonl"), before);
    check_records(&files);
}

/// Checks the records of [`requests`].
fn check_records(files: &Files) {
    let record = |line: &String| serde_json::from_str::<Value>(line).expect("each line is a record");
    let answers: Vec<Value> = files.sorted("out.jsonl").iter().map(record).collect();
    let errors: Vec<Value> = files.sorted("out.errors.jsonl").iter().map(record).collect();
    for answer in &answers {
        let body = &answer["response"]["body"];
        assert_eq!(answer["response"]["status_code"], 200);
        let [created, details] = match body["object"].as_str() {
            Some("response") => ["created_at", "input_tokens_details"],
            _ => ["created", "prompt_tokens_details"],
        };
        assert_eq!((&body[created], &answer["error"]), (&json!(0), &Value::Null));
        assert_eq!(body["usage"][details]["cached_tokens"], 0);
    }
    let scored = answers.iter().find(|answer| answer["custom_id"] == "line-5").expect("it succeeded");
    let body = &scored["response"]["body"];
    let tokens = body["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(body["prompt_logprobs"].as_array().unwrap().len() as u64, tokens - 20);
    assert!(body["prompt_logprobs_sum"].as_f64().unwrap() < 0.0);
    let of_line =
        |number: u64| errors.iter().filter(|error| error["error"]["line"] == number).collect::<Vec<_>>();
    for (number, code, param) in [
        (8, "invalid_json_line", Value::Null),
        (9, "duplicate_custom_id", json!("custom_id")),
        (10, "invalid_url", json!("url")),
    ] {
        let found = of_line(number);
        assert_eq!(found.len(), 1, "line {number}");
        let error = &found[0]["error"];
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error.get("param").cloned().unwrap_or_default(), param, "{error}");
    }
    let hot = errors.iter().find(|error| error["custom_id"] == "line-3").expect("it failed");
    assert_eq!(hot["response"]["body"]["error"]["param"], "temperature");
}

#[test]
fn after_sigterm_running_lines_end_and_the_next_run_goes_on() {
    let (files, model) = (Files::new(&requests()), model());
    let mut process = files.simulated("out.jsonl", model.path()).stderr(Stdio::piped()).spawn().unwrap();
    until_larger(&files, 0, &mut process);
    assert!(Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap().success());
    let stopped = process.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(status(&stopped), Some(4), "{told}");
    assert!(told.contains("requests left; run the same command to continue"), "{told}");
    assert!(files.text("out.jsonl").ends_with('\n'));
    let rest = files.simulated("out.jsonl", model.path()).output().unwrap();
    assert_eq!(status(&rest), Some(3));
    let records = files.sorted("out.jsonl").len() + files.sorted("out.errors.jsonl").len();
    assert_eq!(records, LINES);
}

/// The standard error of a run that cannot begin, with files that need no server.
fn refusal(files: &Files, output: &str, more: &[&str]) -> String {
    let mut command = files.command(output);
    error_of(&command.args(["--endpoint", "http://127.0.0.1:1"]).args(more).output().unwrap(), 1)
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let good = line("a", "/v1/completions", &json!({ "prompt": "a" }));
    let files = Files::new(&good);
    let input = files.path("in.jsonl").to_string_lossy().into_owned();
    for (output, more, parts) in [
        ("in.jsonl", &[][..], &["in.jsonl: expected three different files"][..]),
        ("out.jsonl", &["--errors", &input], &["in.jsonl: expected three different files"]),
        ("no/out.jsonl", &[], &["no/out.jsonl: No such file"]),
    ] {
        let error = refusal(&files, output, more);
        parts.iter().for_each(|part| assert!(error.contains(part), "{output}: {error}"));
    }
    assert_eq!(files.text("in.jsonl"), good, "the input is never changed");
    // Lines of a file that this command did not write.
    let record = json!({ "id": "batch_req_0", "custom_id": "a", "response": null, "error": null });
    for (content, part) in [
        ("a note\n".to_owned(), "foreign.jsonl: line 1: expected a record that this command wrote"),
        (format!("{record}\n"), "line 1: expected a record of this input file, got `batch_req_0`"),
    ] {
        std::fs::write(files.path("foreign.jsonl"), &content).unwrap();
        let error = refusal(&files, "foreign.jsonl", &[]);
        assert!(error.contains(part), "{error}");
        assert_eq!(files.text("foreign.jsonl"), content, "nothing is cut off");
    }
    for (content, part) in
        [("\n \n", "in.jsonl: expected at least one request"), ("", "at least one request")]
    {
        let error = refusal(&Files::new(content), "out.jsonl", &[]);
        assert!(error.contains(part), "{error}");
    }
    let missing = octant(&["batch", "/nonexistent/in", "/tmp/out", &tiny()], &[]);
    assert!(error_of(&missing, 1).contains("/nonexistent/in: No such file"));
    let directory = octant(&["batch", "/tmp", "/tmp/out", &tiny()], &[]);
    assert!(error_of(&directory, 1).contains("/tmp: expected a regular file"));
}

#[test]
fn settings_without_a_meaning_are_refused() {
    for (line, error) in [
        ("batch in out", "--model: missing; expected a directory or a name, octant batch IN OUT MODEL, or"),
        ("batch in out m --port 80", "--port: octant batch has no such setting"),
        ("batch in out m --max-queue-requests 8", "--max-queue-requests: octant batch has no such setting"),
        ("batch in out m --give-up 8", "--give-up: needs --endpoint"),
        ("batch in out m --api-key k", "--api-key: needs --endpoint"),
        ("batch in out m --endpoint a", "MODEL: expected no model with --endpoint"),
        ("batch in out --endpoint a --device cpu", "--device: expected no setting of a model here"),
        ("batch in out m --concurrency 0", "--concurrency: expected at least 1, got 0"),
        ("batch in out m --gpus 0,1", "--gpus: expected --device cuda"),
    ] {
        let got = parsed(line).unwrap_err();
        assert!(got.starts_with(error), "{line}: {got}");
    }
    for line in [
        "batch in out m -tp 8 --device simulate --max-num-seqs 64 --errors e --step-timeout 60",
        "batch in out --model m",
        "batch in out --endpoint http://a:1 --endpoint b --api-key k --concurrency 4",
    ] {
        parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Requests that all succeed.
fn good_requests(count: usize) -> String {
    let request = |i: usize| {
        let body =
            json!({ "model": "parrot", "prompt": format!("request {i}"), "max_tokens": 6, "temperature": 1 });
        line(&format!("line-{i}"), "/v1/completions", &body)
    };
    (0..count).map(request).collect()
}

/// A server that refuses all but one request at a time.
fn narrow_server() -> TestServer {
    let mut setup = Setup::new();
    setup.config.max_queue_requests = 1;
    setup.config.max_num_seqs = 1;
    setup.launch()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_a_file_also_if_one_is_dead_and_one_refuses() {
    let files = Files::new(&good_requests(60));
    let (server, narrow) = (Setup::new().launch(), narrow_server());
    let urls = [url(server.address), url(narrow.address), "http://127.0.0.1:1".to_owned()];
    let run = files.by_servers("out.jsonl", &urls, &["--concurrency", "8"]).await;
    assert_eq!(status(&run), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    let records = files.sorted("out.jsonl");
    assert_eq!((records.len(), files.text("out.errors.jsonl").len()), (60, 0));
    for record in &records {
        let record: Value = serde_json::from_str(record).unwrap();
        let (id, body) = (record["custom_id"].as_str().unwrap(), &record["response"]["body"]);
        assert_eq!(body["choices"][0]["text"], format!("request {}", &id[5..])[..6], "{record}");
        assert_eq!(body["created"], 0);
    }
    // Another run gets the same bytes.
    let again = files.by_servers("again.jsonl", &urls[..1], &[]).await;
    assert_eq!(status(&again), Some(0));
    assert_eq!(files.sorted("again.jsonl"), records);
}

/// Requests of which the first 16 wait for each other, and then eight.
struct Rounds {
    seen: AtomicUsize,
    full: Barrier,
    half: Barrier,
}

/// A server that refuses its first 16 requests once all of them have arrived, and then answers none before
/// eight have arrived.
async fn server_of_eight() -> SocketAddr {
    let rounds = Rounds { seen: AtomicUsize::new(0), full: Barrier::new(16), half: Barrier::new(8) };
    let rounds = Arc::new(rounds);
    let answer = async move || {
        match rounds.seen.fetch_add(1, Ordering::SeqCst) {
            0..16 => {
                rounds.full.wait().await;
                return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response();
            }
            16..24 => _ = rounds.half.wait().await,
            _ => {}
        }
        axum::Json(json!({ "object": "text_completion" })).into_response()
    };
    let router = Router::new().fallback(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_lines_that_ran_together_halve_their_number_once() {
    let files = Files::new(&good_requests(16));
    let urls = [url(server_of_eight().await)];
    // With fewer than eight lines at a time the server would never answer.
    let run = files.by_servers("out.jsonl", &urls, &["--concurrency", "16"]).await;
    assert_eq!(status(&run), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(files.sorted("out.jsonl").len(), 16);
}

/// Requests for responses and chats whose answers are tool calls, each with a field that has no effect.
fn requests_of_calls() -> String {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let script = format!("a\n{call}\n{call}");
    let message = json!([{ "role": "user", "content": script }]);
    let chat = json!({ "messages": message, "tools": [{ "type": "function", "function": { "name": "now" } }],
                       "max_tokens": 150, "odd": 1 });
    let response = json!({ "input": message, "tools": [{ "type": "function", "name": "now" }],
                           "max_output_tokens": 150, "odd": 1 });
    line("chat", "/v1/chat/completions", &chat) + &line("response", "/v1/responses", &response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_responses_of_servers_have_the_same_bytes_in_each_run() {
    let files = Files::new(&requests_of_calls());
    let template =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}<|eos|>";
    let server = Setup { template, ..Setup::new() }.launch();
    for output in ["out.jsonl", "again.jsonl"] {
        let run = files.by_servers(output, &[url(server.address)], &[]).await;
        assert_eq!(status(&run), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    }
    let records = files.sorted("out.jsonl");
    assert_eq!(files.sorted("again.jsonl"), records);
    for record in &records {
        let record: Value = serde_json::from_str(record).unwrap();
        assert_eq!(record["response"]["ignored_fields"], json!(["odd"]));
        let body = &record["response"]["body"];
        let (calls, id) = match record["custom_id"].as_str().unwrap() {
            "chat" => (body["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone(), "id"),
            _ => (body["output"].as_array().unwrap()[1..].to_vec(), "call_id"),
        };
        assert_eq!(calls.len(), 2, "{record}");
        assert!(calls.iter().all(|call| call[id].as_str().unwrap().starts_with("call_")), "{record}");
        assert_ne!(calls[0][id], calls[1][id]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_without_any_server_ends_and_says_why() {
    let mut lines = good_requests(3);
    lines += &line("s", "/v1/completions", &json!({ "prompt": "a", "stream": true }));
    let files = Files::new(&lines);
    let urls = ["http://127.0.0.1:1".to_owned()];
    let run = files.by_servers("out.jsonl", &urls, &["--give-up", "0"]).await;
    let told = error_of(&run, 1);
    assert!(told.contains("no server has answered for 0 s; 127.0.0.1:1 failed last: "), "{told}");
    assert!(told.contains("run the same command to continue"), "{told}");
    let server = Setup::new().launch();
    let run = files.by_servers("out.jsonl", &[url(server.address)], &[]).await;
    assert_eq!(status(&run), Some(3));
    assert_eq!(files.sorted("out.jsonl").len(), 3);
    let error: Value = serde_json::from_str(&files.text("out.errors.jsonl")).unwrap();
    assert_eq!((&error["custom_id"], &error["response"]["status_code"]), (&json!("s"), &json!(400)));
    assert_eq!(error["response"]["body"]["error"]["param"], "stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_ends_the_run_instead_of_failing_each_line() {
    let files = Files::new(&good_requests(3));
    let mut setup = Setup::new();
    setup.settings.api_key = Some("right".to_owned());
    let server = setup.launch();
    let run = files.by_servers("out.jsonl", &[url(server.address)], &["--api-key", "wrong"]).await;
    assert!(error_of(&run, 1).contains("refuses access with status 401"));
    assert_eq!(files.written(), 0);
    let run = files.by_servers("out.jsonl", &[url(server.address)], &["--api-key", "right"]).await;
    assert_eq!(status(&run), Some(0));
}
