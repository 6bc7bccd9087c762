//! Why a native function could not do its work: a small enum that becomes the `reason` of `{:error, reason}`.

use std::io;

use rustix::io::Errno;

/// Encoded without the `:error` tag: rustler adds it to the `Err` of a function's result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of the operating system: its POSIX name (`:enoent`), or `{:errno, number}` for a rare one.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// An I/O error that a library made up, in its words.
    #[error("{0}")]
    Other(String),
    /// A value outside of what the function takes, by the argument's name: `{:bad_argument, name}`.
    #[error("bad argument: {0}")]
    BadArgument(&'static str),
    /// The system does not let connections be steered between sockets: `{:unsteerable, posix}`.
    #[error("cannot steer: {0}")]
    Unsteerable(Box<Error>),
    /// An archive that cannot be read, or not be written to the disk: `{:extract_failed, message | posix}`.
    #[error("extraction failed: {0}")]
    Extract(Box<Error>),
    /// An archive that must not be extracted: `{:unsafe_archive, entry, why}`.
    #[error("unsafe archive: {1:?}")]
    UnsafeArchive(Vec<u8>, Unsafe),
}

impl Error {
    pub fn unsteerable(error: io::Error) -> Self {
        Error::Unsteerable(Box::new(error.into()))
    }

    pub fn extract(error: io::Error) -> Self {
        Error::Extract(Box::new(error.into()))
    }
}

/// Why an entry of an archive is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsafe {
    AbsolutePath,
    ParentDir,
    SymlinkEscape,
    HardLink,
    Device,
    Duplicate,
    InvalidName,
    Unsupported,
    TooManyEntries,
    TooLarge,
    Ratio,
}

// An io::Error may hold any other error, which may not cross the boundary that catches a panic; a number may.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Error::Os(number),
            None => Error::Other(error.to_string()),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Os(errno.raw_os_error())
    }
}

#[cfg(feature = "nif")]
pub use nif::{encode_bytes, Done};

#[cfg(feature = "nif")]
mod nif {
    use super::{Errno, Error, Unsafe};
    use rustler::{Encoder, Env, NewBinary, Term};

    impl Encoder for Error {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            match self {
                Error::Os(number) => match posix_name(Errno::from_raw_os_error(*number)) {
                    Some(name) => name.encode(env),
                    None => (atoms::errno(), *number).encode(env),
                },
                Error::Other(message) => message.encode(env),
                Error::BadArgument(name) => (atoms::bad_argument(), *name).encode(env),
                Error::Unsteerable(error) => (atoms::unsteerable(), error.as_ref()).encode(env),
                Error::Extract(error) => (atoms::extract_failed(), error.as_ref()).encode(env),
                Error::UnsafeArchive(entry, why) => {
                    (atoms::unsafe_archive(), encode_bytes(env, entry), why).encode(env)
                }
            }
        }
    }

    impl Encoder for Unsafe {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            let atom = match self {
                Unsafe::AbsolutePath => atoms::absolute_path(),
                Unsafe::ParentDir => atoms::parent_dir(),
                Unsafe::SymlinkEscape => atoms::symlink_escape(),
                Unsafe::HardLink => atoms::hard_link(),
                Unsafe::Device => atoms::device(),
                Unsafe::Duplicate => atoms::duplicate(),
                Unsafe::InvalidName => atoms::invalid_name(),
                Unsafe::Unsupported => atoms::unsupported(),
                Unsafe::TooManyEntries => atoms::too_many_entries(),
                Unsafe::TooLarge => atoms::too_large(),
                Unsafe::Ratio => atoms::ratio(),
            };
            atom.encode(env)
        }
    }

    /// Bytes as a binary: names in archives need not be UTF-8.
    pub fn encode_bytes<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
        let mut binary = NewBinary::new(env, bytes.len());
        binary.as_mut_slice().copy_from_slice(bytes);
        binary.into()
    }

    /// The answer of a function that has nothing to tell but whether it worked: `:ok` or `{:error, reason}`.
    pub struct Done(pub Result<(), Error>);

    impl Encoder for Done {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            match &self.0 {
                Ok(()) => atoms::ok().encode(env),
                Err(error) => (atoms::error(), error).encode(env),
            }
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
            ok, error, errno, bad_argument, unsteerable, extract_failed, unsafe_archive,
            absolute_path, parent_dir, symlink_escape, hard_link, device, duplicate, invalid_name, unsupported, too_many_entries, too_large, ratio,
            eacces, eaddrinuse, eaddrnotavail, eafnosupport, eagain, ebadf, ebusy, edquot, eexist, efbig, einval, eio, eisdir, eloop, emfile, emlink, enametoolong, enfile, enodev, enoent, enomem, enoprotoopt, enospc, enosys, enotconn, enotdir, enotempty, enotsock, enxio, eopnotsupp, eperm, epipe, erofs, etxtbsy, exdev,
        }
    }
}
