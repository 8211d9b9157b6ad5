//! The accept loop and the connections.
//!
//! HTTP/1.1 only, which is what load balancers speak to their servers. A client that closes its sending side
//! counts as disconnected: the server cannot tell it from one that left, and the KV blocks of one that left
//! must be freed.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::batch_lines;
use super::cors::AllowedOrigins;
use super::drain::{DrainTimes, Ended, FLUSH_TIMEOUT, Signal, Signals, drain};
use super::evicting_permits::{EvictingPermit, EvictingPermits};
use super::health;
use super::listener::Listener;
use super::open_responses::{ConnectionRequests, CountedBody};
use super::routes::{before_start, router};
use super::state::ServerState;
use super::status::ServerStatus;
use super::timeout_stream::{TimeoutStream, client_closed};

/// Connections beyond the limit that wait to be served. A probe among them is answered at once. If another
/// connection comes, the oldest one is closed.
const MAX_WAITING: usize = 128;
/// Time for the first request of a new connection to arrive once the shutdown is over.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for which input is discarded after the last response. Closing a socket with unread input resets the
/// connection, and the client would lose the response.
const LINGER: Duration = Duration::from_secs(1);
/// hyper's own limit on a head, in bytes. Our limit is lower and is checked by the middleware, whose response
/// leaves the connection usable.
const HEAD_BUFFER: usize = 64 << 10;
/// hyper's own limit on the number of headers, above ours for the same reason.
const HEAD_FIELDS: usize = 256;
/// Pause after a failed accept, which would fail again at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// Handles SIGTERM and SIGINT from now on, and returns them.
///
/// # Errors
/// The system's error, if a handler cannot be installed.
pub fn signals() -> io::Result<Signals> {
    let (sender, receiver) = mpsc::channel(4);
    for (kind, message) in
        [(SignalKind::terminate(), Signal::Terminate), (SignalKind::interrupt(), Signal::Interrupt)]
    {
        let (mut signal, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                let _full_or_closed = sender.try_send(message);
            }
        });
    }
    Ok(Signals::new(receiver))
}

/// Runs `load` and meanwhile answers probes; all other requests get a 503, which web pages of
/// `allowed_origins` may read.
pub async fn while_starting<T>(
    listener: &Listener,
    status: &Arc<ServerStatus>,
    allowed_origins: &[String],
    load: impl Future<Output = T>,
) -> T {
    let origins = Arc::new(AllowedOrigins::new(allowed_origins));
    let accept = async {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    tokio::spawn(answer_once(stream, Arc::clone(status), Arc::clone(&origins)));
                }
                Err(_disconnected_or_no_descriptors) => sleep(ACCEPT_RETRY).await,
            }
        }
    };
    tokio::select! {
        loaded = load => loaded,
        never = accept => never,
    }
}

/// Answers the first request of a connection while the engine starts, and closes the connection.
async fn answer_once(stream: TcpStream, status: Arc<ServerStatus>, origins: Arc<AllowedOrigins>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let response = before_start(&status, &origins, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    let connection =
        builder.timer(TokioTimer::new()).keep_alive(false).serve_connection(TokioIo::new(stream), service);
    let _timed_out_or_broken = timeout(FLUSH_TIMEOUT, connection).await;
}

/// Serves requests until a shutdown has run through its phases; see [`super::drain`].
pub async fn serve(
    listener: Listener,
    state: Arc<ServerState>,
    signals: &mut Signals,
    times: DrainTimes,
) -> Ended {
    let end = watch::Sender::new(false);
    let runner = batch_lines::runner(&state);
    if let Some(runner) = &runner {
        runner.resume();
    }
    let router = router(Arc::clone(&state), runner.clone());
    let ended = tokio::select! {
        never = accept(listener, router, &state, &end) => match never {},
        ended = drain(&state, runner.as_deref(), signals, times) => ended,
    };
    // Idle connections are closed now; the others close when their last response is sent.
    end.send_replace(true);
    let closed = timeout(signals.flush_timeout(), end.closed());
    if ended != Ended::Forced && !signals.wait_unless_forced(closed).await {
        return Ended::Forced;
    }
    ended
}

/// Accepts connections forever. Each holds a receiver of `end` until it is closed, and ends when `end`
/// becomes true.
async fn accept(
    listener: Listener,
    router: Router,
    state: &Arc<ServerState>,
    end: &watch::Sender<bool>,
) -> Infallible {
    let permits = Arc::new(Semaphore::new(state.settings.http.max_connections));
    let waiting_permits = EvictingPermits::new(MAX_WAITING);
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let (state, router, permits) = (Arc::clone(state), router.clone(), Arc::clone(&permits));
                let (end, waiting) = (end.subscribe(), waiting_permits.acquire());
                tokio::spawn(async move {
                    match admit(&stream, permits, waiting).await {
                        Connecting::Admitted(permit) => {
                            Connection { state, router, permit }.run(stream, end).await;
                        }
                        Connecting::Probe => {
                            answer_once(stream, Arc::clone(&state.status), Arc::clone(&state.origins)).await;
                        }
                        Connecting::Evicted => {}
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, or the client has disconnected. Without a pause the loop would
                // spin.
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// How a new connection is treated.
enum Connecting {
    /// Served, within the limit on connections.
    Admitted(OwnedSemaphorePermit),
    /// Answered once, beyond the limit.
    Probe,
    /// Closed, because too many newer connections wait.
    Evicted,
}

/// Waits until the number of connections is below its limit. A probe need not wait.
async fn admit(stream: &TcpStream, permits: Arc<Semaphore>, mut waiting: EvictingPermit) -> Connecting {
    if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
        return Connecting::Admitted(permit);
    }
    let probe = async {
        // A client that sends no request line in time is not a probe.
        if timeout(FLUSH_TIMEOUT, is_probe(stream)).await != Ok(true) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        permit = permits.acquire_owned() => permit.map_or(Connecting::Evicted, Connecting::Admitted),
        () = probe => Connecting::Probe,
        () = waiting.evicted() => Connecting::Evicted,
    }
}

/// Returns true if the connection's first line requests a probe's path.
async fn is_probe(stream: &TcpStream) -> bool {
    let mut line = [0; 64];
    while let Ok(count @ 1..) = stream.peek(&mut line).await {
        let received = String::from_utf8_lossy(&line[..count]);
        let mut words = received.split_inclusive(' ').take(2).filter_map(|word| word.strip_suffix(' '));
        match (words.next(), words.next()) {
            (Some("GET" | "HEAD"), Some(path)) => return health::probe(path).is_some(),
            // The rest of the line is still to come. `peek` returns at once while input is unread, hence the
            // pause.
            (Some("GET" | "HEAD") | None, None) if count < line.len() => {
                sleep(Duration::from_millis(10)).await;
            }
            _ => return false,
        }
    }
    false
}

/// Resolves when a connection must not wait for another request. That is the end of the shutdown, or up to
/// [`FIRST_REQUEST_TIMEOUT`] later for a connection without a request so far: a client that has just
/// connected should get a 503 rather than a closed connection.
async fn shutdown_over(
    mut end: watch::Receiver<bool>,
    requests: ConnectionRequests,
) -> watch::Receiver<bool> {
    let _ended = end.wait_for(|end| *end).await.is_ok();
    let since = Instant::now();
    while requests.started() == 0 && since.elapsed() < FIRST_REQUEST_TIMEOUT {
        sleep(Duration::from_millis(5)).await;
    }
    end
}

/// Reads and discards input until the client closes its side.
async fn discard_input(stream: &TcpStream) {
    // On the heap: on the stack it would be part of every connection's future.
    let mut buffer = vec![0; 16 << 10];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// The client has disconnected, so the response is not needed.
#[derive(Debug, thiserror::Error)]
#[error("the client has disconnected")]
struct ClientDisconnected;

impl From<Infallible> for ClientDisconnected {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

struct Connection {
    state: Arc<ServerState>,
    router: Router,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, end: watch::Receiver<bool>) {
        let Self { state, router, permit } = self;
        // With Nagle's algorithm a token would wait for the acknowledgement of the one before it.
        let _unsupported = stream.set_nodelay(true);
        let requests = ConnectionRequests::default();
        let stream = Arc::new(stream);
        let input = Arc::clone(&stream);
        let io = TimeoutStream::new(Arc::clone(&stream), requests.clone(), &state.settings.http);
        let shutdown_over = shutdown_over(end, requests.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let open = requests.open(&state);
            let response = router.clone().oneshot(request.map(Body::new));
            let stream = Arc::clone(&stream);
            async move {
                tokio::select! {
                    response = response => Ok(response?.map(|body| CountedBody::new(body, open))),
                    () = client_closed(&stream) => Err(ClientDisconnected),
                }
            }
        });
        let mut builder = http1::Builder::new();
        let connection = builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(HEAD_BUFFER)
            .max_headers(HEAD_FIELDS)
            // Events are short: copying them into one buffer costs less than a vectored write.
            .writev(false)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            // Held until the connection is closed, for which the shutdown waits.
            _end = shutdown_over => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        match ended {
            Ok(()) => _ = timeout(LINGER, discard_input(&input)).await,
            Err(error) => tracing::debug!(%error, "a connection ended early"),
        }
        drop(permit);
    }
}
