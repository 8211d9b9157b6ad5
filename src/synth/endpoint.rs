//! Requests to a role's server: attempts, waits that the server asks for, and errors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use ureq::Agent;

use super::back_off::{Next, Overload, Refusals};
use super::error::SynthError;
use super::export::Turn;
use super::limiter::Limiter;
use super::recipe::{JudgeApi, Role};
use crate::http_client::{doubled, message, pause_asked, with_hint};
use crate::hub::{self, AgentOptions};

/// Part of a pause.
const PART: Duration = Duration::from_millis(100);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 20;
/// Most bytes of a refused request's reply that are kept.
const MAX_REPLY: usize = 64 << 10;
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

/// A request that the server refuses, or a reply that cannot be used.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The fault, with the start of the reply.
    pub(super) message: String,
    /// The turns of the request.
    pub(super) messages: Vec<Turn>,
    /// The reply; of one longer than 64 KiB the start, with a mark at its end.
    pub(super) reply: String,
}

impl Refusal {
    /// A refusal without the turns of its request.
    pub(super) fn new(message: String, reply: &str) -> Self {
        let start = reply.floor_char_boundary(MAX_REPLY);
        let reply = match &reply[start..] {
            "" => reply.to_owned(),
            rest => format!("{} … ({} more bytes)", &reply[..start], rest.len()),
        };
        Self { message, messages: Vec::new(), reply }
    }
}

/// The reason why a request has no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server refuses this request; others may be answered.
    Refused(Refusal),
    /// No request can be answered.
    Fatal(SynthError),
}

impl CallError {
    /// The same error; a refusal has these turns.
    pub(super) fn with_turns(self, messages: &[Turn]) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(Refusal { messages: messages.to_vec(), ..refusal }),
            Self::Fatal(error) => Self::Fatal(error),
        }
    }
}

/// The reason why one attempt has no answer.
enum Attempt {
    /// The server is full or not available.
    Overloaded {
        message: String,
        status: u16,
        retry_after: Option<Duration>,
    },
    /// The connection or the server fails; a later attempt may succeed.
    Failed(String),
    Refused(Refusal),
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
        let answer = self.post("/v1/chat/completions", &Value::Object(body), job);
        let answer = answer.map_err(|error| error.with_turns(messages))?;
        let choice = &answer["choices"][0];
        let Some(text) = choice["message"]["content"].as_str() else {
            let reply = answer.to_string();
            let message = format!("expected choices[0].message.content; got {}", short(&reply));
            return Err(CallError::Refused(Refusal::new(message, &reply)).with_turns(messages));
        };
        let finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
        Ok(Answer { text: text.to_owned(), finish_reason })
    }

    /// Sends a request until it is answered or refused.
    pub(super) fn post(&self, path: &str, body: &Value, job: &mut Job<'_>) -> Result<Value, CallError> {
        let (mut failures, mut refusals) = (0, Refusals::default());
        loop {
            let stopped = || job.stop.load(Ordering::Relaxed);
            let place = self.limiter.place(stopped).ok_or(CallError::Fatal(SynthError::Interrupted))?;
            let sent = Instant::now();
            let attempt = self.attempt(path, body);
            if matches!(attempt, Ok(_) | Err(Attempt::Refused(_))) {
                self.limiter.answered();
            }
            let pause = match attempt {
                Ok(answer) => {
                    job.usage.add(&answer);
                    return Ok(answer);
                }
                Err(Attempt::Overloaded { message, status, retry_after }) => {
                    let overload = Overload { status, retry_after, sent, now: Instant::now() };
                    // The place is given back after the gate has closed, so that no other request takes it
                    // before.
                    self.overloaded(&mut refusals, overload, &message)?;
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
                Err(Attempt::Refused(refusal)) => return Err(CallError::Refused(refusal)),
                Err(Attempt::Fatal(message)) => return Err(self.fatal(message)),
            };
            drop(place);
            // In parts, so that a run that ends does not wait.
            let until = Instant::now() + pause;
            while Instant::now() < until && !stopped() {
                sleep(PART);
            }
        }
    }

    /// Closes the server's gate for a pause, or gives up.
    fn overloaded(
        &self,
        refusals: &mut Refusals,
        overload: Overload,
        message: &str,
    ) -> Result<(), CallError> {
        let name = &self.name;
        match self.limiter.overloaded(refusals, overload) {
            Next::Pause { pause, warn: Some(since) } => {
                let silence = match since.as_secs() {
                    0 => String::new(),
                    seconds => format!("; no answer for {seconds} s"),
                };
                let pause = pause.as_secs_f64();
                tracing::warn!("{name}: {message}{silence}; next request in {pause:.1} s");
            }
            Next::Pause { pause, warn: None } => {
                tracing::debug!("{name}: {message}; next request in {:.1} s", pause.as_secs_f64());
            }
            Next::GiveUp(time) => {
                return Err(self.fatal(format!("{message}, for the last {} s", time.as_secs())));
            }
        }
        Ok(())
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
        let retry_after = pause_asked(response.headers());
        let text = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let text = text.map_err(|error| failed(&error))?;
        let answer: Result<Value, _> = serde_json::from_slice(&text);
        if status == 200 {
            return answer
                .map_err(|error| Attempt::Failed(format!("{}{path}: expected JSON; {error}", self.base)));
        }
        let reply = String::from_utf8_lossy(&text);
        let said = answer.as_ref().map_or_else(|_| reply.trim().to_owned(), message);
        // A reject has no address: a local server has another port in each run.
        let refused = format!("status {status}: {}", short(&said));
        let message = format!("{}{path} answers with {refused}", self.base);
        // A quota that is used up, which OpenAI's API reports as 429, does not come back by waiting.
        let code = answer.ok().and_then(|answer| answer["error"]["code"].as_str().map(str::to_owned));
        Err(match status {
            429 if code.as_deref() == Some("insufficient_quota") => Attempt::Fatal(message),
            429 | 503 => Attempt::Overloaded { message, status, retry_after },
            408 | 500.. => Attempt::Failed(message),
            400 | 413 | 422 => Attempt::Refused(Refusal::new(refused, &reply)),
            _ => Attempt::Fatal(message),
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

/// The start of a text, for messages.
pub(super) fn short(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_MESSAGE).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}
