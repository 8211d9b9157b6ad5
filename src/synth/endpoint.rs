//! Requests to a role's server: attempts, waits that the server asks for, and errors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use ureq::Agent;

use super::error::SynthError;
use super::export::Turn;
use super::limiter::Limiter;
use super::recipe::{JudgeApi, Role};
use crate::http_client::{message, with_hint};
use crate::hub::{self, AgentOptions};

/// Pause after a full server's answer without `Retry-After`, and after the first failed attempt. It doubles
/// with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Part of a pause.
const PART: Duration = Duration::from_millis(100);
/// Longest pause that the server has not asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Time for which a server may refuse one request because it is full.
const MAX_FULL: Duration = Duration::from_secs(6 * 3600);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 20;
/// Most characters of a server's message.
const MAX_MESSAGE: usize = 300;

/// Requests and their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) requests: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Usage {
    fn add(&mut self, body: &Value) {
        let count = |name: &str| body["usage"][name].as_u64().unwrap_or(0);
        self.requests += 1;
        self.prompt_tokens += count("prompt_tokens");
        self.completion_tokens += count("completion_tokens");
    }
}

/// An answer to a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
}

impl Answer {
    /// Whether the limit of tokens ended the answer.
    pub(super) fn is_unfinished(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }
}

/// The reason why a request has no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server refuses this request; others may be answered.
    Refused(String),
    /// No request can be answered.
    Fatal(SynthError),
}

/// The reason why one attempt has no answer.
enum Attempt {
    /// The server is full.
    Full {
        message: String,
        wait: Option<Duration>,
    },
    /// The connection or the server fails; a later attempt may succeed.
    Failed(String),
    Refused(String),
    Fatal(String),
}

/// A role's server.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The role, for errors.
    name: String,
    /// Address up to `/v1`.
    base: String,
    key: Option<String>,
    agent: Agent,
    limiter: Limiter,
    pub(super) model: String,
    sampling: Map<String, Value>,
    attempts: u32,
    pub(super) api: JudgeApi,
    /// Most requests at once.
    pub(super) concurrency: usize,
}

impl Endpoint {
    /// Reads the key's variable; connects to nothing. `base` is the address of the server and `model` the
    /// name in requests.
    pub(super) fn new(name: &str, role: &Role, base: &str, model: String) -> Result<Self, SynthError> {
        let wrong = |message: String| SynthError::Endpoint { role: name.to_owned(), message };
        let key = match &role.api_key_env {
            None => None,
            Some(variable) => match std::env::var(variable) {
                Ok(key) if !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic()) => Some(key),
                Ok(_) => {
                    let text = format!("{variable}: expected a key in visible ASCII characters");
                    return Err(wrong(text));
                }
                Err(_) => {
                    let text = format!("{variable}: expected the API key in this variable; it is not set");
                    return Err(wrong(text));
                }
            },
        };
        let base = base.trim_end_matches('/');
        let is_direct =
            ["http://127.", "http://localhost", "http://[::1]"].iter().any(|p| base.starts_with(p));
        let timeout = Duration::from_secs(role.timeout);
        let options = AgentOptions { timeout, connections: Some(role.concurrency), is_direct };
        Ok(Self {
            name: name.to_owned(),
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
            key,
            agent: hub::agent(&options).map_err(|error| wrong(error.to_string()))?,
            limiter: Limiter::new(role.concurrency),
            model,
            sampling: role.sampling.clone(),
            attempts: role.attempts,
            api: role.api,
            concurrency: role.concurrency,
        })
    }

    /// The next turn of a conversation.
    pub(super) fn chat(
        &self,
        messages: &[Turn],
        format: Option<Value>,
        seed: u64,
        job: &mut Job<'_>,
    ) -> Result<Answer, CallError> {
        let mut body = self.sampling.clone();
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), json!(messages));
        // Some servers read a signed number of 32 bits.
        body.insert("seed".to_owned(), json!(seed & 0x7fff_ffff));
        if let Some(format) = format {
            body.insert("response_format".to_owned(), format);
        }
        let answer = self.post("/v1/chat/completions", &Value::Object(body), job)?;
        let choice = &answer["choices"][0];
        let Some(text) = choice["message"]["content"].as_str() else {
            let got = short(&answer.to_string());
            return Err(CallError::Refused(format!("expected choices[0].message.content; got {got}")));
        };
        let finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
        Ok(Answer { text: text.to_owned(), finish_reason })
    }

    /// Sends a request until it is answered or refused.
    pub(super) fn post(&self, path: &str, body: &Value, job: &mut Job<'_>) -> Result<Value, CallError> {
        let begun = Instant::now();
        let (mut failures, mut refusals) = (0, 0);
        loop {
            let stopped = || job.stop.load(Ordering::Relaxed);
            let place = self.limiter.place(stopped).ok_or(CallError::Fatal(SynthError::Interrupted))?;
            let attempt = self.attempt(path, body);
            drop(place);
            let pause = match attempt {
                Ok(answer) => {
                    self.limiter.succeeded();
                    job.usage.add(&answer);
                    return Ok(answer);
                }
                Err(Attempt::Full { message, .. }) if begun.elapsed() > MAX_FULL => {
                    return Err(self.fatal(format!("{message}, for the last {} s", MAX_FULL.as_secs())));
                }
                Err(Attempt::Full { message, wait }) => {
                    let pause = wait.unwrap_or_else(|| doubled(refusals)).min(MAX_RETRY_AFTER);
                    refusals += 1;
                    tracing::debug!("{}: {message}; retry in {:.1} s", self.name, pause.as_secs_f64());
                    self.limiter.slow_down(pause);
                    continue;
                }
                Err(Attempt::Failed(message)) => {
                    failures += 1;
                    if failures >= self.attempts {
                        return Err(self.fatal(format!("{message} ({failures} attempts)")));
                    }
                    let pause = doubled(failures - 1);
                    tracing::info!("{}: {message}; tries again in {:.1} s", self.name, pause.as_secs_f64());
                    pause
                }
                Err(Attempt::Refused(message)) => return Err(CallError::Refused(message)),
                Err(Attempt::Fatal(message)) => return Err(self.fatal(message)),
            };
            // In parts, so that a run that ends does not wait.
            let until = Instant::now() + pause;
            while Instant::now() < until && !stopped() {
                sleep(PART);
            }
        }
    }

    fn attempt(&self, path: &str, body: &Value) -> Result<Value, Attempt> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        request = request.header("content-type", "application/json").header("accept", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let failed = |error: &ureq::Error| {
            let text = error.to_string();
            let is_final = text.contains("certificate");
            let text = format!("{}: {}", self.base, with_hint(text));
            if is_final { Attempt::Fatal(text) } else { Attempt::Failed(text) }
        };
        let mut response = request.send(body.to_string().as_bytes()).map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let wait = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let text = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let text = text.map_err(|error| failed(&error))?;
        let answer: Result<Value, _> = serde_json::from_slice(&text);
        if status == 200 {
            return answer
                .map_err(|error| Attempt::Failed(format!("{}{path}: expected JSON; {error}", self.base)));
        }
        let said = match &answer {
            Ok(value) => message(value),
            Err(_) => String::from_utf8_lossy(&text).trim().to_owned(),
        };
        // A reject has no address: a local server has another port in each run.
        let status_said = format!("status {status}: {}", short(&said));
        let said = format!("{}{path} answers with {status_said}", self.base);
        Err(match status {
            429 | 503 => Attempt::Full { message: said, wait },
            408 | 500.. => Attempt::Failed(said),
            400 | 413 | 422 => Attempt::Refused(status_said),
            _ => Attempt::Fatal(said),
        })
    }

    /// An error that ends the stage.
    pub(super) fn fatal(&self, message: String) -> CallError {
        CallError::Fatal(SynthError::Endpoint { role: self.name.clone(), message })
    }
}

/// The state that the requests of one item share.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// Ends waits when the run ends.
    pub(super) stop: &'a AtomicBool,
    /// Requests so far, with their tokens.
    pub(super) usage: Usage,
}

fn doubled(before: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << before.min(10)).min(LONGEST_PAUSE)
}

/// The start of a text, for messages.
pub(super) fn short(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_MESSAGE).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}
