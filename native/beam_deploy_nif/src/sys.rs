//! The crate's only `unsafe` code: system calls that no safe wrapper covers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Borrows a descriptor that Erlang knows by its number (it comes out of `:socket.recvmsg/5` as an integer).
/// A number that is not open is answered with `EBADF`.
pub fn with_descriptor<T>(
    number: RawFd,
    work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<T> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is not -1, and the borrow ends with this call. A number that is not open, or that is
    // closed meanwhile, makes the kernel answer EBADF: no memory depends on it.
    work(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Closes a descriptor known only by its number, once nothing else will use it.
pub fn close(number: RawFd) -> io::Result<()> {
    // SAFETY: close(2) takes any integer and answers EBADF for one that is not open.
    match unsafe { libc::close(number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Attaches `return index` as the classic BPF program that chooses the socket of a `SO_REUSEPORT` group for
/// each new connection. The index counts the group's sockets in the order of their listen(2).
#[cfg(target_os = "linux")]
pub fn attach_reuseport_index(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut instructions = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: index,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the kernel copies `len` instructions behind `filter` before setsockopt(2) returns; both live until
    // the end of this function, and the length given is that of the struct the option takes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many connections wait in a listening socket's accept queue.
#[cfg(target_os = "linux")]
pub fn accept_queue(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: tcp_info consists of integers, for which all zeroes is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `info`, and an older one fewer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    };
    match result {
        // tcp(7) does not say it: for a listening socket this field is the length of its accept queue.
        0 => Ok(info.tcpi_unacked),
        _ => Err(io::Error::last_os_error()),
    }
}
