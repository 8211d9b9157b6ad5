//! Counts requests whose response is not complete: those of a connection, for its timeouts, and those of the
//! server, for the shutdown.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::state::ServerState;

/// Counters of one connection's requests, shared by its socket and its service.
#[derive(Clone, Default)]
pub(crate) struct ConnectionRequests(Arc<ConnectionCounters>);

#[derive(Default)]
struct ConnectionCounters {
    /// Requests whose head has been read.
    started: AtomicUsize,
    /// Requests whose response is not complete.
    open: AtomicUsize,
    /// The task that reads the socket. It is woken when a response is complete, because its idle timeout
    /// starts then.
    reader: AtomicWaker,
}

impl ConnectionRequests {
    /// Returns true while a response is not complete.
    pub(crate) fn any_open(&self) -> bool {
        self.0.open.load(Ordering::Acquire) > 0
    }

    /// Number of requests whose head has been read.
    pub(crate) fn started(&self) -> usize {
        self.0.started.load(Ordering::Acquire)
    }

    /// Sets the waker of the task that reads the socket.
    pub(crate) fn register_reader(&self, waker: &Waker) {
        self.0.reader.register(waker);
    }

    /// Counts a request, for the connection and for the server, until the result is dropped.
    pub(crate) fn open(&self, state: &Arc<ServerState>) -> OpenResponse {
        self.0.started.fetch_add(1, Ordering::AcqRel);
        self.0.open.fetch_add(1, Ordering::AcqRel);
        state.status.request_opened();
        state.open_requests.send_modify(|open| *open += 1);
        OpenResponse { connection: self.clone(), state: Arc::clone(state) }
    }
}

/// A request whose response is not complete.
pub(crate) struct OpenResponse {
    connection: ConnectionRequests,
    state: Arc<ServerState>,
}

impl Drop for OpenResponse {
    fn drop(&mut self) {
        self.connection.0.open.fetch_sub(1, Ordering::AcqRel);
        self.connection.0.reader.wake();
        self.state.status.request_closed();
        self.state.open_requests.send_modify(|open| *open -= 1);
    }
}

/// A response's body that counts as open until the body is sent or dropped.
pub(crate) struct CountedBody {
    body: Body,
    _response: OpenResponse,
}

impl CountedBody {
    pub(crate) fn new(body: Body, response: OpenResponse) -> Self {
        Self { body, _response: response }
    }
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
