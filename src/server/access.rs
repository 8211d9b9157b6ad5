//! Decides from a request's head whether its route may be called: size, host, origin, API key, shutdown.
//!
//! With an API key, only requests with the key are served. Without one, every program that reaches the server
//! may use it, but no web page of another origin: browsers send the page's origin with every POST, and
//! the page's host name in `Host` if the page pretends to be this server.
//!
//! This covers every route, so that a route added later is protected unless it is listed here.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::ORIGIN;
use axum::http::{HeaderValue, Method, Response};

use super::api_keys::{self, Caller};
use super::cors::{is_preflight, is_same_origin};
use super::docs;
use super::error::ApiError;
use super::health;
use super::host::{self, Authority};
use super::page;
use super::state::ServerState;
use crate::generation::Refusal;
use crate::request::Reject;

/// Routes whose requests are counted as admitted or refused.
const GENERATE: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/reward",
    "/pooling",
    "/classify",
    "/get_reward",
];
/// The scrape by Prometheus, which has no key, comes under any name, and goes on during the shutdown.
const METRICS: &str = "/metrics";
const VERSION: &str = "/version";

/// How a request is answered.
pub(super) enum Access {
    /// The request is a preflight request and gets this response; no route is called.
    Preflight(Response<Body>),
    /// The request gets the response of its route.
    Route {
        /// Tenant and priority, if the API key is a named one.
        caller: Option<Caller>,
        /// Whether the response may contain the usage of each key and user.
        usage: UsageAccess,
    },
}

/// Whether the response to a request may contain the usage of each key and user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct UsageAccess(pub(super) bool);

/// Checks the head of a request.
///
/// # Errors
/// Status 400, 401, 403, 431, or 503 during the shutdown.
pub(super) fn check(state: &ServerState, request: &Request) -> Result<Access, ApiError> {
    check_size(state, request)?;
    let host = host::of(request)?;
    if let Some(response) = state.origins.preflight(request) {
        return Ok(Access::Preflight(response));
    }
    let path = request.uri().path();
    // Load balancers have no key, and must get an answer during the shutdown too.
    if health::probe(path).is_some() {
        return Ok(Access::Route { caller: None, usage: UsageAccess(false) });
    }
    let access = if state.keys.is_empty() {
        let allowed = check_source(state, request, host);
        let usage = UsageAccess(allowed.is_ok());
        if path != METRICS {
            allowed?;
        }
        Access::Route { caller: None, usage }
    } else {
        check_key(state, request, host)?
    };
    if state.refuses_requests() && path != METRICS {
        if request.method() == Method::POST && GENERATE.contains(&path) {
            state.metrics.refused(&Refusal::Rejected(Reject::Draining));
        }
        return Err(ApiError::Draining);
    }
    Ok(access)
}

fn check_size(state: &ServerState, request: &Request) -> Result<(), ApiError> {
    let (limits, headers) = (&state.settings.http, request.headers());
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let line = request.uri().path().len() + request.uri().query().map_or(0, str::len);
    if bytes + line > limits.max_head_bytes || headers.len() > limits.max_headers {
        return Err(ApiError::HeadersTooLarge(limits.max_head_bytes, limits.max_headers));
    }
    Ok(())
}

/// Checks the host and the origin of a request to a server without an API key.
fn check_source(state: &ServerState, request: &Request, host: Option<Authority<'_>>) -> Result<(), ApiError> {
    match host {
        Some(Authority { host, .. }) if !state.hosts.allow(host) => {
            Err(ApiError::HostNotAllowed(host.to_owned()))
        }
        host => check_origin(state, request, host),
    }
}

/// Checks that a request comes from no web page, from one of this server's own host and port, or from one of
/// an allowed origin. The origin `null`, which sandboxed pages and files have, is foreign.
fn check_origin(state: &ServerState, request: &Request, host: Option<Authority<'_>>) -> Result<(), ApiError> {
    let is_foreign = |origin: &&HeaderValue| {
        !state.origins.allow(origin) && !host.is_some_and(|host| is_same_origin(origin, host))
    };
    let foreign = request.headers().get_all(ORIGIN).iter().find(is_foreign);
    let text = |origin: &HeaderValue| String::from_utf8_lossy(origin.as_bytes()).into_owned();
    foreign.map_or(Ok(()), |origin| Err(ApiError::OriginNotAllowed(text(origin))))
}

/// Checks the API key. A route that needs none is called without one. A wrong key is refused there too: a
/// scrape with an outdated key would otherwise lose the usage of keys without notice.
fn check_key(
    state: &ServerState,
    request: &Request,
    host: Option<Authority<'_>>,
) -> Result<Access, ApiError> {
    let path = request.uri().path();
    if is_preflight(request) {
        check_origin(state, request, host)?;
    }
    let is_open = [VERSION, docs::PATH].contains(&path)
        || page::has(path)
        || (path == METRICS && !state.settings.metrics_need_key);
    match api_keys::given(request.headers())? {
        None if is_open => Ok(Access::Route { caller: None, usage: UsageAccess(false) }),
        key => Ok(Access::Route { caller: state.keys.authenticate(key)?, usage: UsageAccess(true) }),
    }
}
