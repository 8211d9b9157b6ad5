//! Requests to the server: an answer as it is streamed, the name of a model, and a whole response.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Response};
use serde::Deserialize;
use serde_json::Value;

use super::visible::visible;
use crate::http_client::{Refusal, SseParser, Target, connect, message};
use crate::stdio::results::OutputError;

/// Bytes of a whole response that are read.
const MAX_BODY: usize = 1 << 20;
/// Characters of an unexpected response that an error shows.
const EXCERPT: usize = 200;

/// The remedies for a model without a chat template.
const NO_TEMPLATE: &str = "; octant chat needs one: write it to chat_template.jinja in the model's directory \
                           and start the server again, or serve the model's variant for chats, whose name \
                           often ends in -Instruct or -Chat; the page at / continues plain text";

/// An answer failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("cannot reach {authority}: {why}")]
    Connect { authority: String, why: String },
    #[error("{0}")]
    Refused(String),
    #[error("the server sent an error: {0}")]
    Stream(String),
    #[error("the connection ended before the answer did")]
    Cut,
    #[error("expected {expected}, got {got}")]
    Malformed { expected: &'static str, got: String },
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl AnswerError {
    fn malformed(expected: &'static str, got: &str) -> Self {
        let excerpt: String = got.chars().take(EXCERPT).collect();
        Self::Malformed { expected, got: visible(&excerpt).into_owned() }
    }
}

/// How an answer ended.
#[derive(Debug)]
pub(super) enum Ending {
    Complete,
    Stopped,
    Failed(AnswerError),
}

/// An answer that has ended.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) ending: Ending,
    sent: Instant,
    /// Times of the first and the last chunk with text.
    first_and_last: Option<(Instant, Instant)>,
    /// Number of chunks with text.
    chunks: u64,
    usage: Option<ReceivedUsage>,
    finish_reason: Option<String>,
}

impl Answer {
    /// Token counts, rate and time to the first token, as far as they are known.
    pub(super) fn figures(&self) -> String {
        let mut parts = Vec::new();
        // Without usage, which the server sends at the end, a chunk is about one token.
        let tokens = self.usage.map_or(self.chunks, |usage| usage.completion_tokens);
        match self.usage {
            Some(usage) => parts.push(format!("{} tokens in, {tokens} out", usage.prompt_tokens)),
            None => parts.push(format!("about {tokens} tokens")),
        }
        if let Some((first, last)) = self.first_and_last {
            let seconds = (last - first).as_secs_f64();
            if tokens > 1 && seconds > 0.0 {
                parts.push(format!("{:.1} tokens/s", (tokens - 1) as f64 / seconds));
            }
            parts.push(format!("first after {:.2} s", (first - self.sent).as_secs_f64()));
        }
        if let Some(reason) = self.finish_reason.as_deref().filter(|reason| *reason != "stop") {
            parts.push(match reason {
                "length" => "token limit reached".to_owned(),
                other => format!("ended by {}", visible(other)),
            });
        }
        parts.join(", ")
    }
}

/// An answer that is being streamed.
pub(super) struct AnswerStream<'a> {
    target: &'a Target,
    answer: Answer,
    done: bool,
}

impl<'a> AnswerStream<'a> {
    pub(super) fn new(target: &'a Target) -> Self {
        let answer = Answer {
            text: String::new(),
            ending: Ending::Stopped,
            sent: Instant::now(),
            first_and_last: None,
            chunks: 0,
            usage: None,
            finish_reason: None,
        };
        Self { target, answer, done: false }
    }

    /// The answer as far as it has arrived.
    pub(super) fn finish(self, ending: Ending) -> Answer {
        Answer { ending, ..self.answer }
    }

    /// Sends the request, and prints the text as it arrives, with the log-probability of each token that has
    /// one. Can be dropped at any time; the connection is then closed, which stops the server's work.
    pub(super) async fn run(
        &mut self,
        body: Bytes,
        print: &mut impl FnMut(&str, Option<f64>) -> Result<(), OutputError>,
    ) -> Result<(), AnswerError> {
        let response = send(self.target, Method::POST, "/v1/chat/completions", body).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Err(AnswerError::malformed("text/event-stream", kind.unwrap_or("no content type")));
        }
        let (mut body, mut parser) = (response.into_body(), SseParser::default());
        while !self.done {
            let mut events = Vec::new();
            let frame = body.frame().await;
            match &frame {
                Some(Ok(frame)) => {
                    let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
                    parser.feed(data, |event| events.push(event.data.to_owned()));
                }
                Some(Err(_)) => return Err(AnswerError::Cut),
                None => parser.finish(|event| events.push(event.data.to_owned())),
            }
            for event in events {
                self.take(&event, print)?;
            }
            if frame.is_none() && !self.done {
                return if self.answer.finish_reason.is_some() { Ok(()) } else { Err(AnswerError::Cut) };
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        data: &[u8],
        print: &mut impl FnMut(&str, Option<f64>) -> Result<(), OutputError>,
    ) -> Result<(), AnswerError> {
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: ReceivedChunk = serde_json::from_slice(data)
            .map_err(|_| AnswerError::malformed("a chunk of an answer", &String::from_utf8_lossy(data)))?;
        if let Some(error) = chunk.error {
            return Err(AnswerError::Stream(describe(&error)));
        }
        self.answer.usage = chunk.usage.or(self.answer.usage);
        for choice in chunk.choices.unwrap_or_default() {
            if let Some(text) = choice.delta.and_then(|delta| delta.content).filter(|text| !text.is_empty()) {
                let now = Instant::now();
                let first = self.answer.first_and_last.map_or(now, |(first, _)| first);
                self.answer.first_and_last = Some((first, now));
                self.answer.chunks += 1;
                self.answer.text.push_str(&text);
                let tokens = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
                for (part, logprob) in parts(&text, &tokens) {
                    print(part, logprob)?;
                }
            }
            if choice.finish_reason.is_some() {
                self.answer.finish_reason = choice.finish_reason;
            }
        }
        Ok(())
    }
}

/// A chunk of a streamed chat completion.
#[derive(Deserialize)]
struct ReceivedChunk {
    choices: Option<Vec<ReceivedChoice>>,
    usage: Option<ReceivedUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct ReceivedChoice {
    delta: Option<ReceivedDelta>,
    logprobs: Option<ReceivedLogprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct ReceivedDelta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ReceivedLogprobs {
    content: Option<Vec<ReceivedToken>>,
}

#[derive(Deserialize)]
struct ReceivedToken {
    token: String,
    logprob: f64,
}

/// The text of a chunk by tokens. If their texts are not the chunk's, it is one part, with the
/// log-probability of the least probable token.
fn parts<'t>(text: &'t str, tokens: &[ReceivedToken]) -> Vec<(&'t str, Option<f64>)> {
    let mut parts = Vec::with_capacity(tokens.len());
    let mut rest = text;
    for ReceivedToken { token, logprob } in tokens {
        let Some(after) = rest.strip_prefix(token.as_str()) else { break };
        parts.push((&rest[..token.len()], Some(*logprob)));
        rest = after;
    }
    if parts.len() == tokens.len() && rest.is_empty() {
        return parts;
    }
    let least = tokens.iter().map(|token| token.logprob).min_by(f64::total_cmp);
    vec![(text, least)]
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct ReceivedUsage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// Time for a whole response.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Name of the first model that the server lists.
pub(super) async fn first_model(target: &Target) -> Result<String, AnswerError> {
    let body = get(target, "/v1/models").await?;
    let list: Value = serde_json::from_str(&body).unwrap_or_default();
    let name = list.pointer("/data/0/id").and_then(Value::as_str).map(str::to_owned);
    name.ok_or_else(|| AnswerError::malformed("a list with a model", &body))
}

/// The whole body of a path.
pub(super) async fn get(target: &Target, path: &str) -> Result<String, AnswerError> {
    let read = async {
        let response = send(target, Method::GET, path, Bytes::new()).await?;
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|_| AnswerError::Cut)?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(TIMEOUT, read).await.unwrap_or(Err(AnswerError::Cut))
}

/// Sends a request over a connection of its own.
async fn send(
    target: &Target,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, AnswerError> {
    let failed = |error: &dyn std::fmt::Display| AnswerError::Connect {
        authority: visible(target.authority()).into_owned(),
        why: error.to_string(),
    };
    let mut connection = connect(target).await.map_err(|error| failed(&error))?;
    let response = connection.send_request(target.request(method, path, body)).await;
    let response = response.map_err(|error| failed(&error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(AnswerError::Refused(describe_refusal(&Refusal::read(response).await)))
}

/// The server's message with status, code and wait, such as
/// `temperature: expected a number from 0 to 2, got 9 (HTTP 400, invalid_value)`.
fn describe_refusal(refusal: &Refusal) -> String {
    let error: Value = serde_json::from_slice(&refusal.body).unwrap_or_default();
    let code = error.pointer("/error/code").and_then(Value::as_str).map(|code| format!(", {code}"));
    let wait = refusal.retry_after.map(|wait| format!("; try again in {} s", wait.as_secs()));
    let message = refusal.message();
    let hint = match refusal.status {
        401 => "; --api-key or OCTANT_API_KEY gives the key",
        400 if message.contains("no chat template") => NO_TEMPLATE,
        _ => "",
    };
    let (code, wait) = (code.unwrap_or_default(), wait.unwrap_or_default());
    let text = format!("{message} (HTTP {}{code}){wait}{hint}", refusal.status);
    visible(&text).into_owned()
}

/// The message of an error object.
fn describe(error: &Value) -> String {
    visible(&message(error)).into_owned()
}
