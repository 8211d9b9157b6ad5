//! Requests with JSON bodies to one server, several at once, repeated where the server asks for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, Limited};
use hyper::Method;
use hyper::client::conn::http1::SendRequest;
use serde_json::Value;

use super::OnProgress;
use super::request_error::RequestError;
use crate::http_client::{Refusal, Target, connect};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 256 << 20;
/// Pause after the first attempt that failed. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Attempts after errors of the connection and of the server.
const MAX_FAILURES: u32 = 5;
/// Time that a request waits in all because the server is busy.
const PATIENCE: Duration = Duration::from_secs(900);

/// A client of one server, with a pool of idle connections.
#[derive(Debug)]
pub(crate) struct EvalClient {
    target: Target,
    timeout: Duration,
    concurrency: usize,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// An attempt that has failed.
struct Failure {
    error: RequestError,
    /// `Retry-After`.
    wait: Option<Duration>,
}

impl EvalClient {
    /// A client without connections. `timeout` limits one attempt; `concurrency` is the number of requests
    /// that [`Self::all`] has open at once.
    pub(crate) fn new(target: Target, timeout: Duration, concurrency: usize) -> Self {
        Self { target, timeout, concurrency, idle: Mutex::new(Vec::new()) }
    }

    /// Name of the first model that the server lists.
    ///
    /// # Errors
    /// The request failed, or the list is empty.
    pub(crate) async fn first_model(&self) -> Result<String, RequestError> {
        let list = self.get("/v1/models").await?;
        let name = list.pointer("/data/0/id").and_then(Value::as_str).map(str::to_owned);
        name.ok_or_else(|| RequestError::malformed("/v1/models", "a list with a model", &list.to_string()))
    }

    /// The answer to a GET request.
    pub(super) async fn get(&self, path: &'static str) -> Result<Value, RequestError> {
        self.exchange(Method::GET, path, Bytes::new()).await
    }

    /// The answer to a POST request.
    pub(super) async fn post(&self, path: &'static str, body: &Value) -> Result<Value, RequestError> {
        self.exchange(Method::POST, path, Bytes::from(body.to_string())).await
    }

    /// Runs a request for each item, within the client's concurrency, and returns the results in the order of
    /// the items. The first error ends all requests.
    pub(super) async fn all<'a, T, R, E, F>(
        &self,
        items: &'a [T],
        request: impl Fn(&'a T) -> F,
        on_progress: OnProgress<'_>,
    ) -> Result<Vec<R>, E>
    where
        F: Future<Output = Result<R, E>>,
    {
        let numbered = items.iter().enumerate().map(|(index, item)| {
            let request = request(item);
            async move { (index, request.await) }
        });
        let mut running = stream::iter(numbered).buffer_unordered(self.concurrency);
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        let mut done = 0;
        on_progress(0, items.len());
        while let Some((index, result)) = running.next().await {
            results[index] = Some(result?);
            done += 1;
            on_progress(done, items.len());
        }
        Ok(results.into_iter().flatten().collect())
    }

    async fn exchange(&self, method: Method, path: &'static str, body: Bytes) -> Result<Value, RequestError> {
        let (mut failures, mut busy, mut waited) = (0, 0, Duration::ZERO);
        loop {
            let attempt = self.attempt(method.clone(), path, body.clone());
            let late = || RequestError::Late { seconds: self.timeout.as_secs_f64() };
            let attempt = tokio::time::timeout(self.timeout, attempt).await;
            let Failure { error, wait } = match attempt.map_err(|_| late())? {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let attempts = match error {
                RequestError::Refused { status: 429, .. } if waited < PATIENCE => {
                    busy += 1;
                    busy
                }
                RequestError::Connection { .. } | RequestError::Refused { status: 500.., .. }
                    if failures + 1 < MAX_FAILURES =>
                {
                    failures += 1;
                    failures
                }
                error => return Err(error),
            };
            let pause = wait.unwrap_or_else(|| FIRST_PAUSE * (1 << (attempts - 1).min(7)));
            let pause = pause.min(LONGEST_PAUSE);
            tracing::debug!("{path}: {error}; trying again in {:.1} s", pause.as_secs_f64());
            // A wait of 0 s counts too, so that a server that is always busy ends the request at last.
            waited += pause.max(FIRST_PAUSE);
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, method: Method, path: &'static str, body: Bytes) -> Result<Value, Failure> {
        let lost = |why: String| Failure {
            error: RequestError::Connection { authority: self.target.authority().to_owned(), why },
            wait: None,
        };
        let mut connection = self.connection().await.map_err(|error| lost(error.to_string()))?;
        let request = self.target.request(method, path, body);
        let response = connection.send_request(request).await;
        let response = response.map_err(|error| lost(error.to_string()))?;
        if !response.status().is_success() {
            let refusal = Refusal::read(response).await;
            let error = RequestError::Refused {
                status: refusal.status,
                message: super::request_error::excerpt(&refusal.message()),
            };
            self.idle().push(connection);
            return Err(Failure { error, wait: refusal.retry_after });
        }
        let bytes = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let bytes = bytes.map_err(|error| lost(error.to_string()))?.to_bytes();
        self.idle().push(connection);
        serde_json::from_slice(&bytes).map_err(|_| Failure {
            error: RequestError::malformed(path, "JSON", &String::from_utf8_lossy(&bytes)),
            wait: None,
        })
    }

    /// An idle connection that the server has not closed, or a new one.
    async fn connection(&self) -> std::io::Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut idle) = self.idle().pop() else { return connect(&self.target).await };
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
