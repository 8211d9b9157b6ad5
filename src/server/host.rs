//! The host of a request: the syntax of the `Host` header as RFC 9112 has it, and the host names that are
//! allowed while there is no API key.
//!
//! A web page can let its own name resolve to this machine's address (DNS rebinding). The browser then takes
//! this server for the page's own, and only the `Host` header shows the difference.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{Request, Version};

use super::error::ApiError;

/// A host and an optional port.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Authority<'a> {
    /// A name or an address, an IPv6 address with its brackets.
    pub(super) host: &'a str,
    /// The port, if one is written out.
    pub(super) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses `host` or `host:port`. The port may be empty, as in `host:`.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let end = match text.strip_prefix('[') {
            Some(rest) => rest.find(']')? + 2,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at(end);
        let port = match (rest, rest.strip_prefix(':')) {
            ("" | ":", _) => None,
            (_, Some(digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            _ => return None,
        };
        is_host(host).then_some(Self { host, port })
    }
}

/// Returns true for an IPv6 address in brackets, an IPv4 address, or a `reg-name` of RFC 3986.
fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
    let is_escape = |rest: &str| rest.get(..2).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    !host.is_empty() && host.bytes().all(is_allowed) && host.split('%').skip(1).all(is_escape)
}

/// The host that a request is for: that of an absolute request target, else that of the `Host` header. `None`
/// for an HTTP/1.0 request without either.
///
/// # Errors
/// 400 if an HTTP/1.1 request has no `Host` header, and for more than one or an invalid one.
pub(super) fn of<B>(request: &Request<B>) -> Result<Option<Authority<'_>>, ApiError> {
    let invalid = |got: &str| {
        let text = format!("Expected one Host header with a host and an optional port, got {got}.");
        ApiError::Malformed(text)
    };
    let parse = |text| Authority::parse(text).ok_or_else(|| invalid(&format!("`{text}`")));
    let mut values = request.headers().get_all(HOST).iter();
    let header = match (values.next(), values.next()) {
        (_, Some(_)) => return Err(invalid("several")),
        (None, None) if request.version() >= Version::HTTP_11 => return Err(invalid("none")),
        (None, None) => None,
        (Some(value), None) => Some(value.to_str().map_err(|_not_ascii| invalid("other characters"))?),
    };
    let header = header.map(parse).transpose()?;
    match request.uri().authority() {
        Some(target) => parse(target.as_str()).map(Some),
        None => Ok(header),
    }
}

/// Host names that requests may use while there is no API key, in addition to IP addresses and `localhost`.
pub(super) struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// `hosts` are names in lower case, `*.NAME` for every name below NAME, or `*` for every name.
    pub(super) fn new(hosts: &[String]) -> Self {
        Self(hosts.to_vec())
    }

    /// Returns true if a request may use this host.
    pub(super) fn allow(&self, host: &str) -> bool {
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let is_address = name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok();
        let matches = |allowed: &String| match allowed.strip_prefix('*') {
            Some(end) => name.ends_with(end),
            None => name == *allowed,
        };
        // Browsers resolve names below `localhost` to the loopback address and never ask the network.
        is_address || name == "localhost" || name.ends_with(".localhost") || self.0.iter().any(matches)
    }
}
