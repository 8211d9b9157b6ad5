//! A connection's socket with timeouts: for the head of a request, between two requests, and for a client
//! that does not read. hyper's own head timeout would count the idle time between two requests too.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::hyper_errors;
use super::open_responses::ConnectionRequests;
use super::settings::HttpLimits;

/// The socket. Reads and writes fail with [`io::ErrorKind::TimedOut`].
pub(crate) struct TimeoutStream {
    stream: Arc<TcpStream>,
    requests: ConnectionRequests,
    limits: HttpLimits,
    /// Runs while the head of a request is awaited.
    read_timer: Option<Pin<Box<Sleep>>>,
    /// True once bytes of that head have arrived.
    head_started: bool,
    /// [`ConnectionRequests::started`] as of the last read: a change means that a whole head has been read.
    requests_seen: usize,
    /// Runs while the client reads nothing.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// The rest of a response that replaces hyper's own.
    replacement: Option<Bytes>,
}

impl TimeoutStream {
    pub(crate) fn new(stream: Arc<TcpStream>, requests: ConnectionRequests, limits: &HttpLimits) -> Self {
        Self {
            stream,
            requests,
            limits: limits.clone(),
            read_timer: None,
            head_started: false,
            requests_seen: 0,
            write_timer: None,
            replacement: None,
        }
    }

    /// Starts the timer if it does not run, and is ready with an error when it fires.
    fn poll_timeout(
        timer: &mut Option<Pin<Box<Sleep>>>,
        after: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(after)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(io::Error::from(io::ErrorKind::TimedOut))
    }

    /// If what hyper writes is an error of its own that begins with `head`, writes the server's error
    /// instead. Returns whether it has.
    fn poll_replacement(&mut self, head: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.replacement.is_none() && !self.requests.any_open() {
            self.replacement = hyper_errors::replacement(head, &self.limits);
        }
        while let Some(left) = self.replacement.clone().filter(|left| !left.is_empty()) {
            let result = poll_write(&self.stream, cx, |stream| stream.try_write(&left));
            let count = ready!(self.poll_written(result, cx))?;
            self.replacement = Some(left.slice(count..));
        }
        Poll::Ready(Ok(self.replacement.take().is_some()))
    }

    /// Returns the result of a write, or lets the write timer run if it is pending.
    fn poll_written(
        &mut self,
        result: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.write_timer = None;
            return result;
        }
        Self::poll_timeout(&mut self.write_timer, self.limits.write_stall, cx).map(Err)
    }
}

impl AsyncRead for TimeoutStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = poll_read(&this.stream, cx, buf);
        let started = this.requests.started();
        if started != this.requests_seen {
            (this.requests_seen, this.read_timer, this.head_started) = (started, None, false);
        }
        this.requests.register_reader(cx.waker());
        if this.requests.any_open() {
            // Reading a body has a deadline of its own.
            this.read_timer = None;
            return result;
        }
        if result.is_ready() {
            if buf.filled().len() > before && !this.head_started {
                this.head_started = true;
                let deadline = Instant::now() + this.limits.head_timeout;
                this.read_timer = Some(Box::pin(tokio::time::sleep_until(deadline)));
            }
            return result;
        }
        let limits = &this.limits;
        let limit = if this.requests_seen > 0 { limits.idle_timeout } else { limits.head_timeout };
        Self::poll_timeout(&mut this.read_timer, limit, cx).map(Err)
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if ready!(this.poll_replacement(buf, cx))? {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = poll_write(&this.stream, cx, |stream| stream.try_write(buf));
        this.poll_written(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if ready!(this.poll_replacement(bufs.first().map_or(&[], |head| head), cx))? {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let result = poll_write(&this.stream, cx, |stream| stream.try_write_vectored(bufs));
        this.poll_written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP socket has no buffer to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}

/// Reads what the socket has received; pending if it has received nothing.
fn poll_read(stream: &TcpStream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        match stream.try_read(buf.initialize_unfilled()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome.map(|count| buf.advance(count))),
        }
    }
}

/// Writes what the socket's buffer has room for; pending if it has none.
fn poll_write(
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

/// Resolves when the client has closed its sending side. hyper notices that by itself, except while it has
/// unread bytes of a next request.
pub(crate) async fn client_closed(stream: &TcpStream) {
    const INTERVAL: Duration = Duration::from_millis(100);
    loop {
        // A socket with unread bytes is ready at once, so waiting for readiness alone would spin.
        tokio::time::sleep(INTERVAL).await;
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _closed_or_broken => return,
        }
    }
}
