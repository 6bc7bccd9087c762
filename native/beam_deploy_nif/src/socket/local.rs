//! A pair of Unix-domain sockets, and the one public name that leads to either.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::Error;

/// The names of the two sockets, beside the public one.
pub struct Names {
    public: PathBuf,
    sides: [PathBuf; 2],
    next: PathBuf,
}

impl Names {
    // Short: sun_path takes 107 bytes.
    pub fn beside(public: &Path) -> Names {
        Names {
            public: public.to_owned(),
            sides: [append(public, ".b"), append(public, ".g")],
            next: append(public, ".n"),
        }
    }

    /// Makes the public name lead to this side's socket. rename(2) replaces it in one step: there is no moment without.
    pub fn publish(&self, side: usize) -> Result<(), Error> {
        let own = self.sides.get(side).ok_or(Error::BadArgument("side"))?;
        if let Some(current) = look(&self.public)? {
            // Two names of one file: rename(2) would leave both.
            if same(&current, &fs::symlink_metadata(own)?) {
                return Ok(());
            }
            take_over(own, &current)?;
        }
        remove(&self.next)?;
        fs::hard_link(own, &self.next)?;
        Ok(fs::rename(&self.next, &self.public)?)
    }

    /// Removes the names; the public one only if it is still one of these sockets'.
    pub fn remove(&self) -> Result<(), Error> {
        let public = look(&self.public)?;
        for own in &self.sides {
            if let (Some(public), Some(own)) = (&public, look(own)?) {
                if same(public, &own) {
                    remove(&self.public)?;
                }
            }
            remove(own)?;
        }
        Ok(())
    }
}

pub fn open(names: &Names, backlog: i32) -> Result<[Socket; 2], Error> {
    check_free(&names.public)?;
    let [blue, green] = &names.sides;
    Ok([listen(blue, backlog)?, listen(green, backlog)?])
}

fn listen(path: &Path, backlog: i32) -> Result<Socket, Error> {
    check_free(path)?;
    // What an earlier parent left behind: nobody listens there.
    remove(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// A name is free if there is none, or a socket that nobody listens on any more.
fn check_free(path: &Path) -> Result<(), Error> {
    match look(path)? {
        None => Ok(()),
        Some(found) if found.file_type().is_socket() && !answers(path)? => Ok(()),
        Some(_) => Err(Errno::ADDRINUSE.into()),
    }
}

fn answers(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Where the queue is full, somebody does listen.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        _ => Ok(true),
    }
}

/// Whoever may connect today may connect after the swap: the application may have set mode and owner.
fn take_over(path: &Path, current: &Metadata) -> Result<(), Error> {
    let own = fs::symlink_metadata(path)?;
    if (own.uid(), own.gid()) != (current.uid(), current.gid()) {
        // Only root, or for a group of its own the owner, may; it may have been somebody else who did.
        let _ = std::os::unix::fs::chown(path, Some(current.uid()), Some(current.gid()));
    }
    Ok(fs::set_permissions(path, current.permissions())?)
}

fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn look(path: &Path) -> io::Result<Option<Metadata>> {
    found(fs::symlink_metadata(path))
}

fn remove(path: &Path) -> io::Result<()> {
    found(fs::remove_file(path)).map(drop)
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn append(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(OsStr::new(suffix));
    name.into()
}
