//! A pair of TCP sockets in one `SO_REUSEPORT` group.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Error;
#[cfg(target_os = "linux")]
use crate::sys;

/// Opens, binds and listens on both sockets. The blue one listens first: it has index 0 of the group. Connections are
/// held back up to the first `steer`, or, where that is not allowed, go to the side `first` from the beginning.
pub fn open(
    address: SocketAddr,
    only_v6: Option<bool>,
    backlog: i32,
    first: usize,
) -> Result<[Socket; 2], Error> {
    open_held_by(hold, address, only_v6, backlog, first)
}

pub fn open_held_by(
    hold: impl Fn(&Socket) -> io::Result<()>,
    address: SocketAddr,
    only_v6: Option<bool>,
    backlog: i32,
    first: usize,
) -> Result<[Socket; 2], Error> {
    let blue = bind(address, only_v6, true)?;
    // With port 0 the kernel chose one for the first socket: the second takes the same.
    let bound = blue.local_addr()?.as_socket().unwrap_or(address);
    let green = bind(bound, only_v6, true)?;
    match hold(&blue).and_then(|()| hold(&green)) {
        // Linux 6.18 was seen to ask for CAP_NET_ADMIN. To choose a socket of the group takes no privilege.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => choose(&blue, first)?,
        result => result.map_err(Error::unsteerable)?,
    }
    for socket in [&blue, &green] {
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
fn hold(socket: &Socket) -> io::Result<()> {
    let nothing = socket2::SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    socket.attach_filter(&[nothing])
}

/// By a socket of the group, or by the one that will be its first.
#[cfg(target_os = "linux")]
fn choose(socket: &Socket, side: usize) -> Result<(), Error> {
    use std::os::fd::AsFd;

    sys::attach_reuseport_index(socket.as_fd(), side as u32).map_err(Error::unsteerable)
}

#[cfg(target_os = "linux")]
pub fn steer(chosen: &Socket, index: usize, all: &[Socket; 2]) -> Result<(), Error> {
    choose(chosen, index)?;
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
fn hold(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn choose(_socket: &Socket, _side: usize) -> Result<(), Error> {
    Err(Error::unsteerable(rustix::io::Errno::OPNOTSUPP.into()))
}

#[cfg(not(target_os = "linux"))]
pub fn steer(_chosen: &Socket, _index: usize, _all: &[Socket; 2]) -> Result<(), Error> {
    Err(Error::unsteerable(rustix::io::Errno::OPNOTSUPP.into()))
}

#[cfg(not(target_os = "linux"))]
pub fn queue(_socket: &Socket) -> Result<u32, Error> {
    Err(rustix::io::Errno::OPNOTSUPP.into())
}
