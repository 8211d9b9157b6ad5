//! HTTP/1.1 client that streams answers and records the arrival time of each chunk. Plain HTTP only.
//!
//! A request uses an idle connection or opens a new one, so that no request waits for another. If the server
//! has closed an idle connection, the request is sent over a new one. A request that failed is not repeated,
//! also not after status 429: a refusal is a result of the measurement.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Response};

use super::SetupError;
use super::chunk::{Chunk, ReportedUsage};
use super::measure::{FailureKind, RequestFailure};
use crate::http_client::{self, Refusal, SseEvent, SseParser, Target};

/// Characters of an error message that are kept.
const ERROR_TEXT: usize = 300;

/// Wait for the end of a body after `[DONE]`. A connection whose body has ended can be used again.
const LINGER: Duration = Duration::from_secs(1);

/// Chunks of an answer received so far.
#[derive(Debug, Default)]
pub(super) struct StreamedAnswer {
    /// Arrival time of each chunk with content.
    pub chunks: Vec<Instant>,
    /// Last usage that the server reported.
    pub usage: Option<ReportedUsage>,
    done: bool,
    finished: bool,
    failure: Option<RequestFailure>,
}

impl StreamedAnswer {
    fn take(&mut self, event: SseEvent<'_>, now: Instant) {
        if self.failure.is_some() || self.done {
            return;
        }
        if event.data == b"[DONE]" {
            self.done = true;
            return;
        }
        let chunk = match Chunk::parse(event.data) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.failure = Some(RequestFailure::new(FailureKind::Malformed, error.to_string()));
                return;
            }
        };
        if chunk.error.is_some() || event.name == b"error" {
            let text = chunk.error.unwrap_or_else(|| excerpt(event.data));
            self.failure = Some(RequestFailure::new(FailureKind::Stream, text));
            return;
        }
        if chunk.content {
            self.chunks.push(now);
        }
        self.finished |= chunk.finished;
        self.usage = chunk.usage.or(self.usage);
    }

    fn outcome(&mut self) -> Result<(), RequestFailure> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None if !self.done && !self.finished => {
                Err(RequestFailure::new(FailureKind::Cut, "the stream ended before the answer did"))
            }
            None if self.chunks.is_empty() => {
                Err(RequestFailure::new(FailureKind::Empty, "the answer has no content"))
            }
            None => Ok(()),
        }
    }
}

/// A client of one server with a pool of idle connections.
#[derive(Debug)]
pub struct Client {
    target: Target,
    timeout: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client without connections. `timeout` limits a request from sending to the last byte.
    pub fn new(target: Target, timeout: Duration) -> Self {
        Self { target, timeout, idle: Mutex::new(Vec::new()) }
    }

    /// Name of the first model that `/v1/models` lists.
    ///
    /// # Errors
    /// The request failed, or the list is empty.
    pub async fn first_model(&self) -> Result<String, SetupError> {
        let exchange = async {
            let (response, _connection) = self.send(Method::GET, "/v1/models", Bytes::new()).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            let body = Limited::new(response.into_body(), 1 << 20).collect().await;
            let body =
                body.map_err(|error| RequestFailure::new(FailureKind::Cut, error.to_string()))?.to_bytes();
            let value: serde_json::Value = serde_json::from_slice(&body)
                .map_err(|error| RequestFailure::new(FailureKind::Malformed, error.to_string()))?;
            let name = value.pointer("/data/0/id").and_then(serde_json::Value::as_str);
            name.map(str::to_owned)
                .ok_or_else(|| RequestFailure::new(FailureKind::Malformed, "the list has no model"))
        };
        let outcome = tokio::time::timeout(self.timeout, exchange).await;
        let outcome = outcome.unwrap_or_else(|_| Err(RequestFailure::new(FailureKind::Timeout, "no answer")));
        outcome.map_err(|failure| SetupError::Models { why: failure.to_string() })
    }

    /// Sends a request and reads its answer. `live` counts chunks with content as they arrive. The answer
    /// contains what arrived before a failure.
    pub(super) async fn ask(
        &self,
        path: &str,
        body: Bytes,
        live: &AtomicU64,
    ) -> (StreamedAnswer, Result<(), RequestFailure>) {
        let mut answer = StreamedAnswer::default();
        let exchange = self.exchange(path, body, live, &mut answer);
        let outcome = tokio::time::timeout(self.timeout, exchange).await;
        let late =
            |_| Err(RequestFailure::new(FailureKind::Timeout, format!("no end after {:?}", self.timeout)));
        (answer, outcome.unwrap_or_else(late))
    }

    async fn exchange(
        &self,
        path: &str,
        body: Bytes,
        live: &AtomicU64,
        answer: &mut StreamedAnswer,
    ) -> Result<(), RequestFailure> {
        let (response, connection) = self.send(Method::POST, path, body).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes().to_owned());
        if !kind.as_deref().is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
            let kind = String::from_utf8_lossy(kind.as_deref().unwrap_or(b"none")).into_owned();
            return Err(RequestFailure::new(
                FailureKind::Malformed,
                format!("expected text/event-stream, got {kind}"),
            ));
        }
        let mut body = response.into_body();
        let mut parser = SseParser::default();
        let whole = loop {
            let frame = if answer.done {
                match tokio::time::timeout(LINGER, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => break false,
                }
            } else {
                body.frame().await
            };
            match frame {
                None => break true,
                Some(Ok(frame)) => {
                    let Some(data) = frame.data_ref() else { continue };
                    let (now, before) = (Instant::now(), answer.chunks.len());
                    parser.feed(data, |event| answer.take(event, now));
                    live.fetch_add((answer.chunks.len() - before) as u64, Ordering::Relaxed);
                }
                // The server may drop the connection after `[DONE]` or an error event.
                Some(Err(_)) if answer.done || answer.failure.is_some() => break false,
                Some(Err(error)) => return Err(RequestFailure::new(FailureKind::Cut, error.to_string())),
            }
        };
        let now = Instant::now();
        parser.finish(|event| answer.take(event, now));
        if whole {
            self.idle().push(connection);
        }
        answer.outcome()
    }

    /// Sends a request over an idle connection or a new one, and returns the response with its connection.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), RequestFailure> {
        let mut request = self.target.request(method.clone(), path, body.clone());
        loop {
            let idle = self.idle().pop();
            let old = idle.is_some();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if old && connection.ready().await.is_err() {
                continue;
            }
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if old => request = unsent,
                    // The server closed the idle connection while the request was being sent and has not
                    // answered: send the request again over a new connection.
                    None if old => {
                        self.idle().clear();
                        request = self.target.request(method.clone(), path, body.clone());
                    }
                    _ => return Err(RequestFailure::new(FailureKind::Cut, error.into_error().to_string())),
                },
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, RequestFailure> {
        let opened = http_client::connect(&self.target).await;
        opened.map_err(|error| RequestFailure::new(FailureKind::Connect, error.to_string()))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().expect("no thread panics while it holds the lock")
    }
}

/// Failure for a response whose status is not a success: status, message and Retry-After.
async fn refusal(response: Response<Incoming>) -> RequestFailure {
    let refusal = Refusal::read(response).await;
    let mut text = excerpt(refusal.message().as_bytes());
    if let Some(retry) = refusal.retry_after {
        text.push_str(&format!(" (Retry-After: {})", retry.as_secs()));
    }
    RequestFailure::new(FailureKind::Status(refusal.status), text)
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().take(ERROR_TEXT).collect()
}
