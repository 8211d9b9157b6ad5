//! The host that a server listens on: an address or a name.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{bail, ensure};

/// Address of the loopback interface, the default.
pub(super) const LOOPBACK: Host = Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));

/// The value of `--host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// An IPv4 or IPv6 address.
    Address(IpAddr),
    /// A name, looked up when the server starts.
    Name(String),
}

impl Host {
    /// Socket addresses of this host. A name has every IPv4 and IPv6 address to which the system resolves it.
    ///
    /// # Errors
    /// The name cannot be resolved; the error has the name and the system's reason.
    pub(crate) fn resolve(&self, port: u16) -> io::Result<Vec<SocketAddr>> {
        let name = match self {
            Self::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
            Self::Name(name) => name,
        };
        let fail =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot resolve `{name}`: {error}"));
        let mut addresses = Vec::new();
        for address in (name.as_str(), port).to_socket_addrs().map_err(fail)? {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// Host and port as in a URL.
    pub(crate) fn with_port(&self, port: u16) -> String {
        match self {
            Self::Address(address) => SocketAddr::new(*address, port).to_string(),
            Self::Name(name) => format!("{name}:{port}"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Host {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(address) = bracketed.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
            return Ok(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text {
            "" => bail!(
                "expected an address or a host name, got an empty value; \
                 0.0.0.0 listens on every IPv4 interface"
            ),
            "*" => {
                bail!("expected an address or a host name, got `*`; 0.0.0.0 listens on every IPv4 interface")
            }
            _ => {}
        }
        ensure!(!text.contains('/'), "expected an address or a host name without a scheme, got `{text}`");
        if let Some((host, port)) = text.rsplit_once(':')
            && !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && (host.starts_with('[') || !host.contains(':'))
        {
            bail!("expected an address or a host name without a port, got `{text}`; --port sets the port");
        }
        // Text of only digits and dots is a mistyped address, not a name.
        let numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let named = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        // An IPv6 address may name its interface: fe80::1%eth0.
        let scoped = text
            .split_once('%')
            .is_some_and(|(address, interface)| address.parse::<Ipv6Addr>().is_ok() && !interface.is_empty());
        ensure!(
            scoped || (named && !numeric && text.len() <= 253 && !text.starts_with('-')),
            "expected an IPv4 address, an IPv6 address or a host name, got `{text}`"
        );
        Ok(Self::Name(text.to_owned()))
    }
}
