//! Requests to one server, over connections that are kept open.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Response};

use crate::http_client::{Target, connect, pause_asked};
use crate::server::IGNORED_FIELDS;

/// The most bytes of a reply.
const MAX_REPLY: usize = 256 << 20;

/// Requests to one server.
pub(super) struct Connections {
    target: Target,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// How a request ended.
pub(super) enum Exchange {
    /// With a reply.
    Reply(Reply),
    /// It was not sent, because the server cannot be reached.
    Unreachable(String),
    /// It was sent, and the connection ended before the reply did.
    Cut(String),
}

/// A whole reply.
pub(super) struct Reply {
    pub(super) status: u16,
    /// The pause of `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// Names of the request's fields that had no effect.
    pub(super) ignored: Vec<String>,
    pub(super) body: Bytes,
}

impl Connections {
    pub(super) fn new(target: Target) -> Self {
        Self { target, idle: Mutex::default() }
    }

    /// The server's host and port.
    pub(super) fn name(&self) -> &str {
        self.target.authority()
    }

    /// Sends a request and reads the reply.
    pub(super) async fn post(&self, path: &str, body: Bytes) -> Exchange {
        // The server may have closed an idle connection. The request is then sent again over another one.
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            let request = self.target.request(Method::POST, path, body.clone());
            if let Ok(response) = connection.send_request(request).await {
                return self.read(response, connection).await;
            }
        }
        let mut connection = match connect(&self.target).await {
            Ok(connection) => connection,
            Err(error) => return Exchange::Unreachable(error.to_string()),
        };
        match connection.send_request(self.target.request(Method::POST, path, body)).await {
            Ok(response) => self.read(response, connection).await,
            Err(error) => Exchange::Cut(error.to_string()),
        }
    }

    /// Reads the reply, and keeps the connection for another request.
    async fn read(&self, response: Response<Incoming>, connection: SendRequest<Full<Bytes>>) -> Exchange {
        let status = response.status().as_u16();
        let retry_after = pause_asked(response.headers());
        let ignored = response.headers().get(IGNORED_FIELDS).and_then(|value| value.to_str().ok());
        let ignored = ignored.into_iter().flat_map(|names| names.split(',')).map(str::to_owned).collect();
        match Limited::new(response.into_body(), MAX_REPLY).collect().await {
            Ok(body) => {
                self.idle().push(connection);
                Exchange::Reply(Reply { status, retry_after, ignored, body: body.to_bytes() })
            }
            Err(error) => Exchange::Cut(error.to_string()),
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
