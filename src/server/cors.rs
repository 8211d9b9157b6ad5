//! Requests by web pages of other origins: which origins are allowed, the answer to a preflight request, and
//! the headers that let a browser show a response to the page (CORS).
//!
//! The server uses no cookies, so there is no `Access-Control-Allow-Credentials`: a page sends its API key in
//! a header, which needs only the header's name in `Access-Control-Allow-Headers`.

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use super::host::Authority;

/// Methods of all routes.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE, OPTIONS");
/// Request headers that pages may send, for a preflight request that names none. One that names headers gets
/// exactly those: client libraries send several whose names vary, such as `x-stainless-retry-count`.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, x-api-key, x-request-id, x-request-deadline-ms, x-stainless-arch, \
     x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-retry-count, \
     x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout",
);
/// Response headers that pages may read, beside those that every page may read.
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "x-request-id, retry-after, retry-after-ms, x-should-retry, x-ignored-fields, www-authenticate",
);
/// Seconds for which a browser may use the answer to a preflight request again.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// Headers that the answer to a preflight request depends on.
const PREFLIGHT_VARY: HeaderValue = HeaderValue::from_static(
    "origin, access-control-request-method, access-control-request-headers, \
     access-control-request-private-network",
);
/// Chrome asks with the first header whether a public page may use a private address; the second one agrees.
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Origins whose web pages may use the server.
pub(super) enum AllowedOrigins {
    /// Every origin.
    All,
    /// These origins, in lower case.
    Listed(Vec<String>),
}

impl AllowedOrigins {
    /// `origins` are in lower case, or `*` for all. An empty list allows no other origin.
    pub(super) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") { Self::All } else { Self::Listed(origins.to_vec()) }
    }

    /// Returns true if the value of an `Origin` header is allowed.
    pub(super) fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::All => true,
            Self::Listed(origins) => {
                origins.iter().any(|listed| origin.as_bytes().eq_ignore_ascii_case(listed.as_bytes()))
            }
        }
    }

    /// Returns the answer if this is a preflight request of an allowed origin. A browser sends it, without
    /// the API key, to ask whether the page may send the request itself.
    pub(super) fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let asked = request.headers();
        let allowed = is_preflight(request) && asked.get(ORIGIN).is_some_and(|origin| self.allow(origin));
        if !allowed {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        let names = asked.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(REQUEST_HEADERS);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        headers.insert(VARY, PREFLIGHT_VARY);
        if asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true") {
            headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        Some(response)
    }

    /// Adds the headers that let a page of an allowed origin read the response. `origin` is the value of the
    /// request's `Origin` header.
    pub(super) fn add_headers(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let allowed = match self {
            Self::All => HeaderValue::from_static("*"),
            Self::Listed(origins) if origins.is_empty() => return,
            Self::Listed(_) => {
                // A cache must not give one origin the response for another.
                headers.entry(VARY).or_insert(HeaderValue::from_static("origin"));
                match origin {
                    Some(origin) if self.allow(origin) => origin.clone(),
                    _ => return,
                }
            }
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
    }
}

/// Returns true if a browser sent the request to ask whether a page may send another one.
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns true if the page of an `Origin` header came from this host and port. The scheme is not compared: a
/// proxy may have removed the encryption.
pub(super) fn is_same_origin(origin: &HeaderValue, host: Authority<'_>) -> bool {
    let Some((scheme, authority)) = origin.to_str().ok().and_then(|text| text.split_once("://")) else {
        return false;
    };
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    Authority::parse(authority).is_some_and(|page| {
        page.host.eq_ignore_ascii_case(host.host)
            && page.port.unwrap_or(default) == host.port.unwrap_or(default)
    })
}
