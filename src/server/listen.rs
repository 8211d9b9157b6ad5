//! The accept loop.
//!
//! HTTP/1.1 only, as load balancers speak it. A client that closes its sending side is taken to have gone: there is
//! no telling it from one that left, and whoever left must free its blocks.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::drain::{DrainTimes, Ended, LAST_WORDS, Signals, drain};
use super::evicting_permits::{EvictingPermits, Permit};
use super::guard::{Guarded, Held, Link, hung_up};
use super::routes::{before_start, router};
use super::{ServerState, ServerStatus, health};

/// What the system holds for a client that does not read. Accepted sockets inherit it.
const SEND_BUFFER: u32 = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Connections beyond the limit that are looked at: a probe is answered, others wait for a place as long as no more come.
const LOBBY: usize = 128;
/// What the first request of a connection needs to get here.
const FIRST_WORDS: Duration = Duration::from_millis(500);
/// For how long what a client still sends is read when its last response is out: a connection that is closed with bytes
/// unread takes the response with it.
const LINGER: Duration = Duration::from_secs(1);
/// hyper's own bound on a head, above ours, so that only what is far too large costs the connection.
const HEAD_BUFFER: usize = 64 << 10;
const HEAD_FIELDS: usize = 256;

/// Listens at an address.
///
/// # Errors
/// Of the system, such as an address in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One message per SIGTERM or SIGINT, from now on.
///
/// # Errors
/// Of the system.
pub fn signals() -> io::Result<Signals> {
    let (sender, receiver) = mpsc::channel(4);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signal, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                let _full_or_gone = sender.try_send(());
            }
        });
    }
    Ok(Signals::new(receiver))
}

/// Answers while the model is being loaded: probes, and nothing else yet.
pub async fn while_starting<T>(
    listener: &TcpListener,
    status: &Arc<ServerStatus>,
    load: impl Future<Output = T>,
) -> T {
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _peer)) => _ = tokio::spawn(answer_once(stream, Arc::clone(status))),
                Err(_left_or_no_descriptors) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::select! {
        loaded = load => loaded,
        never = accept => never,
    }
}

async fn answer_once(stream: TcpStream, status: Arc<ServerStatus>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let response = before_start(&status, request.uri().path(), request.method());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    let connection =
        builder.timer(TokioTimer::new()).keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // A client that keeps this waiting is none of ours.
    let _late_or_broken = timeout(LAST_WORDS, connection).await;
}

/// Serves until the shutdown is over: see [`super::drain`].
pub async fn serve(
    listener: TcpListener,
    state: Arc<ServerState>,
    signals: &mut Signals,
    times: DrainTimes,
) -> Ended {
    let end = watch::Sender::new(false);
    let ended = tokio::select! {
        never = accept(listener, &state, &end) => match never {},
        ended = drain(&state, signals, times) => ended,
    };
    // Connections that rest are closed; those that just ended an answer get it out.
    end.send_replace(true);
    let closed = timeout(LAST_WORDS, end.closed());
    if ended != Ended::Forced && !signals.leave_time_for(closed).await {
        return Ended::Forced;
    }
    ended
}

/// `end` is told to connections, which hold it until they are closed.
async fn accept(listener: TcpListener, state: &Arc<ServerState>, end: &watch::Sender<bool>) -> Infallible {
    let router = router(Arc::clone(state));
    let permits = Arc::new(Semaphore::new(state.settings.http.max_connections));
    let evicting_permits = EvictingPermits::new(LOBBY);
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let (state, router, permits) = (Arc::clone(state), router.clone(), Arc::clone(&permits));
                let (end, seat) = (end.subscribe(), evicting_permits.enter());
                tokio::spawn(async move {
                    match admit(&stream, permits, seat).await {
                        Admitted::With(permit) => {
                            Connection { state, router, permit }.run(stream, end).await;
                        }
                        Admitted::AsProbe => answer_once(stream, Arc::clone(&state.status)).await,
                        Admitted::Not => {}
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, or a client that left already. Trying again at once would spin.
                tracing::warn!(%error, "accepting a connection failed");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// What becomes of a connection.
enum Admitted {
    With(OwnedSemaphorePermit),
    AsProbe,
    Not,
}

/// Waits for a place among the connections, as long as nobody takes the seat to wait on. A probe does not wait.
async fn admit(stream: &TcpStream, permits: Arc<Semaphore>, mut seat: Permit) -> Admitted {
    if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
        return Admitted::With(permit);
    }
    let probe = async {
        // What has not said so by now is none.
        if timeout(LAST_WORDS, is_probe(stream)).await != Ok(true) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        permit = permits.acquire_owned() => permit.map_or(Admitted::Not, Admitted::With),
        () = probe => Admitted::AsProbe,
        () = seat.lost() => Admitted::Not,
    }
}

/// Whether what comes first is a probe's request line.
async fn is_probe(stream: &TcpStream) -> bool {
    let mut line = [0; 64];
    while let Ok(count @ 1..) = stream.peek(&mut line).await {
        let begun = String::from_utf8_lossy(&line[..count]);
        let mut words = begun.split_inclusive(' ').take(2).filter_map(|word| word.strip_suffix(' '));
        match (words.next(), words.next()) {
            (Some("GET" | "HEAD"), Some(path)) => return health::probe(path).is_some(),
            // The rest is on its way; a socket that has something is ready at once.
            (Some("GET" | "HEAD") | None, None) if count < line.len() => {
                sleep(Duration::from_millis(10)).await;
            }
            _ => return false,
        }
    }
    false
}

/// Resolves when a connection must not wait for another request: at the end of the shutdown, or a little later where it has
/// had none yet, since whoever has just come is told to go elsewhere, not hung up on.
async fn told_to_end(mut end: watch::Receiver<bool>, link: Link) -> watch::Receiver<bool> {
    let _ended = end.wait_for(|end| *end).await.is_ok();
    let since = Instant::now();
    while link.begun() == 0 && since.elapsed() < FIRST_WORDS {
        sleep(Duration::from_millis(5)).await;
    }
    end
}

/// Reads to the end, for nothing.
async fn swallow(stream: &TcpStream) {
    // Not on the stack, which every connection would carry with it all its life.
    let mut sink = vec![0; 16 << 10];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut sink) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// Nobody waits for the response any more.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
struct Gone;

impl From<Infallible> for Gone {
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
        // Without it each token would wait for the acknowledgement of the last.
        let _unsupported = stream.set_nodelay(true);
        let link = Link::default();
        let stream = Arc::new(stream);
        let rest = Arc::clone(&stream);
        let io = TokioIo::new(Guarded::new(Arc::clone(&stream), link.clone(), &state.settings.http));
        let told = told_to_end(end, link.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let busy = link.begin(&state);
            let answer = router.clone().oneshot(request.map(Body::new));
            let stream = Arc::clone(&stream);
            async move {
                tokio::select! {
                    response = answer => Ok(response?.map(|body| Held::new(body, busy))),
                    () = hung_up(&stream) => Err(Gone),
                }
            }
        });
        let mut builder = http1::Builder::new();
        let connection = builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(HEAD_BUFFER)
            .max_headers(HEAD_FIELDS)
            // Events are short: copied into one buffer they cost the system less than as a list of pieces.
            .writev(false)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _held = told => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        match ended {
            Ok(()) => _ = timeout(LINGER, swallow(&rest)).await,
            Err(error) => tracing::debug!(%error, "a connection ended early"),
        }
        drop(permit);
    }
}
