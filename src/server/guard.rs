//! A connection that ends by itself where a client lets it wait: for the head of a request, between requests, or for
//! taking what is written to it. hyper's own timeout for the head would count the rest between two requests too.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::{HttpLimits, ServerState, malformed};

/// What a connection's socket must know of its requests.
#[derive(Clone, Default)]
pub struct Link(Arc<Requests>);

#[derive(Default)]
struct Requests {
    /// Requests whose head has been read.
    begun: AtomicUsize,
    /// Those whose response is not complete.
    open: AtomicUsize,
    /// Who reads the socket: its rest begins when the last response is complete, which nothing else may tell it.
    reader: AtomicWaker,
}

impl Link {
    fn busy(&self) -> bool {
        self.0.open.load(Ordering::Acquire) > 0
    }

    /// Requests so far.
    pub fn begun(&self) -> usize {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Counts a request here and in the server's account for as long as the result lives.
    pub fn begin(&self, state: &Arc<ServerState>) -> Busy {
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        self.0.open.fetch_add(1, Ordering::AcqRel);
        state.status.opened();
        state.open.send_modify(|open| *open += 1);
        Busy { link: self.clone(), state: Arc::clone(state) }
    }
}

/// A request whose response is not complete.
pub struct Busy {
    link: Link,
    state: Arc<ServerState>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.link.0.open.fetch_sub(1, Ordering::AcqRel);
        self.link.0.reader.wake();
        self.state.status.closed();
        self.state.open.send_modify(|open| *open -= 1);
    }
}

/// A response's body that counts as open until it is sent or dropped.
pub struct Held {
    body: Body,
    _busy: Busy,
}

impl Held {
    /// Ties the two together.
    pub fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for Held {
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

/// The socket with its deadlines.
pub struct Guarded {
    stream: Arc<TcpStream>,
    link: Link,
    head_timeout: Duration,
    idle_timeout: Duration,
    write_stall: Duration,
    /// Runs while the next head is awaited.
    read_timer: Option<Pin<Box<Sleep>>>,
    /// Whether bytes of a head have come.
    head_begun: bool,
    /// The requests whose heads are no concern of `read_timer` any more.
    seen: usize,
    /// Runs while the client takes nothing.
    write_timer: Option<Pin<Box<Sleep>>>,
    limits: HttpLimits,
    /// What is left of a response sent instead of hyper's own.
    instead: Option<Bytes>,
}

impl Guarded {
    /// Guards a fresh connection.
    pub fn new(stream: Arc<TcpStream>, link: Link, limits: &HttpLimits) -> Self {
        Self {
            stream,
            link,
            head_timeout: limits.head_timeout,
            idle_timeout: limits.idle_timeout,
            write_stall: limits.write_stall,
            read_timer: None,
            head_begun: false,
            seen: 0,
            write_timer: None,
            limits: limits.clone(),
            instead: None,
        }
    }

    fn overdue(
        timer: &mut Option<Pin<Box<Sleep>>>,
        after: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(after)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(io::Error::from(io::ErrorKind::TimedOut))
    }

    /// What a write came to; one that cannot go on is timed.
    fn written(&mut self, result: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.write_timer = None;
            return result;
        }
        Self::overdue(&mut self.write_timer, self.write_stall, cx).map(Err)
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = read(&this.stream, cx, buf);
        let begun = this.link.begun();
        if begun != this.seen {
            (this.seen, this.read_timer, this.head_begun) = (begun, None, false);
        }
        this.link.0.reader.register(cx.waker());
        if this.link.busy() {
            // The body's reader has its own deadline.
            this.read_timer = None;
            return result;
        }
        if result.is_ready() {
            if buf.filled().len() > before && !this.head_begun {
                this.head_begun = true;
                this.read_timer =
                    Some(Box::pin(tokio::time::sleep_until(Instant::now() + this.head_timeout)));
            }
            return result;
        }
        let rest = if this.seen > 0 { this.idle_timeout } else { this.head_timeout };
        Self::overdue(&mut this.read_timer, rest, cx).map(Err)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.instead.is_none() && !this.link.busy() {
            this.instead = bufs.first().and_then(|head| malformed::instead(head, &this.limits));
        }
        while let Some(left) = this.instead.clone().filter(|left| !left.is_empty()) {
            let result = write(&this.stream, cx, |stream| stream.try_write(&left));
            let count = ready!(this.written(result, cx))?;
            this.instead = Some(left.slice(count..));
        }
        if this.instead.take().is_some() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let result = write(&this.stream, cx, |stream| stream.try_write_vectored(bufs));
        this.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}

/// What the socket has, or a wait for it.
fn read(stream: &TcpStream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        match stream.try_read(buf.initialize_unfilled()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome.map(|count| buf.advance(count))),
        }
    }
}

/// What the socket takes, or a wait for it.
fn write(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    attempt: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match attempt(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

/// Ends when the client has closed its side. hyper sees that by itself, unless it still holds bytes of a next request
/// that it has not read.
pub async fn hung_up(stream: &TcpStream) {
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        // A socket with unread bytes is ready at once, so that a mere wait for it would spin.
        tokio::time::sleep(LOOK).await;
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _closed_or_broken => return,
        }
    }
}
