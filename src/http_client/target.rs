//! The server that requests go to.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};

use super::tls::{Tls, TlsError};

/// A server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URL is not valid.
    #[error("{url}: {why}")]
    Url {
        /// The URL.
        url: String,
        /// Reason.
        why: String,
    },
    /// The URL is https, and TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The API key is not a valid header value.
    #[error("the API key has characters that are not allowed in a header")]
    Key,
}

/// Address, base path and API key of a server.
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) authority: String,
    /// Host and port to connect to.
    pub(super) address: String,
    /// Settings of TLS, for https.
    pub(super) tls: Option<Tls>,
    /// Path before `/v1`.
    prefix: String,
    key: Option<HeaderValue>,
}

impl Target {
    /// Parses the URL of a server, with or without `/v1` at its end.
    ///
    /// # Errors
    /// The URL is not valid, the key is not a valid header value, or the root certificates for https cannot
    /// be read.
    pub fn parse(url: &str, key: Option<&str>) -> Result<Self, TargetError> {
        let bad = |why: &str| TargetError::Url { url: url.to_owned(), why: why.to_owned() };
        let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| bad(&error.to_string()))?;
        let (is_encrypted, port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(bad("expected http:// or https:// at the start")),
        };
        let authority = uri.authority().ok_or_else(|| bad("expected a host"))?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(bad("expected neither query nor password"));
        }
        let path = uri.path().trim_end_matches('/');
        let key = key.map(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| TargetError::Key)?;
            value.set_sensitive(true);
            Ok::<_, TargetError>(value)
        });
        Ok(Self {
            authority: authority.to_string(),
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(port)),
            tls: is_encrypted.then(|| Tls::new(authority.host())).transpose()?,
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            key: key.transpose()?,
        })
    }

    /// The host, with the port if the URL has one.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// A request to this server. `path` begins with a slash and stands below the server's base path.
    ///
    /// # Panics
    /// If `path` is not a valid path.
    pub(crate) fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() =
            format!("{}{path}", self.prefix).parse().expect("the prefix is a path of a valid URL");
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.authority).expect("an authority is a valid header value");
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
        if let Some(key) = &self.key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        request
    }
}
