//! Listening sockets: two of one `SO_REUSEPORT` group for each address, and the choice between them.
//! Owner in Elixir: `BeamDeploy.BlueGreen.Listener`.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Error;
use crate::sys;

/// The two sockets of one address, blue first. They are never closed while the address is served, so that an
/// index of the group means the same socket for ever, and no queue is ever reset.
pub struct Pair {
    sides: [Socket; 2],
}

impl Pair {
    /// Opens, binds and listens on both sockets. The blue one listens first: it has index 0 of the group.
    pub fn open(address: SocketAddr, only_v6: Option<bool>, backlog: i32) -> Result<Pair, Error> {
        let blue = bind(address, only_v6)?;
        // With port 0 the kernel chose one for the first socket: the second takes the same.
        let bound = blue.local_addr()?.as_socket().unwrap_or(address);
        let green = bind(bound, only_v6)?;
        blue.listen(backlog)?;
        green.listen(backlog)?;
        Ok(Pair {
            sides: [blue, green],
        })
    }

    /// The port, which the kernel chose where 0 was asked for.
    pub fn port(&self) -> Result<u16, Error> {
        let address = self.side(0)?.local_addr()?.as_socket();
        Ok(address.map_or(0, |address| address.port()))
    }

    /// New connections go to this side from now on.
    #[cfg(target_os = "linux")]
    pub fn steer(&self, side: usize) -> Result<(), Error> {
        Ok(sys::attach_reuseport_index(
            self.side(side)?.as_fd(),
            side as u32,
        )?)
    }

    /// How many connections wait in a side's accept queue.
    #[cfg(target_os = "linux")]
    pub fn queue(&self, side: usize) -> Result<u32, Error> {
        Ok(sys::accept_queue(self.side(side)?.as_fd())?)
    }

    // Elsewhere sockets of one port cannot be steered: the caller falls back to plain overlap.
    #[cfg(not(target_os = "linux"))]
    pub fn steer(&self, _side: usize) -> Result<(), Error> {
        Err(rustix::io::Errno::OPNOTSUPP.into())
    }

    #[cfg(not(target_os = "linux"))]
    pub fn queue(&self, _side: usize) -> Result<u32, Error> {
        Err(rustix::io::Errno::OPNOTSUPP.into())
    }

    fn side(&self, side: usize) -> Result<&Socket, Error> {
        self.sides.get(side).ok_or(Error::BadArgument("side"))
    }
}

fn bind(address: SocketAddr, only_v6: Option<bool>) -> Result<Socket, Error> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if let (Some(only), true) = (only_v6, address.is_ipv6()) {
        socket.set_only_v6(only)?;
    }
    // A server that adopts the descriptor expects it so, and a connection that is gone before it was accepted
    // must not block the acceptor.
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(feature = "nif")]
mod nif {
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{AsRawFd, RawFd};

    use rustler::{Resource, ResourceArc};

    use super::Pair;
    use crate::error::{Done, Error};

    #[rustler::resource_impl]
    impl Resource for Pair {}

    #[rustler::nif(schedule = "DirtyIo")]
    fn listener_open(
        ip: &str,
        port: u16,
        only_v6: Option<bool>,
        backlog: i32,
    ) -> Result<ResourceArc<Pair>, Error> {
        let ip: IpAddr = ip.parse().map_err(|_| Error::BadArgument("ip"))?;
        Pair::open(SocketAddr::new(ip, port), only_v6, backlog).map(ResourceArc::new)
    }

    #[rustler::nif]
    fn listener_descriptor(pair: ResourceArc<Pair>, side: usize) -> Result<RawFd, Error> {
        Ok(pair.side(side)?.as_raw_fd())
    }

    #[rustler::nif]
    fn listener_port(pair: ResourceArc<Pair>) -> Result<u16, Error> {
        pair.port()
    }

    #[rustler::nif]
    fn listener_steer(pair: ResourceArc<Pair>, side: usize) -> Done {
        Done(pair.steer(side))
    }

    #[rustler::nif]
    fn listener_queue(pair: ResourceArc<Pair>, side: usize) -> Result<u32, Error> {
        pair.queue(side)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::{Duration, Instant};

    fn pair() -> Result<(Pair, SocketAddr), Error> {
        let pair = Pair::open((Ipv4Addr::LOCALHOST, 0).into(), None, 128)?;
        let address = (Ipv4Addr::LOCALHOST, pair.port()?).into();
        Ok((pair, address))
    }

    fn await_queue(pair: &Pair, side: usize, length: u32) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while pair.queue(side)? != length {
            assert!(
                Instant::now() < deadline,
                "not {length} connections within 5 s"
            );
            std::thread::yield_now();
        }
        Ok(())
    }

    #[test]
    fn every_connection_goes_to_the_steered_side() -> Result<(), Error> {
        let (pair, address) = pair()?;
        let mut clients = Vec::new();
        for side in [0, 1, 0] {
            pair.steer(side)?;
            let (before, other) = (pair.queue(side)?, pair.queue(1 - side)?);
            for _ in 0..20 {
                clients.push(TcpStream::connect(address)?);
            }
            await_queue(&pair, side, before + 20)?;
            assert_eq!(pair.queue(1 - side)?, other);
        }
        Ok(())
    }

    #[test]
    fn a_side_that_does_not_exist_is_refused() -> Result<(), Error> {
        let (pair, _address) = pair()?;
        assert!(matches!(pair.steer(2), Err(Error::BadArgument("side"))));
        Ok(())
    }
}
