//! What a release tarball holds, for a hot upgrade, in one pass and without extracting it: which modules differ from
//! known ones, the few texts that describe the release, digests of what is not code.
//! Owner in Elixir: `BeamDeploy.HotUpgrade.Scan`.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use md5::{Digest, Md5};

use crate::archive::{self, Kind, Limits, Member};
use crate::beam::{self, Beam, Facts, Id};
use crate::error::Error;

/// Of a descriptive text, such as `sys.config`.
const LARGEST_TEXT: u64 = 4 * 1024 * 1024;

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scanned {
    pub sha256: [u8; 32],
    pub modules: Vec<Module>,
    /// Descriptions of the release: path and contents.
    pub texts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Everything under a `priv` directory: path and MD5.
    pub files: Vec<(Vec<u8>, [u8; 16])>,
    /// The bundled runtime systems, such as `erts-15.2`.
    pub runtimes: BTreeSet<Vec<u8>>,
}

#[derive(Debug)]
pub struct Module {
    pub path: Vec<u8>,
    pub name: Vec<u8>,
    pub md5: [u8; 16],
    /// The MD5 without the chunk `Meta`.
    pub bare_md5: [u8; 16],
    /// Only of modules that differ from what was known.
    pub difference: Option<Difference>,
}

#[derive(Debug)]
pub struct Difference {
    pub facts: Facts,
    pub bytes: Vec<u8>,
}

/// What to compare with.
pub struct Known<'a> {
    pub significant: Vec<Id>,
    pub md5s: HashMap<&'a [u8], &'a [u8]>,
    /// Whether contents and facts of what differs are wanted.
    pub differences: bool,
}

pub fn scan(archive: &Path, known: &Known, limits: &Limits) -> Result<Scanned, Error> {
    let mut scanned = Scanned::default();
    let mut buffer = Vec::new();
    let walked = archive::walk(archive, limits, |member, data| {
        if member.kind == Kind::File {
            note(&mut scanned, &mut buffer, member, data, known)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    // The walk is never broken off here.
    scanned.sha256 = walked.map(|walked| walked.sha256).unwrap_or_default();
    Ok(scanned)
}

fn note(
    scanned: &mut Scanned,
    buffer: &mut Vec<u8>,
    member: &Member,
    data: &mut dyn Read,
    known: &Known,
) -> Result<(), Error> {
    let parts: Vec<&[u8]> = member.path.split(|&byte| byte == b'/').collect();
    match parts.as_slice() {
        [b"lib", _, b"ebin", file] | [b"releases", _, b"consolidated", file]
            if file.ends_with(b".beam") =>
        {
            buffer.clear();
            data.read_to_end(buffer).map_err(Error::extract)?;
            let module =
                examine(&member.path, buffer, known).ok_or_else(|| not_a_module(&member.path))?;
            scanned.modules.push(module);
        }
        [b"lib", _, b"ebin", file] if file.ends_with(b".app") => {
            scanned.texts.push(text(member, data)?);
        }
        [b"releases", b"start_erl.data"] => scanned.texts.push(text(member, data)?),
        [b"releases", _, file]
            if file.ends_with(b".rel")
                || matches!(
                    *file,
                    b"sys.config" | b"runtime.exs" | b"vm.args" | b"env.sh"
                ) =>
        {
            scanned.texts.push(text(member, data)?);
        }
        [b"lib", _, b"priv", ..] => {
            scanned.files.push((member.path.clone(), digest(data)?));
        }
        [erts, b"bin", b"beam.smp"] if erts.starts_with(b"erts-") => {
            scanned.runtimes.insert(erts.to_vec());
        }
        _other => {}
    }
    Ok(())
}

fn not_a_module(path: &[u8]) -> Error {
    Error::Extract(Box::new(Error::Other(format!(
        "{} is not a BEAM file",
        String::from_utf8_lossy(path)
    ))))
}

fn text(member: &Member, data: &mut dyn Read) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let mut bytes = Vec::new();
    data.take(LARGEST_TEXT)
        .read_to_end(&mut bytes)
        .map_err(Error::extract)?;
    Ok((member.path.clone(), bytes))
}

fn digest(data: &mut dyn Read) -> Result<[u8; 16], Error> {
    let mut md5 = Md5::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match data.read(&mut buffer).map_err(Error::extract)? {
            0 => return Ok(md5.finalize().into()),
            count => md5.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

fn examine(path: &[u8], bytes: &[u8], known: &Known) -> Option<Module> {
    let bytes = beam::unpacked(bytes)?;
    let beam = Beam::parse(&bytes)?;
    let name = beam.name()?;
    let (md5, bare_md5) = beam.md5s(&known.significant);
    let same = known.md5s.get(name).is_some_and(|known| **known == md5);
    let difference = match known.differences && !same {
        true => Some(Difference {
            facts: beam.facts()?,
            bytes: bytes.to_vec(),
        }),
        false => None,
    };
    Some(Module {
        path: path.to_vec(),
        name: name.to_vec(),
        md5,
        bare_md5,
        difference,
    })
}

#[cfg(feature = "nif")]
mod nif {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use rustler::{Binary, Encoder, Env, Term};

    use super::{Difference, Known, Module};
    use crate::archive::Limits;
    use crate::beam;
    use crate::error::{encode_bytes, Error};

    mod atoms {
        rustler::atoms! { nil, sha256, modules, texts, files, runtimes, path, name, md5, bare_md5, facts, bytes }
    }

    #[rustler::nif(schedule = "DirtyCpu")]
    fn release_scan<'a>(
        env: Env<'a>,
        archive: Binary<'a>,
        significant: Vec<Binary<'a>>,
        known: Vec<(Binary<'a>, Binary<'a>)>,
        differences: bool,
        limits: Limits,
    ) -> Result<Term<'a>, Error> {
        let known = Known {
            significant: beam::ids(&significant),
            md5s: known
                .iter()
                .map(|(name, md5)| (name.as_slice(), md5.as_slice()))
                .collect(),
            differences,
        };
        let archive = Path::new(OsStr::from_bytes(archive.as_slice()));
        let scanned = super::scan(archive, &known, &limits)?;

        let modules: Vec<Term> = scanned
            .modules
            .iter()
            .map(|module| encode_module(env, module))
            .collect();
        let texts: Vec<Term> = scanned
            .texts
            .iter()
            .map(|(path, bytes)| (encode_bytes(env, path), encode_bytes(env, bytes)).encode(env))
            .collect();
        let files: Vec<Term> = scanned
            .files
            .iter()
            .map(|(path, md5)| (encode_bytes(env, path), encode_bytes(env, md5)).encode(env))
            .collect();
        let runtimes: Vec<Term> = scanned
            .runtimes
            .iter()
            .map(|name| encode_bytes(env, name))
            .collect();
        Ok(map(
            env,
            &[
                (atoms::sha256(), encode_bytes(env, &scanned.sha256)),
                (atoms::modules(), modules.encode(env)),
                (atoms::texts(), texts.encode(env)),
                (atoms::files(), files.encode(env)),
                (atoms::runtimes(), runtimes.encode(env)),
            ],
        ))
    }

    /// With `facts` and `bytes` only where the module differs.
    fn encode_module<'a>(env: Env<'a>, module: &Module) -> Term<'a> {
        let mut pairs = vec![
            (atoms::path(), encode_bytes(env, &module.path)),
            (atoms::name(), encode_bytes(env, &module.name)),
            (atoms::md5(), encode_bytes(env, &module.md5)),
            (atoms::bare_md5(), encode_bytes(env, &module.bare_md5)),
        ];
        if let Some(Difference { facts, bytes }) = &module.difference {
            pairs.push((atoms::facts(), facts.encode(env)));
            pairs.push((atoms::bytes(), encode_bytes(env, bytes)));
        }
        map(env, &pairs)
    }

    fn map<'a>(env: Env<'a>, pairs: &[(rustler::Atom, Term<'a>)]) -> Term<'a> {
        pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
            // Fails only for what is not a map.
            map.map_put(*key, *value).unwrap_or(map)
        })
    }
}
