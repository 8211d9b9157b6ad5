//! `octant chat` as a process, in a pipe and on a terminal, with a server that repeats what it is sent.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::HANG_GUARD;
use crate::fake::FakeExecutor;
use crate::http::test_server::{BOS, Setup, TestServer, config};

const BINARY: &str = env!("CARGO_BIN_EXE_octant");

fn url(server: &TestServer) -> String {
    format!("http://{}", server.address)
}

/// Runs `octant chat` with this standard input, beside the server.
async fn pipe(args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("chat").args(args).env_clear().envs(env.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_vec();
    let run = tokio::task::spawn_blocking(move || {
        let mut process = command.spawn().unwrap();
        // A run that fails at once does not read its input.
        let _closed = process.stdin.take().unwrap().write_all(&input);
        process.wait_with_output().unwrap()
    });
    tokio::time::timeout(HANG_GUARD, run).await.expect("the chat ends").unwrap()
}

/// Standard output and standard error of a run with this exit status.
fn texts(output: &Output, status: i32) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8(text.clone()).unwrap());
    assert_eq!(output.status.code(), Some(status), "{out}\n{err}");
    (out, err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_pipe_the_answer_alone_is_on_standard_output() {
    let server = Setup::new().launch();
    let (out, err) = texts(&pipe(&[&url(&server)], &[], b"hi there\n").await, 0);
    assert_eq!(out, "hi there\n");
    assert!(err.contains("tokens in, ") && err.contains("first after"), "{err}");
    let lines = b"one\n\n  two\n\n";
    assert_eq!(texts(&pipe(&[&url(&server)], &[], lines).await, 0).0, "one\n\n  two\n");
    // A host without a scheme, and the base path that client libraries take.
    let host = format!("{}/v1", server.address);
    assert_eq!(texts(&pipe(&[&host], &[], b"hi").await, 0).0, "hi\n");
    // The template writes the texts of all messages.
    let args = [&*url(&server), "--system", "sys ", "--max-tokens", "6", "--seed", "7", "--temperature", "0"];
    let (out, err) = texts(&pipe(&args, &[], b"abcdef").await, 0);
    assert_eq!(out, "sys ab\n");
    assert!(err.contains("6 out") && err.contains("token limit reached"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_characters_of_an_answer_are_shown_and_not_sent_to_the_terminal() {
    let server = Setup::new().launch();
    let input = "\x1b[31mred\x1b]0;title\x07 \u{9b}2J \x7f\r\x08 tab\t line\n end é 漢";
    let (out, _) = texts(&pipe(&[&url(&server)], &[], input.as_bytes()).await, 0);
    assert_eq!(out, "␛[31mred␛]0;title␇ \u{fffd}2J ␡␍␈ tab\t line\n end é 漢\n");
    let args = [&*url(&server), "--model", "\x1b[2Jother"];
    let (_, err) = texts(&pipe(&args, &[], b"a").await, 1);
    assert!(err.contains("␛[2Jother") && !err.contains('\x1b'), "{err:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_what_is_wrong_and_end_with_status_1() {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    let server = setup.launch();
    let url = url(&server);
    let key = ("OCTANT_API_KEY", "secret");
    let nothing_listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = format!("http://{nothing_listens}");
    for (args, env, input, expected) in [
        (&[&*closed][..], &[][..], "a", "cannot reach 127.0.0.1:"),
        (&["https://exa_mple..org"], &[], "a", "exa_mple..org: expected a host name or an address"),
        (&["ftp://example.org"], &[], "a", "expected http://"),
        (
            &[&url],
            &[],
            "a",
            "Incorrect API key provided. (HTTP 401, invalid_api_key); --api-key or OCTANT_API_KEY",
        ),
        (&[&url, "--api-key", "wrong"], &[], "a", "HTTP 401"),
        (&[&url, "--api-key", "a\nb"], &[], "a", "the API key has characters"),
        (&[&url, "--temperature", "9"], &[key], "a", "temperature: expected a number from 0 to 2, got 9"),
        (&[&url, "--extra-body", r#"{"n": 0}"#], &[key], "a", "n: expected"),
        (&[&url, "--model", "other"], &[key], "a", "The model `other` does not exist. (HTTP 404"),
        (&[&url], &[key], "", "standard input: expected a message, got nothing"),
        (&[&url], &[key], " \n", "standard input: expected a message, got nothing"),
    ] {
        let (out, err) = texts(&pipe(args, env, input.as_bytes()).await, 1);
        assert!(
            out.is_empty() && err.starts_with("error: ") && err.contains(expected),
            "{args:?}: {out} {err}"
        );
    }
    let (_, err) = texts(&pipe(&[&url], &[key], b"\xff").await, 1);
    assert!(err.contains("expected UTF-8"), "{err}");
    let (_, err) = texts(&pipe(&[&url, "--extra-body", "[]"], &[key], b"a").await, 2);
    assert!(err.contains("expected a JSON object"), "{err}");
    assert_eq!(texts(&pipe(&[&url], &[key], b"a").await, 0).0, "a\n");
    assert_eq!(texts(&pipe(&[&url, "--api-key", "secret"], &[], b"a").await, 0).0, "a\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_chat_template_the_error_says_what_to_do() {
    let server = Setup { template: "", ..Setup::new() }.launch();
    let (out, err) = texts(&pipe(&[&url(&server)], &[], b"hi").await, 1);
    assert_eq!(out, "");
    for part in ["no chat template", "(HTTP 400", "chat_template.jinja in the model's directory", "-Instruct"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
}

/// A chat on a terminal of its own.
struct Terminal {
    process: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    /// Everything shown that no call has taken.
    shown: String,
}

impl Terminal {
    fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        tcsetwinsize(&keys, Winsize { ws_row: 40, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = ptsname(&keys, Vec::new()).unwrap().into_string().unwrap();
        let terminal = || File::options().read(true).write(true).open(&name).unwrap();
        // Makes the terminal the controlling one, so that it turns Ctrl-C into a signal.
        let process = Command::new("setsid")
            .args(["--ctty", BINARY, "chat"])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TERM", "xterm")
            .envs(env.iter().copied())
            .stdin(terminal())
            .stdout(terminal())
            .stderr(terminal())
            .spawn()
            .unwrap();
        let keys = File::from(keys);
        let mut reader = keys.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut part) {
                if sender.send(part[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { process, keys, screen, shown: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows the text, and takes everything up to its end.
    fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + HANG_GUARD;
        loop {
            if let Some(at) = self.shown.find(text) {
                return self.shown.drain(..at + text.len()).collect();
            }
            let part = self.screen.recv_timeout(end.saturating_duration_since(Instant::now()));
            let part = part.unwrap_or_else(|_| panic!("not shown: {text:?} in {:?}", self.shown));
            self.shown.push_str(&String::from_utf8_lossy(&part));
        }
    }

    /// Waits for the end, and returns the exit status.
    fn end(mut self) -> Option<i32> {
        let end = Instant::now() + HANG_GUARD;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > end {
                self.process.kill().unwrap();
                panic!("the chat did not end: {:?}", self.shown);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Beginning of the figures below an answer.
const DIM: &str = "\x1b[2m";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_on_a_terminal_has_history_and_commands() {
    let server = Setup::new().launch();
    let url = url(&server);
    let chat = move || {
        let mut terminal = Terminal::start(&[&url]);
        assert!(terminal.until("/help lists the commands").contains("parrot at 127.0.0.1:"));
        terminal.until("> ");
        terminal.press("one,\r");
        terminal.until("\none,\r\n");
        assert!(terminal.until("> ").contains("out"));
        // The second prompt has the first message, its answer and the new message.
        terminal.press("two,\r");
        terminal.until("\none,one,two,\r\n");
        terminal.until("> ");
        // The arrow key brings the last input back.
        terminal.press("/clear\r");
        terminal.until("The conversation is empty.");
        terminal.until("> ");
        terminal.press("\x1b[A\x1b[A\r");
        terminal.until("\ntwo,\r\n");
        terminal.until("> ");
        terminal.press("/retry\r");
        terminal.until("\ntwo,\r\n");
        terminal.until("> ");
        terminal.press("/system Sys.\r");
        terminal.until("System prompt: Sys.");
        terminal.until("> ");
        terminal.press("/clear\r");
        terminal.until("> ");
        terminal.press("a\\\r");
        terminal.until("… ");
        terminal.press("b\r");
        terminal.until("\nSys.a\r\nb\r\n");
        terminal.until("> ");
        terminal.press("/nope\r");
        terminal.until("error: unknown command /nope");
        terminal.until("> ");
        terminal.press("/help\r");
        terminal.until("/continue");
        terminal.until("> ");
        terminal.press("/load\r");
        terminal.until("0 requests running, 0 waiting, 0.0 % of the KV cache used");
        terminal.until("> ");
        // The server gives letters with even codes a probability of 0.78, and those with odd ones 0.22.
        terminal.press("/clear\r");
        terminal.until("> ");
        terminal.press("/system -\r");
        terminal.until("> ");
        terminal.press("/logprobs on\r");
        terminal.until("\x1b[31mless");
        terminal.until("> ");
        terminal.press("bcd\r");
        terminal.until("\x1b[36mb\x1b[0m\x1b[35mc\x1b[0m\x1b[36md\x1b[0m\r\n");
        terminal.until("> ");
        terminal.press("/logprobs off\r");
        terminal.until("Tokens have no colours.");
        terminal.until("> ");
        terminal.press("/retry\r");
        terminal.until("\nbcd\r\n");
        terminal.until("> ");
        terminal.press("/quit\r");
        assert_eq!(terminal.end(), Some(0));
    };
    tokio::task::spawn_blocking(chat).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_stops_an_answer_and_at_the_prompt_the_chat() {
    let executor = FakeExecutor::new(&config()).parrot(BOS).delay(Duration::from_millis(30));
    let server = Setup::new().launch_with(executor);
    let url = url(&server);
    let chat = move || {
        let mut terminal = Terminal::start(&[&url]);
        terminal.until("> ");
        terminal.press("/retry\r");
        terminal.until("error: there is no message to answer again");
        terminal.until("> ");
        terminal.press(&format!("{}\r", "0123456789".repeat(20)));
        // The echo of the input, then a part of the answer.
        terminal.until("\n0123");
        terminal.press("\x03");
        let shown = terminal.until("stopped; about");
        assert!(shown.contains(DIM) && shown.len() < 150, "{shown}");
        terminal.until("> ");
        terminal.press("\x03");
        assert_eq!(terminal.end(), Some(130));
        let mut terminal = Terminal::start(&[&url]);
        terminal.until("> ");
        terminal.press("\x04");
        assert_eq!(terminal.end(), Some(0));
    };
    tokio::task::spawn_blocking(chat).await.unwrap();
    server.until_empty().await;
}

/// A server with two engines that refuses log-probabilities and answers "plain".
async fn other_server() -> SocketAddr {
    let metrics = "vllm:num_requests_running{engine=\"0\"} 3.0\nvllm:num_requests_running{engine=\"1\"} 4.0\n\
        vllm:num_requests_waiting{engine=\"0\"} 0.0\nvllm:num_requests_waiting{engine=\"1\"} 1.0\n\
        vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n";
    let chat = async |body: Bytes| {
        let body: Value = serde_json::from_slice(&body).unwrap();
        if body.get("logprobs").is_some() {
            return (StatusCode::BAD_REQUEST, "no logprobs here").into_response();
        }
        let chunk = json!({ "choices": [{ "delta": { "content": "plain" }, "finish_reason": "stop" }] });
        ([("content-type", "text/event-stream")], format!("data: {chunk}\n\ndata: [DONE]\n\n"))
            .into_response()
    };
    let models = async || axum::Json(json!({ "data": [{ "id": "other" }] }));
    let router = Router::new()
        .route("/v1/models", routing::get(models))
        .route("/metrics", routing::get(metrics))
        .route("/v1/chat/completions", routing::post(chat));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_colours_no_logprobs_are_asked_for_and_the_load_is_that_of_all_engines() {
    let address = other_server().await.to_string();
    let chat = move || {
        let mut terminal = Terminal::start_with(&[&address], &[("NO_COLOR", "1")]);
        terminal.until("> ");
        terminal.press("/load\r");
        terminal.until("7 requests running, 1 waiting, 62.5 % of the KV cache used");
        terminal.until("> ");
        terminal.press("/logprobs on\r");
        terminal.until("error: the terminal shows no colours");
        terminal.until("> ");
        terminal.press("hi\r");
        terminal.until("\nplain\r\n");
        terminal.until("> ");
        terminal.press("/quit\r");
        assert_eq!(terminal.end(), Some(0));
    };
    tokio::task::spawn_blocking(chat).await.unwrap();
}
