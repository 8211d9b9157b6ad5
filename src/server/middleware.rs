//! What every request passes, whatever its route, known or not: limits of its head, the key, the drain; and what every
//! response gets: a request id and a place in the metrics.
//!
//! A layer around the whole router asks for the key, so that a route added later is closed unless it is a
//! probe's.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::answer::random;
use super::error::{ApiError, ErrorLabel};
use super::{ServerState, health};
use crate::generation::Refusal;
use crate::request::{Reject, Tenant};

/// The routes whose requests are admitted or refused.
const GENERATE: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// A key of which only the digest is kept.
pub struct Key([u8; 32]);

impl Key {
    /// Digests a key.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// What it is called in metrics and logs: enough of the digest to tell keys apart, and too little to find one.
    pub fn label(&self) -> String {
        self.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether the headers carry this key. Takes as long for a nearly right key as for a wrong one: digests of equal
    /// length are compared, in constant time.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes) else { return false };
        let Some((scheme, key)) = value.split_at_checked(7) else { return false };
        let digest: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(digest.ct_eq(&self.0))
    }
}

/// Whose a key is.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// Who is served.
    pub tenant: Tenant,
    /// Added to that of each request, which is not below 0.
    pub priority: i32,
}

/// All keys that open the door; with none it stands open. A key need not say whose it is.
#[derive(Default)]
pub struct Keys(Vec<(Key, Option<Caller>)>);

impl Keys {
    /// One for all, and several that say whose they are.
    pub fn new(shared: Option<&str>, named: &[(String, Caller)]) -> Self {
        let shared = shared.map(|key| (Key::new(key), None));
        let named = named.iter().map(|(key, caller)| (Key::new(key), Some(caller.clone())));
        Self(shared.into_iter().chain(named).collect())
    }

    /// Every key that may pay, by what it is called in metrics and logs.
    pub fn payers(&self) -> Vec<String> {
        let nobody = Tenant::default();
        let payer = |caller: &Option<Caller>| self.payer(caller.as_ref().map_or(&nobody, |c| &c.tenant));
        let open = self.0.is_empty().then(|| self.payer(&nobody));
        open.into_iter().chain(self.0.iter().map(|(_, caller)| payer(caller))).collect()
    }

    /// Who pays for a tenant's requests, in metrics and logs: the tenant by its name, or else the key that all share.
    pub fn payer(&self, tenant: &Tenant) -> String {
        let shared = self.0.iter().find(|(_, caller)| caller.is_none());
        let shared = shared.map_or_else(|| "none".to_owned(), |(key, _)| key.label());
        match tenant.name.strip_prefix("user:") {
            // A user may have any name, also one that stands for others: it keeps what says that it is a user's.
            Some(user) if user.starts_with("key:") || user.starts_with("user:") => tenant.name.to_string(),
            Some(user) if ["none", "other", &shared].contains(&user) => tenant.name.to_string(),
            Some(user) => user.to_owned(),
            None if tenant.name.is_empty() => shared,
            None => tenant.name.to_string(),
        }
    }

    /// Whose request it is, if anybody's. All keys are compared, whichever is right.
    fn admit(&self, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
        let right = self.0.iter().fold(None, |right, (key, caller)| match key.admits(headers) {
            true => Some(caller),
            false => right,
        });
        match right {
            Some(caller) => Ok(caller.clone()),
            None if self.0.is_empty() => Ok(None),
            None => Err(ApiError::BadKey),
        }
    }
}

/// The layer.
pub async fn pass(State(state): State<Arc<ServerState>>, mut request: Request, next: Next) -> Response<Body> {
    let began = Instant::now();
    let id = request_id(request.headers());
    let handler = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "PATCH") => known.to_owned(),
        _ => "OTHER".to_owned(),
    };
    let mut response = match check(&state, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(RequestId(id.clone()));
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        *response.status_mut() = state.settings.queue_full_status;
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    if state.draining() {
        // So that a balancer's pool of connections empties while there is still time.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16();
    if let Some(ErrorLabel(code)) = response.extensions().get() {
        state.metrics.error(code);
        tracing::debug!(request_id = id, status, code, "an error");
    }
    state.metrics.http(handler.as_deref().unwrap_or("none"), &method, status, began.elapsed());
    response
}

fn check(state: &ServerState, request: &Request) -> Result<Option<Caller>, ApiError> {
    let (limits, headers) = (&state.settings.http, request.headers());
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let line = request.uri().path().len() + request.uri().query().map_or(0, str::len);
    if bytes + line > limits.max_head_bytes || headers.len() > limits.max_headers {
        return Err(ApiError::HeadersTooLarge(limits.max_head_bytes, limits.max_headers));
    }
    // Probes need no key and are answered while draining: load balancers have no key.
    if health::probe(request.uri().path()).is_some() {
        return Ok(None);
    }
    let caller = state.keys.admit(headers)?;
    if state.refuses() && request.uri().path() != "/metrics" {
        if request.method() == Method::POST && GENERATE.contains(&request.uri().path()) {
            state.metrics.refused(&Refusal::Rejected(Reject::Draining));
        }
        return Err(ApiError::Draining);
    }
    Ok(caller)
}

/// The request's id, for its handler.
#[derive(Debug, Clone)]
struct RequestId(String);

/// The id of a request that has passed.
pub fn id_of(request: &Request) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// The client's id if it is a sane one, else one of ours.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        let tame = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        (1..=128).contains(&id.len()) && id.bytes().all(tame)
    };
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok()).filter(sane);
    given.map_or_else(|| format!("req-{:016x}", random().unwrap_or_default()), str::to_owned)
}
