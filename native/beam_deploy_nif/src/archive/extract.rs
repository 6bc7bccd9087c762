//! Writes the entries of an archive below one directory and nowhere else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{invalid, relative, split_last, walk_from, Kind, Limits, Member, CHUNK, LONGEST_PATH};
use crate::error::{Error, Unsafe};

/// Steps that resolving all the symlinks of an archive may take together: chains of links multiply.
const RESOLVE_STEPS: usize = 2_000_000;
const LINK_DEPTH: usize = 40;

/// What an extraction wrote.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Extracted {
    pub sha256: [u8; 32],
    pub bytes: u64,
    pub files: u64,
    pub linked: u64,
}

/// Extracts into `destination`, which must not exist, and leaves nothing there when it fails. Files equal to those
/// of `previous` become hard links to them.
pub fn extract(
    archive: &Path,
    destination: &Path,
    previous: Option<&Path>,
    limits: &Limits,
) -> Result<Extracted, Error> {
    let file = File::open(archive).map_err(Error::extract)?;
    extract_from(file, destination, previous, limits)
}

/// The same for an archive that comes from elsewhere.
pub fn extract_from<R: Read + Send>(
    archive: R,
    destination: &Path,
    previous: Option<&Path>,
    limits: &Limits,
) -> Result<Extracted, Error> {
    fs::mkdir(destination, Mode::RWXU).map_err(extract_errno)?;
    let extracted = extract_into(archive, destination, previous, limits);
    if extracted.is_err() {
        // The reason of the failure is worth more than that of a failing removal; a directory that stays has a
        // temporary name and goes when the store is opened.
        drop(std::fs::remove_dir_all(destination));
    }
    extracted
}

fn extract_into<R: Read + Send>(
    archive: R,
    destination: &Path,
    previous: Option<&Path>,
    limits: &Limits,
) -> Result<Extracted, Error> {
    let mut writer = Writer::new(destination, previous)?;
    let walked = walk_from(archive, limits, |member, data| {
        writer.write(member, data)?;
        Ok(ControlFlow::Continue(()))
    })?;
    writer.finish()?;

    // The walk never breaks off here.
    let walked = walked.ok_or_else(|| invalid("the archive was not read to its end"))?;
    Ok(Extracted {
        sha256: walked.sha256,
        bytes: walked.bytes,
        ..writer.extracted
    })
}

fn extract_errno(errno: Errno) -> Error {
    Error::extract(errno.into())
}

#[derive(Debug)]
enum Seen {
    Directory,
    File,
    Symlink(Vec<u8>),
}

struct Writer {
    root: OwnedFd,
    previous: Option<OwnedFd>,
    uid: rustix::process::RawUid,
    seen: HashMap<Vec<u8>, Seen>,
    /// The directory of the last entry: entries of one directory follow each other.
    parent: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
    other: Vec<u8>,
    extracted: Extracted,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Writer {
    fn new(destination: &Path, previous: Option<&Path>) -> Result<Self, Error> {
        let open = |path: &Path| fs::open(path, DIRECTORY, Mode::empty()).map_err(extract_errno);
        Ok(Writer {
            root: open(destination)?,
            previous: previous.map(open).transpose()?,
            uid: rustix::process::geteuid().as_raw(),
            seen: HashMap::new(),
            parent: None,
            buffer: vec![0; CHUNK],
            other: vec![0; CHUNK],
            extracted: Extracted::default(),
        })
    }

    fn write(&mut self, member: &Member, data: &mut dyn Read) -> Result<(), Error> {
        let refuse = |why| Error::UnsafeArchive(member.path.clone(), why);
        if member.path.is_empty() {
            return Ok(());
        }
        if member.kind == Kind::Directory {
            return self.write_directory(member);
        }
        let (parent, name) = split_last(&member.path);
        self.enter(parent).map_err(|fault| fault.of(&member.path))?;
        if self.seen.contains_key(&member.path) {
            return Err(refuse(Unsafe::Duplicate));
        }
        let seen = match &member.kind {
            Kind::File => {
                self.write_file(member, name, data)?;
                Seen::File
            }
            Kind::HardLink(target) => {
                let target = relative(target).map_err(|_why| refuse(Unsafe::HardLink))?;
                if !matches!(self.seen.get(&target), Some(Seen::File)) {
                    return Err(refuse(Unsafe::HardLink));
                }
                fs::linkat(
                    &self.root,
                    OsStr::from_bytes(&target),
                    self.parent_fd(),
                    OsStr::from_bytes(name),
                    AtFlags::empty(),
                )
                .map_err(extract_errno)?;
                Seen::File
            }
            // Made at the end, when all that it can lead through is known.
            Kind::Symlink(target) => Seen::Symlink(target.clone()),
            Kind::Directory => Seen::Directory,
        };
        self.seen.insert(member.path.clone(), seen);
        Ok(())
    }

    fn write_directory(&mut self, member: &Member) -> Result<(), Error> {
        self.enter(&member.path)
            .map_err(|fault| fault.of(&member.path))?;
        // Whatever the archive says, we have to be able to fill it and to delete it.
        let mode = Mode::from_raw_mode((member.mode | 0o700) as fs::RawMode);
        fs::fchmod(self.parent_fd(), mode).map_err(extract_errno)
    }

    fn parent_fd(&self) -> BorrowedFd<'_> {
        match &self.parent {
            Some((_path, fd)) => fd.as_fd(),
            None => self.root.as_fd(),
        }
    }

    /// Makes `path` the current directory of the writer, creating what is missing of it.
    fn enter(&mut self, path: &[u8]) -> Result<(), Fault> {
        if path.is_empty() {
            self.parent = None;
            return Ok(());
        }
        if matches!(&self.parent, Some((current, _fd)) if current == path) {
            return Ok(());
        }
        self.parent = None;
        let mut at = 0;
        let mut directory: Option<OwnedFd> = None;
        for part in path.split(|&byte| byte == b'/') {
            at += part.len() + usize::from(at > 0);
            let prefix = path.get(..at).unwrap_or_default();
            let part = OsStr::from_bytes(part);
            let above = match &directory {
                Some(fd) => fd.as_fd(),
                None => self.root.as_fd(),
            };
            match self.seen.get(prefix) {
                Some(Seen::Directory) => {}
                Some(Seen::File) => return Err(Fault::Refused(Unsafe::Duplicate)),
                Some(Seen::Symlink(_)) => return Err(Fault::Refused(Unsafe::SymlinkEscape)),
                None => {
                    fs::mkdirat(above, part, Mode::from_raw_mode(0o755)).map_err(Fault::Failed)?;
                    self.seen.insert(prefix.to_vec(), Seen::Directory);
                }
            }
            let opened =
                fs::openat(above, part, DIRECTORY, Mode::empty()).map_err(Fault::Failed)?;
            directory = Some(opened);
        }
        self.parent = directory.map(|fd| (path.to_vec(), fd));
        Ok(())
    }

    fn write_file(
        &mut self,
        member: &Member,
        name: &[u8],
        data: &mut dyn Read,
    ) -> Result<(), Error> {
        self.extracted.files += 1;
        let name = OsStr::from_bytes(name);
        let earlier = match linkable(&member.path) {
            true => self.earlier(member),
            false => None,
        };
        let (same, ahead) = match &earlier {
            Some(earlier) => read_while_equal(earlier, data, &mut self.buffer, &mut self.other)?,
            None => (0, 0),
        };
        if let (Some(previous), true) = (&self.previous, earlier.is_some()) {
            if ahead == 0 && same == member.size {
                let path = OsStr::from_bytes(&member.path);
                let linked =
                    fs::linkat(previous, path, self.parent_fd(), name, AtFlags::empty()).is_ok();
                // Not possible across file systems or beyond the most links a file can have: then it is copied.
                if linked {
                    self.extracted.linked += 1;
                    return Ok(());
                }
            }
        }

        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(self.parent_fd(), name, flags, Mode::RUSR | Mode::WUSR).map_err(
            |errno| match errno {
                // On a file system that takes two spellings for one name.
                Errno::EXIST => Error::UnsafeArchive(member.path.clone(), Unsafe::Duplicate),
                errno => extract_errno(errno),
            },
        )?;
        if let Some(earlier) = &earlier {
            copy_prefix(earlier, &fd, same, &mut self.other)?;
        }
        write_all(&fd, self.buffer.get(..ahead).unwrap_or_default())?;
        copy(
            data,
            &fd,
            member.size - same - ahead as u64,
            &mut self.buffer,
        )?;
        // Not by open, which the umask would cut.
        let mode = Mode::from_raw_mode((member.mode | 0o600) as fs::RawMode);
        fs::fchmod(&fd, mode).map_err(extract_errno)
    }

    /// The file of the previous release that can stand for this one if its contents turn out to be the same.
    fn earlier(&self, member: &Member) -> Option<OwnedFd> {
        let path = OsStr::from_bytes(&member.path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = fs::openat(self.previous.as_ref()?, path, flags, Mode::empty()).ok()?;
        let stat = fs::fstat(&fd).ok()?;
        let same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_size as u64 == member.size
            && stat.st_uid == self.uid
            && Mode::from_raw_mode(stat.st_mode).as_raw_mode() as u32 & 0o7777
                == member.mode | 0o600;
        same.then_some(fd)
    }

    fn finish(&mut self) -> Result<(), Error> {
        let mut steps = RESOLVE_STEPS;
        let links: Vec<(Vec<u8>, Vec<u8>)> = self
            .seen
            .iter()
            .filter_map(|(path, seen)| match seen {
                Seen::Symlink(target) => Some((path.clone(), target.clone())),
                Seen::Directory | Seen::File => None,
            })
            .collect();

        for (path, target) in &links {
            if !stays_inside(&self.seen, path, target, &mut steps) {
                return Err(Error::UnsafeArchive(path.clone(), Unsafe::SymlinkEscape));
            }
        }
        for (path, target) in &links {
            let (parent, name) = split_last(path);
            self.enter(parent).map_err(|fault| fault.of(path))?;
            let target = OsStr::from_bytes(target);
            fs::symlinkat(target, self.parent_fd(), OsStr::from_bytes(name))
                .map_err(extract_errno)?;
        }
        Ok(())
    }
}

enum Fault {
    Refused(Unsafe),
    Failed(Errno),
}

impl Fault {
    fn of(self, path: &[u8]) -> Error {
        match self {
            Fault::Refused(why) => Error::UnsafeArchive(path.to_vec(), why),
            Fault::Failed(errno) => extract_errno(errno),
        }
    }
}

/// Whether nobody writes into such a file in place. Configuration is edited by hand and other files under `priv`
/// by the application itself, and a write through one link would reach every release that shares the file.
fn linkable(path: &[u8]) -> bool {
    path.ends_with(b".beam")
        || path.ends_with(b".so")
        || path.starts_with(b"erts-")
        || split_last(path).0.ends_with(b"/ebin")
}

/// Follows `target` as the kernel would from the place of the link.
fn stays_inside(
    seen: &HashMap<Vec<u8>, Seen>,
    link: &[u8],
    target: &[u8],
    steps: &mut usize,
) -> bool {
    let mut at: Vec<u8> = split_last(link).0.to_vec();
    let mut hops = 0;
    if !followable(target) {
        return false;
    }
    let mut todo: Vec<&[u8]> = target.rsplit(|&byte| byte == b'/').collect();

    while let Some(part) = todo.pop() {
        *steps = match steps.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        match part {
            b"" | b"." => {}
            b".." if at.is_empty() => return false,
            b".." => at.truncate(split_last(&at).0.len()),
            part => {
                let above = at.len();
                if above > 0 {
                    at.push(b'/');
                }
                at.extend_from_slice(part);
                if at.len() > 4 * LONGEST_PATH {
                    return false;
                }
                if let Some(Seen::Symlink(next)) = seen.get(&at) {
                    hops += 1;
                    if hops > LINK_DEPTH || !followable(next) {
                        return false;
                    }
                    at.truncate(above);
                    todo.extend(next.rsplit(|&byte| byte == b'/'));
                }
            }
        }
    }
    true
}

fn followable(target: &[u8]) -> bool {
    !target.is_empty()
        && target.first() != Some(&b'/')
        && target.len() <= LONGEST_PATH
        && !target.contains(&0)
}

/// Reads on while `data` equals `earlier`. Answers how many bytes are equal in both and how many of `buffer` were
/// read beyond them.
fn read_while_equal(
    earlier: &OwnedFd,
    data: &mut dyn Read,
    buffer: &mut [u8],
    other: &mut [u8],
) -> Result<(u64, usize), Error> {
    let mut same = 0;
    loop {
        let count = data.read(buffer).map_err(Error::extract)?;
        let read = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            return Ok((same, 0));
        }
        let there = other.get_mut(..count).unwrap_or_default();
        if !read_exactly(earlier, there, same) || read != there {
            return Ok((same, count));
        }
        same += count as u64;
    }
}

fn read_exactly(file: &OwnedFd, mut buffer: &mut [u8], mut offset: u64) -> bool {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, offset) {
            Ok(0) => return false,
            Ok(count) => {
                offset += count as u64;
                buffer = buffer.get_mut(count..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(_errno) => return false,
        }
    }
    true
}

fn copy_prefix(from: &OwnedFd, to: &OwnedFd, length: u64, buffer: &mut [u8]) -> Result<(), Error> {
    let mut offset = 0;
    while offset < length {
        let count = (length - offset).min(buffer.len() as u64) as usize;
        let part = buffer.get_mut(..count).unwrap_or_default();
        if !read_exactly(from, part, offset) {
            return Err(extract_errno(Errno::IO));
        }
        write_all(to, part)?;
        offset += count as u64;
    }
    Ok(())
}

fn copy(data: &mut dyn Read, to: &OwnedFd, mut left: u64, buffer: &mut [u8]) -> Result<(), Error> {
    while left > 0 {
        let count = data.read(buffer).map_err(Error::extract)?;
        if count == 0 {
            return Err(invalid("unexpected end of the archive"));
        }
        write_all(to, buffer.get(..count).unwrap_or_default())?;
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(extract_errno(Errno::IO)),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(extract_errno(errno)),
        }
    }
    Ok(())
}
