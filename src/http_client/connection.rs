//! Connections to a server.

use std::io;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Target;

/// Opens a connection. A task drives it until the server or the last holder of the sender closes it.
///
/// # Errors
/// The server cannot be reached.
pub(crate) async fn connect(target: &Target) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Errors of the connection are also returned by the request that it carries.
    tokio::spawn(connection);
    Ok(sender)
}
