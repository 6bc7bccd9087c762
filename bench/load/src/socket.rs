//! A connecting TCP socket with a source address of our choice.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use crate::sys;

/// The source addresses that connections take in turn.
pub struct Sources {
    count: u32,
    next: Cell<u32>,
}

impl Sources {
    /// `count` addresses from 127.0.0.2 on for an IPv4 loopback target; elsewhere the kernel chooses.
    pub fn new(target: SocketAddr, count: u32) -> Self {
        let rotates = matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback());
        Sources {
            count: if rotates { count } else { 0 },
            next: Cell::new(0),
        }
    }

    fn next(&self) -> Option<SocketAddr> {
        if self.count == 0 {
            return None;
        }
        let turn = self.next.get();
        self.next.set((turn + 1) % self.count);
        let first = u32::from(Ipv4Addr::new(127, 0, 0, 2));
        Some(SocketAddr::new(Ipv4Addr::from(first + turn).into(), 0))
    }
}

/// A socket whose connection is under way, and its local address.
pub fn begin_connect(
    target: SocketAddr,
    sources: &Sources,
) -> io::Result<(TcpStream, Option<SocketAddr>)> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = sources.next() {
        sys::choose_port_at_connect(&socket)?;
        socket.bind(&source.into())?;
    }
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let local = socket.local_addr().ok().and_then(|name| name.as_socket());
    Ok((TcpStream::from_std(socket.into())?, local))
}
