//! What an archive says of the release in it, without writing any of it.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use super::{walk, Kind, Limits, Member};
use crate::elf;
use crate::error::Error;

const LARGEST_METADATA: u64 = 1024 * 1024;
const MOST_RELEASES: usize = 64;

/// What tells a release, as far as the archive had to be read for it.
#[derive(Debug, Default)]
pub struct Metadata {
    /// `releases/start_erl.data`
    pub start_erl: Option<Vec<u8>>,
    /// Each `releases/*/*.rel` with its contents.
    pub rel_files: Vec<(Vec<u8>, Vec<u8>)>,
    /// The bundled runtime systems, such as `erts-15.2`.
    pub runtimes: BTreeSet<Vec<u8>>,
    /// The first `erts-*/bin/beam.smp`.
    pub emulator: Option<elf::Facts>,
}

impl Metadata {
    /// Mix writes `releases/start_erl.data` last. Whether a runtime is bundled is known for certain only at the
    /// end, unless one was seen.
    fn is_complete(&self) -> bool {
        let Some(start_erl) = &self.start_erl else {
            return false;
        };
        let version = start_erl
            .trim_ascii()
            .rsplit(|byte| byte.is_ascii_whitespace())
            .next()
            .unwrap_or_default();
        let of_version = |path: &[u8]| path.split(|&byte| byte == b'/').nth(1) == Some(version);
        self.emulator.is_some() && self.rel_files.iter().any(|(path, _bytes)| of_version(path))
    }
}

pub fn inspect(archive: &Path, limits: &Limits) -> Result<Metadata, Error> {
    let mut metadata = Metadata::default();
    walk(archive, limits, |member, data| {
        note(&mut metadata, member, data)?;
        Ok(match metadata.is_complete() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(metadata)
}

fn note(metadata: &mut Metadata, member: &Member, data: &mut dyn Read) -> Result<(), Error> {
    let parts: Vec<&[u8]> = member.path.split(|&byte| byte == b'/').collect();
    if member.kind != Kind::File {
        return Ok(());
    }
    let mut read = |most: u64| {
        let mut bytes = Vec::new();
        data.take(most)
            .read_to_end(&mut bytes)
            .map_err(Error::extract)?;
        Ok::<_, Error>(bytes)
    };
    match parts.as_slice() {
        [b"releases", b"start_erl.data"] => metadata.start_erl = Some(read(LARGEST_METADATA)?),
        [b"releases", _version, file]
            if file.ends_with(b".rel") && metadata.rel_files.len() < MOST_RELEASES =>
        {
            metadata
                .rel_files
                .push((member.path.clone(), read(LARGEST_METADATA)?));
        }
        [erts, b"bin", b"beam.smp"] if erts.starts_with(b"erts-") => {
            metadata.runtimes.insert(erts.to_vec());
            metadata.emulator = elf::facts(&read(elf::PREFIX)?);
        }
        _other => {}
    }
    Ok(())
}
