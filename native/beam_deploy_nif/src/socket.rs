//! Listening sockets: two for each address, one a side, and the choice between them.
//! Owner in Elixir: `BeamDeploy.BlueGreen.Listener`.

mod inet;
mod local;

#[cfg(target_os = "linux")]
#[path = "socket/handshakes.rs"]
mod handshakes;

// Elsewhere nothing is steered, so nothing has to be known of handshakes.
#[cfg(not(target_os = "linux"))]
#[path = "socket/no_handshakes.rs"]
mod handshakes;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use socket2::Socket;

pub use handshakes::{count as count_handshakes, Family};

use crate::error::Error;
use local::Names;

/// The two sockets of one address, blue first. They stay open while the address is served, so that a place in the
/// group means the same socket for ever, and no queue is ever reset. Where the system allows it, no connection reaches
/// either before the first `steer`.
pub struct Pair {
    open: RwLock<Option<Open>>,
}

struct Open {
    sides: [Socket; 2],
    place: Place,
}

enum Place {
    Inet,
    Local(Names),
}

impl Pair {
    /// Two sockets of one `SO_REUSEPORT` group. With `alone`, an address that somebody else listens on is refused. `first`
    /// is the side that gets connections where they cannot be held back until the first `steer`.
    pub fn inet(
        address: SocketAddr,
        only_v6: Option<bool>,
        backlog: i32,
        alone: bool,
        first: usize,
    ) -> Result<Pair, Error> {
        if alone {
            inet::check_free(address, only_v6)?;
        }
        let sides = inet::open(address, only_v6, backlog, first)?;
        Ok(Pair::new(sides, Place::Inet))
    }

    /// Two sockets with names beside a path; the path itself becomes a name of the one that is steered to.
    pub fn local(path: &Path, backlog: i32) -> Result<Pair, Error> {
        let names = Names::beside(path);
        let sides = local::open(&names, backlog)?;
        Ok(Pair::new(sides, Place::Local(names)))
    }

    fn new(sides: [Socket; 2], place: Place) -> Pair {
        Pair {
            open: RwLock::new(Some(Open { sides, place })),
        }
    }

    /// Closes both sockets, whatever waits in their queues. A peer that adopted one still has it.
    pub fn close(&self) -> Result<(), Error> {
        let closed = self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match closed {
            Some(Open {
                place: Place::Local(names),
                ..
            }) => names.remove(),
            _ => Ok(()),
        }
    }

    /// A descriptor of a side's socket that belongs to the caller.
    pub fn descriptor(&self, side: usize) -> Result<OwnedFd, Error> {
        self.with(|open| Ok(open.side(side)?.as_fd().try_clone_to_owned()?))
    }

    /// The port, which the kernel chose where 0 was asked for; 0 where there are none.
    pub fn port(&self) -> Result<u16, Error> {
        self.with(|open| {
            let address = open.side(0)?.local_addr()?.as_socket();
            Ok(address.map_or(0, |address| address.port()))
        })
    }

    /// New connections go to this side from now on.
    pub fn steer(&self, side: usize) -> Result<(), Error> {
        self.with(|open| match &open.place {
            Place::Inet => inet::steer(open.side(side)?, side, &open.sides),
            Place::Local(names) => names.publish(side),
        })
    }

    /// How many connections wait in a side's accept queue; for a local socket, whether any does.
    pub fn queue(&self, side: usize) -> Result<u32, Error> {
        self.with(|open| match open.place {
            Place::Inet => inet::queue(open.side(side)?),
            Place::Local(_) => Ok(u32::from(readable(open.side(side)?)?)),
        })
    }

    /// Resets what waits in the queue of a side that nobody serves, and says how many they were: clients learn at once
    /// what they would otherwise wait for in vain.
    pub fn discard(&self, side: usize) -> Result<u32, Error> {
        self.with(|open| {
            let socket = open.side(side)?;
            let mut count = 0;
            while readable(socket)? {
                match socket.accept() {
                    Ok((connection, _address)) => {
                        // To a client that still sends, an ordinary end would look like an empty answer.
                        let _ = connection.set_linger(Some(std::time::Duration::ZERO));
                        count += 1;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(count)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Open) -> Result<T, Error>) -> Result<T, Error> {
        let open: RwLockReadGuard<_> = self.open.read().unwrap_or_else(PoisonError::into_inner);
        work(open.as_ref().ok_or(Errno::BADF)?)
    }
}

impl Open {
    fn side(&self, side: usize) -> Result<&Socket, Error> {
        self.sides.get(side).ok_or(Error::BadArgument("side"))
    }
}

fn readable(socket: &Socket) -> Result<bool, Error> {
    let mut waiting = [PollFd::new(socket, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut waiting, Some(&at_once))? > 0)
}

#[cfg(feature = "nif")]
mod nif {
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{IntoRawFd, RawFd};
    use std::path::Path;

    use rustler::{Resource, ResourceArc};

    use super::{count_handshakes, Family, Pair};
    use crate::error::{Done, Error};

    #[rustler::resource_impl]
    impl Resource for Pair {}

    #[rustler::nif(schedule = "DirtyIo")]
    fn listener_open_inet(
        ip: &str,
        port: u16,
        only_v6: Option<bool>,
        backlog: i32,
        alone: bool,
        first: usize,
    ) -> Result<ResourceArc<Pair>, Error> {
        let ip: IpAddr = ip.parse().map_err(|_| Error::BadArgument("ip"))?;
        Pair::inet(SocketAddr::new(ip, port), only_v6, backlog, alone, first).map(ResourceArc::new)
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn listener_open_local(path: &str, backlog: i32) -> Result<ResourceArc<Pair>, Error> {
        Pair::local(Path::new(path), backlog).map(ResourceArc::new)
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn listener_close(pair: ResourceArc<Pair>) -> Done {
        Done(pair.close())
    }

    #[rustler::nif]
    fn listener_descriptor(pair: ResourceArc<Pair>, side: usize) -> Result<RawFd, Error> {
        pair.descriptor(side).map(IntoRawFd::into_raw_fd)
    }

    #[rustler::nif]
    fn listener_port(pair: ResourceArc<Pair>) -> Result<u16, Error> {
        pair.port()
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn listener_steer(pair: ResourceArc<Pair>, side: usize) -> Done {
        Done(pair.steer(side))
    }

    #[rustler::nif]
    fn listener_queue(pair: ResourceArc<Pair>, side: usize) -> Result<u32, Error> {
        pair.queue(side)
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn listener_discard(pair: ResourceArc<Pair>, side: usize) -> Result<u32, Error> {
        pair.discard(side)
    }

    /// Handshakes with these ports under way, of an age in milliseconds between two bounds.
    #[rustler::nif(schedule = "DirtyIo")]
    fn handshakes(v6: bool, ports: Vec<u16>, youngest: u64, oldest: u64) -> Result<usize, Error> {
        let family = if v6 { Family::V6 } else { Family::V4 };
        count_handshakes(family, &ports, youngest..oldest)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
