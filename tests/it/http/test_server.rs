//! A server to test: a tokenizer whose tokens are single bytes, an engine over a fake executor that repeats
//! the prompt ("parrot"), and the real HTTP front end on a free port of the loopback address.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octant::engine::{Engine, EngineHandle, EngineOptions, EngineThread, Executor, Stats};
use octant::generation::{ChatTemplate, Generator, Tokenizer};
use octant::scheduler::SchedulerConfig;
use octant::server::metrics::engine_metrics;
use octant::server::{DrainTimes, Ended, ServerState, ServerStatus, Settings, Signal, Signals, bind, serve};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::{self, Reply};
use crate::HANG_GUARD;
use crate::fake::FakeExecutor;

pub const EOS: u32 = 257;
pub const BOS: u32 = 258;
/// Token ids of the tokenizer.
pub const VOCAB: usize = 260;
/// Token ids of the model, which has a few rows more as padding.
pub const PADDED_VOCAB: usize = 264;

/// The messages' texts, then the end token. The parrot executor repeats it, so the reply is the messages'
/// text.
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}<|eos|>";

/// Settings of a test server.
pub struct Setup {
    /// Source of the chat template; an empty one stands for a model without a template.
    pub template: &'static str,
    pub config: SchedulerConfig,
    pub settings: Settings,
    pub times: DrainTimes,
    pub stall_margin: Duration,
    pub start: EngineOptions,
}

impl Setup {
    pub fn new() -> Self {
        let times = DrainTimes { grace: Duration::ZERO, timeout: Duration::from_secs(10) };
        let settings = Settings::new("parrot", vec![EOS]);
        Self {
            template: TEMPLATE,
            config: config(),
            settings,
            times,
            stall_margin: Duration::from_secs(60),
            start: EngineOptions { metrics: engine_metrics(), ..EngineOptions::new(2) },
        }
    }

    /// Settings of a server whose answer to a chat is the text of the last message.
    pub fn last_message() -> Self {
        Self { template: "{{ messages[-1].content }}<|eos|>", ..Self::new() }
    }

    /// Starts a server over this executor.
    pub fn launch_with(self, executor: impl Executor + 'static) -> TestServer {
        self.launch_over(executor, tokenizer())
    }

    /// Starts a server over this executor and tokenizer.
    pub fn launch_over(self, executor: impl Executor + 'static, tokenizer: Tokenizer) -> TestServer {
        let (engine, thread) = Engine::start_with(self.config, Box::new(executor), self.start).unwrap();
        let tokenizer = Arc::new(tokenizer);
        let source = Some(self.template).filter(|source| !source.is_empty());
        let template = source
            .map(|source| ChatTemplate::from_source(source, &tokenizer).expect("the template compiles"));
        let generator = Generator::new(engine.clone(), tokenizer, template, 1 << 20);
        let status = ServerStatus::new(self.stall_margin);
        let state = ServerState::new(generator, self.settings, Arc::clone(&status));
        let listener = bind(&[SocketAddr::from(([127, 0, 0, 1], 0))]).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (signals, receiver) = mpsc::channel(4);
        let mut receiver = Signals::new(receiver);
        let served = tokio::spawn(async move { serve(listener, state, &mut receiver, self.times).await });
        TestServer { address, engine, thread, status, signals, served }
    }

    /// Starts a server over the parrot executor.
    pub fn launch(self) -> TestServer {
        let executor = FakeExecutor::new(&self.config).parrot(BOS);
        self.launch_with(executor)
    }
}

/// A running server.
pub struct TestServer {
    pub address: SocketAddr,
    pub engine: EngineHandle,
    pub thread: EngineThread,
    pub status: Arc<ServerStatus>,
    /// Each message is a shutdown signal.
    pub signals: mpsc::Sender<Signal>,
    pub served: JoinHandle<Ended>,
}

pub fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 128,
        max_model_len: 512,
        num_blocks: 64,
        vocab_size: PADDED_VOCAB,
        max_queue_requests: 64,
        max_queue_tokens: 65_536,
        prefix_caching: true,
        reward_width: 0,
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    }
}

impl TestServer {
    pub async fn get(&self, path: &str) -> Reply {
        client::get(self.address, path).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        client::post(self.address, path, &body).await
    }

    /// Sends a chat of one message, with further fields.
    pub async fn chat(&self, text: &str, more: Value) -> Reply {
        self.post("/v1/chat/completions", chat_body(text, more)).await
    }

    /// Sends a text completion, with further fields.
    pub async fn complete(&self, prompt: impl Into<Value>, more: Value) -> Reply {
        let body = merged(json!({ "model": "parrot", "prompt": prompt.into() }), more);
        self.post("/v1/completions", body).await
    }

    /// Waits until the engine's stats meet a condition.
    pub async fn until(&self, wanted: impl Fn(&Stats) -> bool) {
        let end = Instant::now() + HANG_GUARD;
        loop {
            let stats = self.engine.stats();
            if wanted(&stats) {
                return;
            }
            assert!(Instant::now() < end, "the stats did not get there: {stats:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until no request runs, waits or holds a KV block.
    pub async fn until_empty(&self) {
        self.until(|stats| {
            stats.counts.running + stats.counts.waiting + stats.counts.blocks_used == 0 && !stats.pending()
        })
        .await;
    }
}

pub fn chat_body(text: &str, more: Value) -> Value {
    merged(json!({ "model": "parrot", "messages": [{ "role": "user", "content": text }] }), more)
}

pub fn merged(mut body: Value, more: Value) -> Value {
    let fields = body.as_object_mut().expect("a body is an object");
    fields.extend(more.as_object().expect("more fields are an object").clone());
    body
}

/// A byte-level tokenizer: ids 0 to 255 are the bytes, 256 is "ll", and 257 to 259 are special tokens.
pub fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_tokenizer(dir.path());
    Tokenizer::from_dir(dir.path()).expect("the tokenizer is sound")
}

pub fn write_tokenizer(dir: &Path) {
    let mut vocab = serde_json::Map::new();
    for (id, letter) in byte_letters().into_iter().enumerate() {
        vocab.insert(letter.to_string(), id.into());
    }
    vocab.insert("ll".to_owned(), 256.into());
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
    };
    let bos = json!({ "SpecialToken": { "id": "<|bos|>", "type_id": 0 } });
    let [first, second] =
        [("A", 0), ("B", 1)].map(|(id, type_id)| json!({ "Sequence": { "id": id, "type_id": type_id } }));
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(EOS, "<|eos|>"), special(BOS, "<|bos|>"), special(259, "<|turn|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, second],
            "special_tokens": { "<|bos|>": { "id": "<|bos|>", "ids": [BOS], "tokens": ["<|bos|>"] } },
        },
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "ignore_merges": false,
                   "vocab": vocab, "merges": [["l", "l"]] },
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("it can be written");
    let config = json!({ "bos_token": "<|bos|>", "eos_token": "<|eos|>" });
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).expect("it can be written");
}

/// The character that a byte-level vocabulary writes for each byte.
fn byte_letters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256..;
    let letter = |byte: u32| if printable(byte) { byte } else { next.next().expect("the range is endless") };
    (0..256).map(letter).map(|code| char::from_u32(code).expect("a character")).collect()
}

/// Returns the value of the only sample with this name and all these labels, each given as `name="value"`.
pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let is_it = |line: &&str| {
        let rest = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{'));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    };
    let lines: Vec<&str> = text.lines().filter(is_it).collect();
    assert_eq!(lines.len(), 1, "{name} {labels:?}: {lines:?}");
    lines[0].rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a sample ends with its value")
}
