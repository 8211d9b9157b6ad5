//! Connections to a server.

use std::io;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Target;

/// Opens a connection, with TLS if the URL is https. A task drives it until the server or the last holder of
/// the sender closes it.
///
/// # Errors
/// The server cannot be reached, or its certificate is not valid.
pub(crate) async fn connect(target: &Target) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    match &target.tls {
        Some(tls) => over(tls.connect(stream).await?).await,
        None => over(stream).await,
    }
}

async fn over<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Errors of the connection are also returned by the request that it carries.
    tokio::spawn(connection);
    Ok(sender)
}
