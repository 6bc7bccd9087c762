//! Reads a release tarball in one pass. Nothing in the archive is trusted: not its names, sizes or links.
//! Owner in Elixir: `BeamDeploy.Release.Archive`.
//!
//! Other threads read and inflate while the calling thread takes the tar apart, bounded channels between them, so
//! that memory stays flat whatever the archive claims to hold.

mod extract;
mod metadata;
mod stream;

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use tar::EntryType;

use crate::error::{Error, Unsafe};
use stream::Stream;

pub use extract::{extract, extract_from, Extracted};
pub use metadata::{inspect, Metadata};

const CHUNK: usize = 128 * 1024;
const CHUNKS_AHEAD: usize = 16;

/// Of one name. A file of that depth can still be opened, and deleted, by its path from the root of the system.
const LONGEST_PATH: usize = 1024;

/// Of a long name or a pax header, which have to be held in memory.
const LARGEST_HEADER: u64 = 64 * 1024;

/// What an archive may hold at most.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "nif", derive(rustler::NifMap))]
pub struct Limits {
    /// Of the inflated archive.
    pub max_bytes: u64,
    pub max_entries: u64,
    /// Inflated to compressed size, looked at from `ratio_from` inflated bytes on.
    pub max_ratio: u64,
    pub ratio_from: u64,
}

/// One entry of an archive, under its checked relative name. An empty path is the root itself.
#[derive(Debug)]
pub struct Member {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub size: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
}

/// What was read when the archive was read to its end.
#[derive(Debug)]
pub struct Walked {
    pub sha256: [u8; 32],
    pub bytes: u64,
}

/// Calls `visit` with each entry and its contents. `None` when `visit` broke off, since the rest is unread then.
pub fn walk<F>(path: &Path, limits: &Limits, visit: F) -> Result<Option<Walked>, Error>
where
    F: FnMut(&Member, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
{
    let file = File::open(path).map_err(Error::extract)?;
    walk_from(file, limits, visit)
}

/// The same for an archive that comes from elsewhere.
pub fn walk_from<R, F>(source: R, limits: &Limits, visit: F) -> Result<Option<Walked>, Error>
where
    R: Read + Send,
    F: FnMut(&Member, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
{
    thread::scope(|scope| {
        let (blocks, compressed) = sync_channel(CHUNKS_AHEAD);
        let (chunks, inflated) = sync_channel(CHUNKS_AHEAD);
        let (give_blocks, recycled_blocks) = sync_channel(CHUNKS_AHEAD);
        let (give_chunks, recycled_chunks) = sync_channel(CHUNKS_AHEAD);
        let named = |name: &str| thread::Builder::new().name(name.into());
        let reader = named("bd_read")
            .spawn_scoped(scope, move || stream::read(source, blocks, recycled_blocks))
            .map_err(Error::extract)?;
        let inflater = named("bd_inflate")
            .spawn_scoped(scope, move || {
                stream::inflate(compressed, give_blocks, chunks, recycled_chunks)
            })
            .map_err(Error::extract)?;

        // The stream is gone when this returns, which ends an inflater that is still at work, and that the reader.
        let walked = walk_tar(Stream::new(inflated, give_chunks, *limits), limits, visit);
        let inflated = inflater
            .join()
            .map_err(|_panic| invalid("the archive cannot be inflated"))?;
        let digest = reader
            .join()
            .map_err(|_panic| invalid("the archive cannot be read"))?;

        match (walked, inflated) {
            // Only a consequence: the tar ends early because its gzip stream does.
            (Err(Error::Extract(_)) | Ok(_), Err(error)) => Err(Error::extract(error)),
            (Err(error), _) => Err(error),
            (Ok(bytes), Ok(())) => Ok(bytes
                .zip(digest)
                .map(|(bytes, sha256)| Walked { sha256, bytes })),
        }
    })
}

fn invalid(message: &str) -> Error {
    Error::extract(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Names and link targets given by the headers before the entry they are for.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// The inflated size, or `None` when `visit` broke off. Entries are taken raw, since the reader of the tar crate
/// holds the long-name and pax headers in memory at any size they claim.
fn walk_tar<F>(stream: Stream, limits: &Limits, mut visit: F) -> Result<Option<u64>, Error>
where
    F: FnMut(&Member, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
{
    let refused = stream.refused.clone();
    let mut current = Vec::new();
    let mut archive = tar::Archive::new(stream);

    let walked =
        visit_entries(&mut archive, limits, &mut current, &mut visit).and_then(|flow| match flow {
            ControlFlow::Break(()) => Ok(None),
            ControlFlow::Continue(()) => drain(archive.into_inner()).map(Some),
        });

    match refused.get() {
        Some(why) => Err(Error::UnsafeArchive(current, why)),
        None => walked,
    }
}

fn visit_entries<F>(
    archive: &mut tar::Archive<Stream>,
    limits: &Limits,
    current: &mut Vec<u8>,
    visit: &mut F,
) -> Result<ControlFlow<()>, Error>
where
    F: FnMut(&Member, &mut dyn Read) -> Result<ControlFlow<()>, Error>,
{
    let mut overrides = Overrides::default();
    let mut count: u64 = 0;

    for entry in archive.entries().map_err(Error::extract)?.raw(true) {
        let mut entry = entry.map_err(Error::extract)?;
        let name = match &overrides.path {
            Some(path) => path.clone(),
            None => entry.path_bytes().into_owned(),
        };
        current.clone_from(&name);
        let refuse = |why| Error::UnsafeArchive(name.clone(), why);

        count += 1;
        if count > limits.max_entries {
            return Err(refuse(Unsafe::TooManyEntries));
        }
        if entry.size() > limits.max_bytes {
            return Err(refuse(Unsafe::TooLarge));
        }

        let kind = match entry.header().entry_type() {
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link_target(&entry, &mut overrides)),
            EntryType::Link => Kind::HardLink(link_target(&entry, &mut overrides)),
            EntryType::XHeader => {
                read_pax(&mut entry, &mut overrides).map_err(|why| why.of(&name))?;
                continue;
            }
            EntryType::GNULongName => {
                overrides.path = Some(read_long(&mut entry).map_err(|why| why.of(&name))?);
                continue;
            }
            EntryType::GNULongLink => {
                overrides.link = Some(read_long(&mut entry).map_err(|why| why.of(&name))?);
                continue;
            }
            // Defaults for all entries, such as the commit `git archive` notes. None of them changes what is read.
            EntryType::XGlobalHeader => continue,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(refuse(Unsafe::Device))
            }
            _other => return Err(refuse(Unsafe::Unsupported)),
        };
        overrides = Overrides::default();

        let path = relative(&name).map_err(refuse)?;
        if path.is_empty() && kind != Kind::Directory {
            return Err(refuse(Unsafe::InvalidName));
        }
        let member = Member {
            path,
            kind,
            mode: entry.header().mode().map_err(Error::extract)? & 0o777,
            size: entry.size(),
        };
        if visit(&member, &mut entry)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Reads to the end, so that the digest is of the whole file and its checksum is seen. The zeros are tar's padding.
fn drain(mut stream: Stream) -> Result<u64, Error> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut buffer).map_err(Error::extract)?;
        let read = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            return Ok(stream.total);
        }
        if read.iter().any(|&byte| byte != 0) {
            return Err(invalid("data after the end of the archive"));
        }
    }
}

/// Why a header could not be taken, before it is known which entry it is told of.
enum BadHeader {
    Refused(Unsafe),
    Unreadable(io::Error),
}

impl BadHeader {
    fn of(self, name: &[u8]) -> Error {
        match self {
            BadHeader::Refused(why) => Error::UnsafeArchive(name.to_vec(), why),
            BadHeader::Unreadable(error) => Error::extract(error),
        }
    }
}

fn read_header<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, BadHeader> {
    if entry.size() > LARGEST_HEADER {
        return Err(BadHeader::Refused(Unsafe::TooLarge));
    }
    let mut bytes = Vec::new();
    entry
        .read_to_end(&mut bytes)
        .map_err(BadHeader::Unreadable)?;
    Ok(bytes)
}

fn read_long<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, BadHeader> {
    let mut bytes = read_header(entry)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn read_pax<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    overrides: &mut Overrides,
) -> Result<(), BadHeader> {
    let bytes = read_header(entry)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let (key, value, behind) = pax_record(rest).ok_or_else(|| {
            let message = "malformed pax header";
            BadHeader::Unreadable(io::Error::new(io::ErrorKind::InvalidData, message))
        })?;
        rest = behind;
        match key {
            b"path" => overrides.path = Some(value.to_vec()),
            b"linkpath" => overrides.link = Some(value.to_vec()),
            // Only files beyond 8 GiB need it; two readers that differ here see two different archives.
            b"size" => return Err(BadHeader::Refused(Unsafe::TooLarge)),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(BadHeader::Refused(Unsafe::Unsupported))
            }
            _other => {}
        }
    }
    Ok(())
}

/// The first record, `<length> <key>=<value>\n`, and what follows it. The length counts all of the record, itself
/// included. OTP's `erl_tar` (seen in stdlib 4.2) counts one too few for many names that are not ASCII.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let last = length.checked_sub(1)?;
    let end = [last, length]
        .into_iter()
        .find(|&end| bytes.get(end) == Some(&b'\n'))?;
    let record = bytes.get(space + 1..end)?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((
        record.get(..equals)?,
        record.get(equals + 1..)?,
        bytes.get(end + 1..)?,
    ))
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>, overrides: &mut Overrides) -> Vec<u8> {
    overrides.link.take().unwrap_or_else(|| {
        entry
            .link_name_bytes()
            .map(|name| name.into_owned())
            .unwrap_or_default()
    })
}

/// The name without `.` and empty parts.
fn relative(name: &[u8]) -> Result<Vec<u8>, Unsafe> {
    if name.first() == Some(&b'/') {
        return Err(Unsafe::AbsolutePath);
    }
    if name.is_empty() || name.contains(&0) || name.len() > LONGEST_PATH {
        return Err(Unsafe::InvalidName);
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Unsafe::ParentDir),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    Ok(path)
}

fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

#[cfg(feature = "nif")]
mod nif {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use rustler::{Atom, Binary, Encoder, Env, Term};

    use super::Limits;
    use crate::error::{encode_bytes, Error};

    mod atoms {
        rustler::atoms! { nil, sha256, bytes, files, linked, start_erl, rel_files, runtimes, emulator }
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn archive_extract<'a>(
        env: Env<'a>,
        archive: Binary<'a>,
        destination: Binary<'a>,
        previous: Option<Binary<'a>>,
        limits: Limits,
    ) -> Result<Term<'a>, Error> {
        let extracted = super::extract(
            path(&archive),
            path(&destination),
            previous.as_ref().map(path),
            &limits,
        )?;
        let pairs = [
            (atoms::sha256(), encode_bytes(env, &extracted.sha256)),
            (atoms::bytes(), extracted.bytes.encode(env)),
            (atoms::files(), extracted.files.encode(env)),
            (atoms::linked(), extracted.linked.encode(env)),
        ];
        Ok(map(env, &pairs))
    }

    #[rustler::nif(schedule = "DirtyIo")]
    fn archive_inspect<'a>(
        env: Env<'a>,
        archive: Binary<'a>,
        limits: Limits,
    ) -> Result<Term<'a>, Error> {
        let metadata = super::inspect(path(&archive), &limits)?;
        let rel_files: Vec<(Term, Term)> = metadata
            .rel_files
            .iter()
            .map(|(path, bytes)| (encode_bytes(env, path), encode_bytes(env, bytes)))
            .collect();
        let runtimes: Vec<Term> = metadata
            .runtimes
            .iter()
            .map(|name| encode_bytes(env, name))
            .collect();
        let start_erl = match &metadata.start_erl {
            Some(bytes) => encode_bytes(env, bytes),
            None => atoms::nil().encode(env),
        };
        let pairs = [
            (atoms::start_erl(), start_erl),
            (atoms::rel_files(), rel_files.encode(env)),
            (atoms::runtimes(), runtimes.encode(env)),
            (atoms::emulator(), metadata.emulator.encode(env)),
        ];
        Ok(map(env, &pairs))
    }

    fn path<'a>(binary: &'a Binary<'_>) -> &'a Path {
        Path::new(OsStr::from_bytes(binary.as_slice()))
    }

    fn map<'a>(env: Env<'a>, pairs: &[(Atom, Term<'a>)]) -> Term<'a> {
        pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
            // Fails only for what is not a map.
            map.map_put(*key, *value).unwrap_or(map)
        })
    }
}

#[cfg(test)]
mod tests;
