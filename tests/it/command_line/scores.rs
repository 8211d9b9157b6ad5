//! A model with a reward head in the binary: `octant serve`, and `octant batch` without and with a server.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use octant::simulator::SyntheticAnswers;
use octant::text::{ChatMessage, ChatTemplate, RenderOptions, Role, Tokenizer};
use serde_json::{Value, json};

use crate::http::client;
use crate::http::rewards::{CARD, FIVE, number, score, turns};

const BINARY: &str = env!("CARGO_BIN_EXE_octant");
const REWARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-reward");

/// A directory with the reward model's files except weights and tokenizer, and a small tokenizer.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(REWARD).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text/sentencepiece");
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(tokenizer.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// The values of the simulated head after a conversation.
fn values(dir: &Path, texts: &[&str]) -> Vec<f32> {
    let tokenizer = Tokenizer::from_dir(dir).unwrap();
    let template = ChatTemplate::from_dir(dir, &tokenizer).unwrap().unwrap();
    let role = |i: usize| if i.is_multiple_of(2) { Role::User } else { Role::Assistant };
    let messages: Vec<ChatMessage> =
        texts.iter().enumerate().map(|(i, text)| ChatMessage::new(role(i), *text)).collect();
    let rendered = template.render(&messages, &RenderOptions::default()).unwrap();
    let ids = tokenizer.encode_prompt(&rendered).unwrap();
    SyntheticAnswers::rewards(&ids, 9)[4..].to_vec()
}

const SIMULATED: [&str; 6] = ["--served-model-name", "judge", "--device", "simulate", "--simulate-pace", "0"];

/// A server that is killed when it is dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(model: &Path, more: &[&str]) -> Self {
        let mut process = Command::new(BINARY)
            .env_clear()
            .args(["serve", &model.to_string_lossy(), "--port", "0"])
            .args(SIMULATED)
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut told = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("the server ended: {told:#?}"));
            if let Some((_, address)) = line.split_once("http://") {
                break address.trim().parse().unwrap();
            }
            told.push(line);
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

#[tokio::test]
async fn a_checkpoint_with_a_reward_head_is_served() {
    let model = model();
    let server = Server::start(model.path(), &[]);
    let texts = ["What is 1 + 1?", "2."];
    let expected = values(model.path(), &texts);
    let body = json!({ "model": "judge", "messages": turns(&texts) });
    let reply = client::post(server.address, "/v1/reward", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = reply.json();
    assert_eq!(reply["attributes"], json!(FIVE));
    assert_eq!(reply["data"][0]["score"], score(&expected, &CARD));
    let chat = client::post(server.address, "/v1/chat/completions", &body).await.json();
    assert_eq!(chat["choices"][0]["logprobs"]["content"][4]["logprob"], number(expected[4]));
    let tokens = client::post(server.address, "/tokenize", &json!({ "messages": turns(&texts) })).await;
    assert_eq!(tokens.json()["count"], reply["usage"]["prompt_tokens"]);
    let own = Server::start(model.path(), &["--reward-weights", "verbosity=-1,helpfulness=0.5"]);
    let reply = client::post(own.address, "/v1/reward", &body).await.json();
    assert_eq!(reply["data"][0]["score"], score(&expected, &[0.5, 0.0, 0.0, 0.0, -1.0]));
}

#[tokio::test]
async fn octant_batch_scores_lines_without_and_with_a_server() {
    let model = model();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let conversation = |i: usize| [format!("Question {i}?"), format!("Answer {}.", i % 5)];
    let line = |i: usize| {
        let [question, answer] = conversation(i);
        let url = if i.is_multiple_of(7) { "/v1/chat/completions" } else { "/v1/reward" };
        let body = json!({ "model": "judge", "messages": turns(&[&question, &answer]) });
        let line = json!({ "custom_id": i.to_string(), "method": "POST", "url": url, "body": body });
        format!("{line}\n")
    };
    std::fs::write(path("in.jsonl"), (0..30).map(line).collect::<String>()).unwrap();
    let run = |output: &str, args: Vec<String>| {
        let output = path(output);
        let mut command = Command::new(BINARY);
        command.env_clear().args(["batch", &path("in.jsonl"), &output]).args(args);
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let mut lines: Vec<String> =
            std::fs::read_to_string(output).unwrap().lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let mut args = vec![model.path().to_string_lossy().into_owned()];
    args.extend(SIMULATED.map(str::to_owned));
    let local = run("local.jsonl", args);
    // A server that refuses unknown fields shows that nothing is added to lines that are scored.
    let server = Server::start(model.path(), &["--reject-unknown-fields", "true"]);
    let remote = run("remote.jsonl", vec!["--endpoint".to_owned(), format!("http://{}", server.address)]);
    let parsed = |lines: &[String]| -> Vec<Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(local.len(), 30);
    for (local, remote) in parsed(&local).iter().zip(parsed(&remote)) {
        let (body, id) = (&local["response"]["body"], local["custom_id"].as_str().unwrap());
        assert_eq!(*body, remote["response"]["body"], "{id}");
        let [question, answer] = conversation(id.parse().unwrap());
        let expected = values(model.path(), &[&question, &answer]);
        assert_eq!(body["created"], 0);
        if body["object"] == "list" {
            assert!(body["id"].as_str().unwrap().starts_with("reward-"), "{body}");
            assert_eq!(body["data"][0]["score"], score(&expected, &CARD));
        } else {
            let entry = &body["choices"][0]["logprobs"]["content"][0];
            assert_eq!((&entry["token"], &entry["logprob"]), (&json!(FIVE[0]), &number(expected[0])));
        }
    }
}
