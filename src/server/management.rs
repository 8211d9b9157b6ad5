//! The health port and the admin port, on a thread of their own with a runtime of its own: they answer while every
//! worker of the server is busy, while weights are loaded, and while the engine hangs.
//!
//! The health port knows the paths of [`ALIASES`](super::health::ALIASES). The admin port knows those too, and
//! `/admin/drain`: POST begins the shutdown, as a first signal does, and answers when no request is open any more, or
//! at once with `?wait=false`; a server that still starts gives that up. GET says how far it has got. It has no key: who reaches it may use it, which is why it
//! listens to this machine alone unless told otherwise.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONNECTION, ORIGIN};
use axum::http::{HeaderValue, Method, Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::error::ApiError;
use super::evicting_permits::EvictingPermits;
use super::health::{self, Probe};
use super::listen::bind;
use super::status::{Phase, ServerStatus};

/// The only path of the admin port's own.
const DRAIN: &str = "/admin/drain";
/// Connections of a port at once. One more ends the oldest, so that probes get in whoever else holds connections.
const MAX_CONNECTIONS: usize = 64;
/// A connection that has sent no whole head for so long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection to the health port answers no more after so long, or so many requests; the last answer says so, since a
/// supervisor that keeps its connection must not take the end of it for that of the server.
const LIFE: Duration = Duration::from_secs(60);
const ANSWERS: usize = 1000;
/// What then takes longer is a client that does not read.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// How often a wait for the end of a drain looks.
const LOOK: Duration = Duration::from_millis(20);

/// Which of the two ports a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Health,
    Admin,
}

/// Where to listen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManagementPorts {
    /// For probes.
    pub health: Option<SocketAddr>,
    /// For the operator.
    pub admin: Option<SocketAddr>,
}

/// The thread; it ends when this is dropped.
pub struct ManagementThread {
    /// Where it listens, with the ports that the system chose.
    pub ports: ManagementPorts,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ManagementThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _its_panic_is_shown_by_then = thread.join();
        }
    }
}

/// Listens, and answers from then on; starts no thread where there is no port.
///
/// # Errors
/// Of the system, such as an address in use, naming it.
pub fn start(ports: ManagementPorts, status: &Arc<ServerStatus>) -> io::Result<ManagementThread> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = |address: Option<SocketAddr>| -> io::Result<Option<StdListener>> {
        let Some(address) = address else { return Ok(None) };
        let _inside = runtime.enter();
        let listener = bind(address).and_then(TcpListener::into_std);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        listener.map(Some).map_err(named)
    };
    let (health, admin) = (listen(ports.health)?, listen(ports.admin)?);
    let bound = |listener: &Option<StdListener>| listener.as_ref().map(StdListener::local_addr).transpose();
    let ports = ManagementPorts { health: bound(&health)?, admin: bound(&admin)? };
    if ports == ManagementPorts::default() {
        return Ok(ManagementThread { ports, stop: None, thread: None });
    }
    let (stop, stopped) = oneshot::channel();
    let status = Arc::clone(status);
    let thread = std::thread::Builder::new().name("health".to_owned()).spawn(move || {
        runtime.block_on(async {
            for (listener, port) in [(health, Port::Health), (admin, Port::Admin)] {
                let Some(listener) = listener else { continue };
                match TcpListener::from_std(listener) {
                    Ok(listener) => _ = tokio::spawn(accept(listener, port, Arc::clone(&status))),
                    Err(error) => tracing::error!(%error, ?port, "a port is not served"),
                }
            }
            let _dropped = stopped.await;
            // Whoever waits for the end of a drain is told of it first.
            sleep(2 * LOOK).await;
        });
    })?;
    Ok(ManagementThread { ports, stop: Some(stop), thread: Some(thread) })
}

async fn accept(listener: TcpListener, port: Port, status: Arc<ServerStatus>) {
    let evicting_permits = EvictingPermits::new(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let (status, mut seat) = (Arc::clone(&status), evicting_permits.enter());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(stream, port, &status) => {}
                        () = seat.lost() => {}
                    }
                });
            }
            Err(_left_or_no_descriptors) => sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn serve(stream: TcpStream, port: Port, status: &Arc<ServerStatus>) {
    let _unsupported = stream.set_nodelay(true);
    let (began, answers) = (Instant::now(), AtomicUsize::new(0));
    let service = service_fn(|request: Request<Incoming>| {
        let status = Arc::clone(status);
        let is_last = answers.fetch_add(1, Ordering::Relaxed) + 1 >= ANSWERS || began.elapsed() >= LIFE;
        async move {
            let mut response = answer(&request, port, &status).await;
            if is_last && port == Port::Health {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match port {
        Port::Health => _ = timeout(LIFE + LAST_ANSWER, connection).await,
        // A drain may take long, and few may ask for one.
        Port::Admin => _ = connection.await,
    }
}

async fn answer(request: &Request<Incoming>, port: Port, status: &ServerStatus) -> Response<Body> {
    let (method, path) = (request.method(), request.uri().path());
    let refused = format!("{method} {path}");
    if let Some(probe) = health::probe(path) {
        return match *method {
            Method::GET | Method::HEAD => health::answer(status, probe),
            _ => ApiError::NoMethod(refused).into_response(),
        };
    }
    if port != Port::Admin || path != DRAIN {
        return ApiError::NoRoute(refused).into_response();
    }
    match *method {
        Method::GET | Method::HEAD => {}
        Method::POST => {
            let wait = match request.uri().query() {
                None | Some("wait=true") => true,
                Some("wait=false") => false,
                Some(_) => return ApiError::invalid("wait", "expected true or false").into_response(),
            };
            // Pages of other origins may send such a request from a browser on this machine.
            if request.headers().contains_key(ORIGIN) {
                return ApiError::invalid("origin", "a drain is not asked for from a browser")
                    .into_response();
            }
            status.ask_drain();
            while wait && status.phase() < Phase::Drained {
                sleep(LOOK).await;
            }
        }
        _ => return ApiError::NoMethod(refused).into_response(),
    }
    drain_status(status)
}

/// How far the shutdown has got.
fn drain_status(status: &ServerStatus) -> Response<Body> {
    let now = Instant::now();
    let reading = status.read();
    let phase = match reading.phase {
        Phase::Serving => "serving",
        Phase::Leaving => "leaving",
        Phase::Refusing => "refusing",
        Phase::Stopped => "stopped",
        Phase::Drained => "drained",
    };
    let left = reading.drained_by.map(|by| by.saturating_duration_since(now).as_secs_f64());
    let health = health::judge(&reading, now);
    let body = json!({
        "object": "drain.status",
        "phase": phase,
        "open_requests": reading.open,
        "drain_remaining_s": left,
        "ready": health.answers(Probe::Ready),
    });
    axum::Json(body).into_response()
}
