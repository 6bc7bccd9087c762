//! A pair of TCP sockets in one `SO_REUSEPORT` group.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Error;
#[cfg(target_os = "linux")]
use crate::sys;

/// Opens, binds and listens on both sockets. The blue one listens first: it has index 0 of the group.
pub fn open(
    address: SocketAddr,
    only_v6: Option<bool>,
    backlog: i32,
) -> Result<[Socket; 2], Error> {
    let blue = bind(address, only_v6, true)?;
    // With port 0 the kernel chose one for the first socket: the second takes the same.
    let bound = blue.local_addr()?.as_socket().unwrap_or(address);
    let green = bind(bound, only_v6, true)?;
    for socket in [&blue, &green] {
        hold(socket)?;
        socket.listen(backlog)?;
    }
    Ok([blue, green])
}

/// A socket outside of the group finds out whether anybody listens there: sockets of the group would share the port
/// with any other of this user, and their places in it would not be the ones that are steered to.
pub fn check_free(address: SocketAddr, only_v6: Option<bool>) -> Result<(), Error> {
    bind(address, only_v6, false).map(drop)
}

fn bind(address: SocketAddr, only_v6: Option<bool>, shared: bool) -> Result<Socket, Error> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if let (Some(only), true) = (only_v6, address.is_ipv6()) {
        socket.set_only_v6(only)?;
    }
    // A server that adopts the descriptor expects it so, and a connection that is gone before it was accepted
    // must not block the acceptor.
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Has the kernel drop what clients send to begin a connection; they send it again after a second.
#[cfg(target_os = "linux")]
fn hold(socket: &Socket) -> Result<(), Error> {
    let nothing = socket2::SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    socket.attach_filter(&[nothing]).map_err(Error::unsteerable)
}

#[cfg(target_os = "linux")]
pub fn steer(chosen: &Socket, index: usize, all: &[Socket; 2]) -> Result<(), Error> {
    use std::os::fd::AsFd;

    sys::attach_reuseport_index(chosen.as_fd(), index as u32).map_err(Error::unsteerable)?;
    for socket in all {
        match socket.detach_filter() {
            // It was let go before.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
pub fn queue(socket: &Socket) -> Result<u32, Error> {
    use std::os::fd::AsFd;

    Ok(sys::accept_queue(socket.as_fd())?)
}

// Elsewhere sockets of one port cannot be steered: the caller falls back to plain overlap.
#[cfg(not(target_os = "linux"))]
fn hold(_socket: &Socket) -> Result<(), Error> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn steer(_chosen: &Socket, _index: usize, _all: &[Socket; 2]) -> Result<(), Error> {
    Err(Error::unsteerable(rustix::io::Errno::OPNOTSUPP.into()))
}

#[cfg(not(target_os = "linux"))]
pub fn queue(_socket: &Socket) -> Result<u32, Error> {
    Err(rustix::io::Errno::OPNOTSUPP.into())
}
