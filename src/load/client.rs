//! An HTTP/1.1 client that streams answers and notes when what of them came.
//!
//! A request takes a connection that is idle, or opens one: an open loop needs as many as requests are out, and none is
//! made to wait for another. A connection that the server closed just as it was taken is replaced, if nothing
//! of the request has gone out yet. No request is tried again after a failure, a 429 included: what a server turns away is a
//! finding. Plain HTTP only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::SetupError;
use super::chunk::{self, Chunk, Usage};
use super::measure::{Failure, Kind};
use super::sse::{Event, Parser};

/// Bytes of an error's body that are read.
const ERROR_BODY: usize = 64 << 10;

/// Characters of an error that are kept.
const ERROR_TEXT: usize = 300;

/// How long the end of a body is waited for after `[DONE]`, so that the connection can be used again.
const LINGER: Duration = Duration::from_secs(1);

/// A server and how to speak to it.
#[derive(Debug, Clone)]
pub struct Target {
    authority: String,
    address: String,
    /// What stands before `/v1` in all paths.
    prefix: String,
    key: Option<HeaderValue>,
}

impl Target {
    /// A server by its URL, with or without `/v1` at the end.
    pub fn parse(url: &str, key: Option<&str>) -> Result<Self, SetupError> {
        let bad = |why: &str| SetupError::Url { url: url.to_owned(), why: why.to_owned() };
        let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| bad(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(SetupError::Https),
            _ => return Err(bad("it must begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(bad("it may have no query and no password"));
        }
        let path = uri.path().trim_end_matches('/');
        let key = key.map(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| SetupError::Key)?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Self {
            authority: authority.to_string(),
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            key: key.transpose()?,
        })
    }
}

/// What of an answer came, and when.
#[derive(Debug, Default)]
pub struct Answer {
    /// When a chunk with content came, for each.
    pub chunks: Vec<Instant>,
    /// The last usage that the server told.
    pub usage: Option<Usage>,
    done: bool,
    finished: bool,
    failure: Option<Failure>,
}

impl Answer {
    fn take(&mut self, event: Event<'_>, now: Instant) {
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
                self.failure = Some(Failure::new(Kind::Malformed, error.to_string()));
                return;
            }
        };
        if chunk.error.is_some() || event.name == b"error" {
            let text = chunk.error.unwrap_or_else(|| excerpt(event.data));
            self.failure = Some(Failure::new(Kind::Stream, text));
            return;
        }
        if chunk.content {
            self.chunks.push(now);
        }
        self.finished |= chunk.finished;
        self.usage = chunk.usage.or(self.usage);
    }

    fn outcome(&mut self) -> Result<(), Failure> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None if !self.done && !self.finished => {
                Err(Failure::new(Kind::Cut, "the stream ended before the answer did"))
            }
            None if self.chunks.is_empty() => Err(Failure::new(Kind::Empty, "an answer without content")),
            None => Ok(()),
        }
    }
}

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    target: Target,
    timeout: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client that gives a request so long, from sending to the last byte.
    pub fn new(target: Target, timeout: Duration) -> Self {
        Self { target, timeout, idle: Mutex::new(Vec::new()) }
    }

    /// The first model that the server names.
    pub async fn first_model(&self) -> Result<String, SetupError> {
        let exchange = async {
            let (response, _connection) = self.send(Method::GET, "/v1/models", Bytes::new()).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            let body = Limited::new(response.into_body(), 1 << 20).collect().await;
            let body = body.map_err(|error| Failure::new(Kind::Cut, error.to_string()))?.to_bytes();
            let value: serde_json::Value = serde_json::from_slice(&body)
                .map_err(|error| Failure::new(Kind::Malformed, error.to_string()))?;
            let name = value.pointer("/data/0/id").and_then(serde_json::Value::as_str);
            name.map(str::to_owned).ok_or_else(|| Failure::new(Kind::Malformed, "it lists no model"))
        };
        let outcome = tokio::time::timeout(self.timeout, exchange).await;
        let outcome = outcome.unwrap_or_else(|_| Err(Failure::new(Kind::Timeout, "no answer")));
        outcome.map_err(|failure| SetupError::Models { why: failure.to_string() })
    }

    /// Asks and reads the answer to its end. Content that comes is counted in `live` as it does; what had come when it
    /// failed is in the answer too.
    pub async fn ask(&self, path: &str, body: Bytes, live: &AtomicU64) -> (Answer, Result<(), Failure>) {
        let mut answer = Answer::default();
        let exchange = self.exchange(path, body, live, &mut answer);
        let outcome = tokio::time::timeout(self.timeout, exchange).await;
        let late = |_| Err(Failure::new(Kind::Timeout, format!("over {:?}", self.timeout)));
        (answer, outcome.unwrap_or_else(late))
    }

    async fn exchange(
        &self,
        path: &str,
        body: Bytes,
        live: &AtomicU64,
        answer: &mut Answer,
    ) -> Result<(), Failure> {
        let (response, connection) = self.send(Method::POST, path, body).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes().to_owned());
        if !kind.as_deref().is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
            let kind = String::from_utf8_lossy(kind.as_deref().unwrap_or(b"none")).into_owned();
            return Err(Failure::new(Kind::Malformed, format!("no event stream, but content-type {kind}")));
        }
        let mut body = response.into_body();
        let mut parser = Parser::default();
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
                // Whoever has said that it is done, or why it fails, may break off.
                Some(Err(_)) if answer.done || answer.failure.is_some() => break false,
                Some(Err(error)) => return Err(Failure::new(Kind::Cut, error.to_string())),
            }
        };
        let now = Instant::now();
        parser.finish(|event| answer.take(event, now));
        if whole {
            self.idle().push(connection);
        }
        answer.outcome()
    }

    /// Sends a request, over a connection that was idle or a new one.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), Failure> {
        let mut request = self.request(method.clone(), path, body.clone());
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
                    // A server may close a connection that it has kept just when it is used again. Nothing of an answer has
                    // come, so it is asked again, over a new one.
                    None if old => {
                        self.idle().clear();
                        request = self.request(method.clone(), path, body.clone());
                    }
                    _ => return Err(Failure::new(Kind::Cut, error.into_error().to_string())),
                },
            }
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() =
            format!("{}{path}", self.target.prefix).parse().expect("the prefix is the path of a URL");
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.target.authority).expect("an authority is a header's value");
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
        if let Some(key) = &self.target.key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        request
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(Kind::Connect, error.to_string());
        let stream = TcpStream::connect(&self.target.address).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // Its errors come out of the request that it carries.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().expect("nobody panics with the lock")
    }
}

/// Why a request was turned away.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status().as_u16();
    let retry = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), ERROR_BODY).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let mut text = match serde_json::from_slice(&body) {
        Ok(value) => excerpt(chunk::message(&value).as_bytes()),
        Err(_) => excerpt(&body),
    };
    if let Some(retry) = retry {
        text.push_str(&format!(" (Retry-After: {retry})"));
    }
    Failure::new(Kind::Status(status), text)
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().take(ERROR_TEXT).collect()
}
