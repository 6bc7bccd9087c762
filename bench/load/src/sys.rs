//! The system calls that std, socket2 and tokio leave to `unsafe`; no other module has any.

#[cfg(target_os = "linux")]
pub use linux::{choose_port_at_connect, watch};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};

    use socket2::Socket;
    use tokio::io::unix::AsyncFd;
    use tokio::io::Interest;

    /// `bind` to port 0 reserves a port for all destinations, and ports in TIME_WAIT count as taken: some
    /// 28,000 connections in a minute would be all. Chosen at `connect`, a port is only taken for this
    /// destination, and TIME_WAIT on loopback ends after a second (`tcp_tw_reuse` 2).
    pub fn choose_port_at_connect(socket: &Socket) -> io::Result<()> {
        let on: libc::c_int = 1;
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open as long as `socket` is borrowed, and the kernel reads `size` bytes
        // of `on`, which lives until the call is over.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Lets the runtime watch a descriptor of any kind.
    pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, which the `AsyncFd`
        // that owns it does last.
        Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
    }
}

#[cfg(not(target_os = "linux"))]
pub fn choose_port_at_connect(_socket: &socket2::Socket) -> std::io::Result<()> {
    Ok(())
}
