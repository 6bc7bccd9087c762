//! What the native functions answer when they cannot do their work: a small enum, encoded as tagged tuples.

use std::io;

use rustix::io::Errno;
use rustler::{Encoder, Env, Term};

/// The reason of an `{:error, reason}` answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the operating system: its POSIX name (`:enoent`), or `{:errno, number}` for a rare one.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Io(errno.into())
    }
}

impl Encoder for Error {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let reason = match self {
            Error::Io(error) => encode_io(env, error),
        };
        (atoms::error(), reason).encode(env)
    }
}

/// The POSIX name of an I/O error as an atom, as `:file` and `:inet` name them.
pub fn encode_io<'a>(env: Env<'a>, error: &io::Error) -> Term<'a> {
    match error.raw_os_error() {
        Some(number) => match posix_name(Errno::from_raw_os_error(number)) {
            Some(name) => name.encode(env),
            None => (atoms::errno(), number).encode(env),
        },
        None => error.to_string().encode(env),
    }
}

fn posix_name(errno: Errno) -> Option<rustler::Atom> {
    Some(match errno {
        Errno::ACCESS => atoms::eacces(),
        Errno::ADDRINUSE => atoms::eaddrinuse(),
        Errno::ADDRNOTAVAIL => atoms::eaddrnotavail(),
        Errno::AFNOSUPPORT => atoms::eafnosupport(),
        Errno::AGAIN => atoms::eagain(),
        Errno::BADF => atoms::ebadf(),
        Errno::BUSY => atoms::ebusy(),
        Errno::DQUOT => atoms::edquot(),
        Errno::EXIST => atoms::eexist(),
        Errno::FBIG => atoms::efbig(),
        Errno::INVAL => atoms::einval(),
        Errno::IO => atoms::eio(),
        Errno::ISDIR => atoms::eisdir(),
        Errno::LOOP => atoms::eloop(),
        Errno::MFILE => atoms::emfile(),
        Errno::MLINK => atoms::emlink(),
        Errno::NAMETOOLONG => atoms::enametoolong(),
        Errno::NFILE => atoms::enfile(),
        Errno::NODEV => atoms::enodev(),
        Errno::NOENT => atoms::enoent(),
        Errno::NOMEM => atoms::enomem(),
        Errno::NOPROTOOPT => atoms::enoprotoopt(),
        Errno::NOSPC => atoms::enospc(),
        Errno::NOSYS => atoms::enosys(),
        Errno::NOTCONN => atoms::enotconn(),
        Errno::NOTDIR => atoms::enotdir(),
        Errno::NOTEMPTY => atoms::enotempty(),
        Errno::NOTSOCK => atoms::enotsock(),
        Errno::NXIO => atoms::enxio(),
        Errno::OPNOTSUPP => atoms::eopnotsupp(),
        Errno::PERM => atoms::eperm(),
        Errno::PIPE => atoms::epipe(),
        Errno::ROFS => atoms::erofs(),
        Errno::TXTBSY => atoms::etxtbsy(),
        Errno::XDEV => atoms::exdev(),
        _ => return None,
    })
}

mod atoms {
    rustler::atoms! {
        error, errno,
        eacces, eaddrinuse, eaddrnotavail, eafnosupport, eagain, ebadf, ebusy, edquot, eexist, efbig, einval, eio, eisdir, eloop, emfile, emlink, enametoolong, enfile, enodev, enoent, enomem, enoprotoopt, enospc, enosys, enotconn, enotdir, enotempty, enotsock, enxio, eopnotsupp, eperm, epipe, erofs, etxtbsy, exdev,
    }
}
