//! Listening sockets: one for each address that a host name stands for, on one port.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Bytes that the kernel buffers for a client that does not read. Accepted sockets inherit the listener's
/// setting.
const SEND_BUFFER: u32 = 256 << 10;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;
/// Attempts to find one free port on all addresses.
const FREE_PORT_ATTEMPTS: usize = 16;

/// Listening sockets, at least one, that share a port.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<TcpListener>,
}

/// Binds a listening socket to each address. Port 0 becomes a port that is free on all of them. Addresses
/// that this machine does not have are left out if another one can be bound: `localhost` often stands for an
/// IPv6 address on machines without IPv6.
///
/// # Errors
/// The address and the system's error, such as an address in use.
pub fn bind(addresses: &[SocketAddr]) -> io::Result<Listener> {
    let any_port = addresses.iter().all(|address| address.port() == 0);
    for _ in 1..FREE_PORT_ATTEMPTS {
        match bind_once(addresses) {
            // The port that is free on the first address is in use on another.
            Err(error) if any_port && error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    bind_once(addresses)
}

fn bind_once(addresses: &[SocketAddr]) -> io::Result<Listener> {
    let mut sockets: Vec<TcpListener> = Vec::new();
    let mut absent = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for &(mut address) in addresses {
        if let (0, Some(first)) = (address.port(), sockets.first()) {
            address.set_port(first.local_addr()?.port());
        }
        match listen(address) {
            Ok(socket) => sockets.push(socket),
            Err(error) => {
                let is_absent = is_absent(&error);
                let error = io::Error::new(error.kind(), format!("{address}: {error}"));
                if !is_absent {
                    return Err(error);
                }
                absent = error;
            }
        }
    }
    if sockets.is_empty() { Err(absent) } else { Ok(Listener { sockets }) }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the machine lacks the address or its whole family.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

impl Listener {
    /// Address of the first socket.
    ///
    /// # Errors
    /// The system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets[0].local_addr()
    }

    /// Addresses of all sockets.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(TcpListener::local_addr).collect()
    }

    /// Accepts the next connection of any socket. One task at a time may wait here.
    pub(super) async fn accept(&self) -> io::Result<TcpStream> {
        poll_fn(|context| {
            let mut accepted = self.sockets.iter().map(|socket| socket.poll_accept(context));
            match accepted.find(Poll::is_ready) {
                Some(accepted) => accepted.map_ok(|(stream, _peer)| stream),
                None => Poll::Pending,
            }
        })
        .await
    }
}
