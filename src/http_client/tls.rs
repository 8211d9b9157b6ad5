//! TLS to servers whose URL is https.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::certificates::{CertificateError, CertificateFile, with_hint};

/// TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate can have this name.
    #[error("{host}: expected a host name or an address; {why}")]
    Host {
        /// The host.
        host: String,
        /// Reason.
        why: String,
    },
    /// The root certificates cannot be used.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
}

/// Settings of TLS to one server.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    /// The name that the server's certificate must have.
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.name).finish()
    }
}

impl Tls {
    /// Reads the root certificates. `host` is a name or an address; an IPv6 address may have brackets.
    pub(super) fn new(host: &str) -> Result<Self, TlsError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare);
        let name = name.map_err(|error| TlsError::Host { host: host.to_owned(), why: error.to_string() })?;
        let mut roots = RootCertStore::empty();
        match CertificateFile::of_environment() {
            Some(file) => {
                for certificate in file.read()? {
                    roots.add(certificate).map_err(|error| file.wrong(&error))?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions();
        let mut config = versions
            .expect("the provider has cipher suites of the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), name })
    }

    /// Encrypts a connection.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.name.clone(), stream).await;
        stream.map_err(|error| io::Error::new(error.kind(), with_hint(error.to_string())))
    }
}
