//! Health port and admin port, on a thread with an async runtime of its own: they answer while all workers of
//! the server are busy, while weights are loaded, and while the engine hangs.
//!
//! The health port has the paths of [`ALIASES`](super::health::ALIASES). The admin port has those and
//! `/admin/drain`. POST begins the shutdown, as a first signal does, and responds when no request is open any
//! more, or at once with `?wait=false`. A server that is still starting stops its start. GET returns the
//! shutdown's progress. The admin port needs no key, so it listens on the loopback address by default.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
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
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::access_log::AccessRecord;
use super::error::ApiError;
use super::evicting_permits::EvictingPermits;
use super::health::{self, Probe};
use super::host;
use super::listener::{Listener, bind};
use super::middleware::answered;
use super::status::{ServerStatus, ShutdownPhase};

/// The admin port's own path.
const DRAIN: &str = "/admin/drain";
/// Maximum connections of a port. A further connection closes the oldest one, so that probes always get in.
const MAX_CONNECTIONS: usize = 64;
/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Age and number of responses after which a connection to the health port closes. The last response says so
/// with `connection: close`: a supervisor that keeps its connection must not mistake its end for the
/// end of the server.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);
const MAX_RESPONSES: usize = 1000;
/// Time beyond [`MAX_CONNECTION_AGE`] for the last response.
const LAST_RESPONSE: Duration = Duration::from_secs(10);
/// Interval at which a POST looks for the end of the drain.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Pause after a failed accept, which would fail again at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// The port that a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Health,
    Admin,
}

/// Addresses of the two ports; none for a port that is not served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManagementPorts {
    /// Health port, for probes.
    pub health: Vec<SocketAddr>,
    /// Admin port, for the operator.
    pub admin: Vec<SocketAddr>,
}

/// The thread of both ports. Dropping it stops the thread and waits for its end.
pub struct ManagementThread {
    /// Bound addresses, with the port numbers that the system chose for port 0.
    pub ports: ManagementPorts,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ManagementThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _panic_already_printed = thread.join();
        }
    }
}

/// Binds the ports and serves them from now on. Without a port, no thread is started.
///
/// # Errors
/// The system's error with the address, such as an address in use.
pub fn start(ports: ManagementPorts, status: &Arc<ServerStatus>) -> io::Result<ManagementThread> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = |addresses: &[SocketAddr]| -> io::Result<Option<Listener>> {
        if addresses.is_empty() {
            return Ok(None);
        }
        let _inside = runtime.enter();
        bind(addresses).map(Some)
    };
    let (health, admin) = (listen(&ports.health)?, listen(&ports.admin)?);
    let bound = |listener: &Option<Listener>| listener.as_ref().map_or(Ok(Vec::new()), Listener::addresses);
    let ports = ManagementPorts { health: bound(&health)?, admin: bound(&admin)? };
    if ports == ManagementPorts::default() {
        return Ok(ManagementThread { ports, stop: None, thread: None });
    }
    let (stop, stopped) = oneshot::channel();
    let status = Arc::clone(status);
    let thread = std::thread::Builder::new().name("health".to_owned()).spawn(move || {
        runtime.block_on(async {
            for (listener, port) in [(health, Port::Health), (admin, Port::Admin)] {
                if let Some(listener) = listener {
                    tokio::spawn(accept(listener, port, Arc::clone(&status)));
                }
            }
            let _dropped = stopped.await;
            // A POST that waits for the end of the drain must get its response first.
            sleep(2 * DRAIN_POLL).await;
        });
    })?;
    Ok(ManagementThread { ports, stop: Some(stop), thread: Some(thread) })
}

async fn accept(listener: Listener, port: Port, status: Arc<ServerStatus>) {
    let permits = EvictingPermits::new(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let (status, mut permit) = (Arc::clone(&status), permits.acquire());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(stream, port, &status) => {}
                        () = permit.evicted() => {}
                    }
                });
            }
            Err(_disconnected_or_no_descriptors) => sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn serve(stream: TcpStream, port: Port, status: &Arc<ServerStatus>) {
    let _unsupported = stream.set_nodelay(true);
    let (began, responses) = (Instant::now(), AtomicUsize::new(0));
    let service = service_fn(|request: Request<Incoming>| {
        let status = Arc::clone(status);
        let is_last = responses.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_RESPONSES
            || began.elapsed() >= MAX_CONNECTION_AGE;
        async move {
            let record = AccessRecord::new(request.method().as_str(), request.uri().path(), None);
            let mut response = respond(&request, port, &status).await;
            answered(&record, &response);
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
        Port::Health => _ = timeout(MAX_CONNECTION_AGE + LAST_RESPONSE, connection).await,
        // A POST may wait for long, until the drain is over.
        Port::Admin => _ = connection.await,
    }
}

async fn respond(request: &Request<Incoming>, port: Port, status: &ServerStatus) -> Response<Body> {
    let (method, path) = (request.method(), request.uri().path());
    let requested = format!("{method} {path}");
    if let Err(error) = host::of(request) {
        return error.into_response();
    }
    if let Some(probe) = health::probe(path) {
        return match *method {
            Method::GET | Method::HEAD => health::respond(status, probe),
            _ => ApiError::NoMethod(requested).into_response(),
        };
    }
    if port != Port::Admin || path != DRAIN {
        return ApiError::NoRoute(requested).into_response();
    }
    match *method {
        Method::GET | Method::HEAD => drain_progress(status),
        Method::POST => match drain(request, status).await {
            Ok(()) => drain_progress(status),
            Err(error) => error.into_response(),
        },
        _ => ApiError::NoMethod(requested).into_response(),
    }
}

/// Requests the shutdown, and waits for its end unless the query says otherwise.
async fn drain(request: &Request<Incoming>, status: &ServerStatus) -> Result<(), ApiError> {
    let wait = match request.uri().query() {
        None | Some("wait=true") => true,
        Some("wait=false") => false,
        Some(query) => {
            let text = format!("expected ?wait=true or ?wait=false, got ?{query}");
            return Err(ApiError::invalid("wait", text));
        }
    };
    // A web page of any origin can send such a request from a browser on this machine.
    if request.headers().contains_key(ORIGIN) {
        return Err(ApiError::invalid(
            "origin",
            "expected no Origin header: a drain cannot be requested from a browser",
        ));
    }
    status.request_drain();
    while wait && status.phase() < ShutdownPhase::Drained {
        sleep(DRAIN_POLL).await;
    }
    Ok(())
}

/// Responds with the progress of the shutdown.
fn drain_progress(status: &ServerStatus) -> Response<Body> {
    let now = Instant::now();
    let snapshot = status.snapshot();
    let phase = match snapshot.phase {
        ShutdownPhase::Serving => "serving",
        ShutdownPhase::Grace => "leaving",
        ShutdownPhase::Refusing => "refusing",
        ShutdownPhase::Aborting => "stopped",
        ShutdownPhase::Drained => "drained",
    };
    let left = snapshot.drained_by.map(|by| by.saturating_duration_since(now).as_secs_f64());
    let health = health::assess(&snapshot, now);
    let body = json!({
        "object": "drain.status",
        "phase": phase,
        "open_requests": snapshot.open_requests,
        "drain_remaining_s": left,
        "ready": health.passes(Probe::Ready),
    });
    axum::Json(body).into_response()
}
